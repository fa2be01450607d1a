//! A TCP connection of the host's kernel over a long, lossy path: one direction of its bytes.
//!
//! It stands in for what lies beyond host-netd, with what decides about throughput there and no more:
//! a bottleneck with a queue, delay, random loss, Reno's congestion control with selective
//! acknowledgements (RFC 5681, 6675), a retransmission timeout of at least 200 ms as Linux has, and
//! buffers of a given size at both ends, of which the receiver's is the window. Bytes are numbers
//! here: what they are is the other parts' business.

use crate::random::Random;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

/// Payload of a segment: an Ethernet frame with timestamps.
const MSS: u64 = 1448;
/// What a segment takes on the wire besides.
const HEADERS: u64 = 90;
/// First window (RFC 6928).
const FIRST_WINDOW: u64 = 10 * MSS;
const LEAST_TIMEOUT: Duration = Duration::from_millis(200);
const MOST_TIMEOUT: Duration = Duration::from_secs(60);
/// Segments behind a hole that were received: then it is taken for lost.
const REORDERED: u64 = 3;
/// The bottleneck: 100 Mbit/s.
const NANOS_A_BYTE: u64 = 80;
/// What waits at the bottleneck at most.
const QUEUE: Duration = Duration::from_millis(50);

/// What the path is like.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// One way.
    pub delay: Duration,
    /// Of 10,000 segments with data, so many are lost.
    pub loss: usize,
    /// Bytes of each end's socket buffer.
    pub buffer: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    at: Instant,
    length: u64,
    received: bool,
    lost: bool,
    repeated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Message {
    Data {
        from: u64,
        to: u64,
    },
    Ack {
        to: u64,
        edge: u64,
        beyond: Vec<(u64, u64)>,
    },
}

/// One direction of a connection, with both its ends.
#[derive(Debug)]
pub(crate) struct Path {
    conditions: Conditions,
    random: Random,
    // The sender.
    /// Bytes that its program wrote.
    pub(crate) written: u64,
    pub(crate) acked: u64,
    blocked: bool,
    /// Segments from `acked` on, by the place of their first byte.
    flight: VecDeque<Sent>,
    next: u64,
    edge: u64,
    window: u64,
    threshold: u64,
    /// Losses up to here belong to one event.
    recovery: u64,
    smoothed: Option<(Duration, Duration)>,
    timeout_at: Option<Instant>,
    backoff: u32,
    // The receiver.
    /// Bytes that came in order.
    pub(crate) received: u64,
    beyond: BTreeMap<u64, u64>,
    /// What of it the program has read.
    pub(crate) read: u64,
    told_edge: u64,
    // The wire.
    free_at: Instant,
    messages: BinaryHeap<Reverse<(Instant, u64, Message)>>,
    count: u64,
}

impl Path {
    pub(crate) fn new(conditions: Conditions, random: Random, now: Instant) -> Path {
        Path {
            conditions,
            random,
            written: 0,
            acked: 0,
            blocked: false,
            flight: VecDeque::new(),
            next: 0,
            edge: conditions.buffer,
            window: FIRST_WINDOW,
            threshold: u64::MAX,
            recovery: 0,
            smoothed: None,
            timeout_at: None,
            backoff: 0,
            received: 0,
            beyond: BTreeMap::new(),
            read: 0,
            told_edge: conditions.buffer,
            free_at: now,
            messages: BinaryHeap::new(),
            count: 0,
        }
    }

    /// The sender's program writes up to `most` bytes, and sleeps when its buffer is full until a
    /// third of it is free.
    pub(crate) fn write(&mut self, most: u64) {
        let room = self.conditions.buffer - (self.written - self.acked);
        self.blocked &= room * 3 <= self.conditions.buffer;
        if !self.blocked {
            self.written += room.min(most);
            self.blocked = true;
        }
    }

    /// When something happens of itself.
    pub(crate) fn next_event(&self) -> Option<Instant> {
        let message = self.messages.peek().map(|Reverse((at, ..))| *at);
        [message, self.timeout_at].into_iter().flatten().min()
    }

    /// Lets everything happen that is due.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some(Reverse((at, ..))) = self.messages.peek() {
            if *at > now {
                break;
            }
            let Some(Reverse((_, _, message))) = self.messages.pop() else {
                break;
            };
            match message {
                Message::Data { from, to } => self.receive(from, to, now),
                Message::Ack { to, edge, beyond } => self.take_ack(to, edge, &beyond, now),
            }
        }
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.time_out(now);
        }
        self.send(now);
        self.tell_window(now);
    }

    fn post(&mut self, at: Instant, message: Message) {
        self.count += 1;
        self.messages.push(Reverse((at, self.count, message)));
    }

    /// Sends what the windows allow.
    fn send(&mut self, now: Instant) {
        while self.in_the_pipe() + MSS <= self.window {
            if let Some((from, to)) = self.next_lost(now) {
                self.put_on_wire(from, to, now);
                continue;
            }
            let length = MSS.min(self.written.min(self.edge).saturating_sub(self.next));
            if length == 0 {
                return;
            }
            let from = self.next;
            self.next += length;
            self.flight.push_back(Sent {
                at: now,
                length,
                received: false,
                lost: false,
                repeated: false,
            });
            self.put_on_wire(from, from + length, now);
        }
    }

    fn in_the_pipe(&self) -> u64 {
        let on_the_way = self.flight.iter().filter(|one| !one.received && !one.lost);
        on_the_way.map(|one| one.length).sum()
    }

    /// The first lost segment, which is on its way again.
    fn next_lost(&mut self, now: Instant) -> Option<(u64, u64)> {
        let mut place = self.acked;
        for one in &mut self.flight {
            if one.lost && !one.received {
                one.lost = false;
                one.repeated = true;
                one.at = now;
                return Some((place, place + one.length));
            }
            place += one.length;
        }
        None
    }

    fn put_on_wire(&mut self, from: u64, to: u64, now: Instant) {
        self.timeout_at.get_or_insert(now + self.timeout());
        let begins = self.free_at.max(now);
        // What finds the queue full is lost, and so is some of the rest.
        let lost = begins - now > QUEUE || self.random.below(10_000) < self.conditions.loss;
        if begins - now <= QUEUE {
            self.free_at = begins + Duration::from_nanos((to - from + HEADERS) * NANOS_A_BYTE);
        }
        if !lost {
            let at = self.free_at + self.conditions.delay;
            self.post(at, Message::Data { from, to });
        }
    }

    fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            None => Duration::from_secs(1),
            Some((smoothed, deviation)) => smoothed + LEAST_TIMEOUT.max(4 * deviation),
        };
        (base * 2u32.pow(self.backoff.min(8))).min(MOST_TIMEOUT)
    }

    fn time_out(&mut self, now: Instant) {
        self.timeout_at = None;
        if self.flight.is_empty() {
            return;
        }
        self.threshold = (self.in_the_pipe() / 2).max(2 * MSS);
        self.window = MSS;
        self.recovery = self.next;
        self.backoff += 1;
        for one in &mut self.flight {
            one.lost = !one.received;
        }
        self.send(now);
    }

    fn take_ack(&mut self, to: u64, edge: u64, beyond: &[(u64, u64)], now: Instant) {
        self.edge = self.edge.max(edge);
        let mut acked = 0;
        while to > self.acked {
            let Some(one) = self.flight.pop_front() else {
                break;
            };
            self.acked += one.length;
            acked += one.length;
            if !one.repeated {
                self.sample(now - one.at);
            }
        }
        let mut place = self.acked;
        let highest = beyond.iter().map(|(_, to)| *to).max().unwrap_or(0);
        let mut lost = false;
        if highest > 0 {
            for one in &mut self.flight {
                let end = place + one.length;
                one.received |= beyond.iter().any(|(from, to)| *from <= place && end <= *to);
                let overtaken = end + REORDERED * MSS <= highest;
                if overtaken && !one.received && !one.lost && !one.repeated {
                    one.lost = true;
                    lost = true;
                }
                place = end;
            }
        }
        if lost && self.acked >= self.recovery {
            self.recovery = self.next;
            self.threshold = (self.window / 2).max(2 * MSS);
            self.window = self.threshold;
        } else if acked > 0 && self.acked >= self.recovery {
            self.window += match self.window < self.threshold {
                true => acked,
                false => MSS * acked / self.window,
            };
        } else if acked > 0 && self.window < self.threshold {
            self.window += acked;
        }
        if acked > 0 {
            self.backoff = 0;
            self.timeout_at = (!self.flight.is_empty()).then(|| now + self.timeout());
        }
    }

    fn sample(&mut self, time: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (time, time / 2),
            Some((smoothed, deviation)) => (
                (smoothed * 7 + time) / 8,
                (deviation * 3 + smoothed.abs_diff(time)) / 4,
            ),
        });
    }

    fn receive(&mut self, from: u64, to: u64, now: Instant) {
        if to > self.received {
            let end = self.beyond.entry(from).or_insert(to);
            *end = (*end).max(to);
        }
        while let Some((&from, &to)) = self.beyond.first_key_value() {
            if from > self.received {
                break;
            }
            self.beyond.remove(&from);
            self.received = self.received.max(to);
        }
        self.acknowledge(now);
    }

    fn acknowledge(&mut self, now: Instant) {
        let mut beyond: Vec<(u64, u64)> = Vec::new();
        for (&from, &to) in &self.beyond {
            match beyond.last_mut() {
                Some(last) if last.1 >= from => last.1 = last.1.max(to),
                _ => beyond.push((from, to)),
            }
        }
        self.told_edge = self.read + self.conditions.buffer;
        let at = now + self.conditions.delay;
        let (to, edge) = (self.received, self.told_edge);
        self.post(at, Message::Ack { to, edge, beyond });
    }

    /// Tells of room that the reader made.
    fn tell_window(&mut self, now: Instant) {
        let room = self.read + self.conditions.buffer - self.told_edge;
        if room >= (2 * MSS).min(self.conditions.buffer / 2) {
            self.acknowledge(now);
        }
    }
}
