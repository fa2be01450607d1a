//! What the [`guard`](crate::guard) remembers: three tables of fixed size.

use crate::dns::Question;
use crate::limits::{CALLER_SLOTS, QUESTIONS, UDP_REPLY_WINDOW};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// Seconds since the daemon started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seconds(pub(crate) u32);

/// When each local port last sent a datagram.
#[derive(Debug)]
pub(crate) struct LastSent(Box<[u32]>);

impl LastSent {
    pub(crate) fn new() -> Self {
        LastSent(vec![0; 1 << 16].into_boxed_slice())
    }

    pub(crate) fn record(&mut self, port: u16, now: Seconds) {
        // 0 stands for never.
        self.0[usize::from(port)] = now.0.saturating_add(1);
    }

    pub(crate) fn is_recent(&self, port: u16, now: Seconds) -> bool {
        let last = self.0[usize::from(port)];
        last != 0 && now.0.saturating_add(1).saturating_sub(last) <= reply_window()
    }
}

/// Who lately sent to a published UDP port. A fixed table in which a newer caller may take an
/// older one's place; that one's next datagram brings it back.
#[derive(Debug)]
pub(crate) struct Callers(Box<[Option<(u16, SocketAddr, Seconds)>]>);

impl Callers {
    pub(crate) fn new() -> Self {
        Callers(vec![None; CALLER_SLOTS].into_boxed_slice())
    }

    fn slot(port: u16, peer: SocketAddr) -> usize {
        let address = match peer.ip() {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        #[expect(clippy::cast_possible_truncation, reason = "both halves are mixed in")]
        let [a, b] = [address as u64, (address >> 64) as u64];
        let ports = u64::from(port) << 16 | u64::from(peer.port());
        // Fibonacci hashing; the top bits are the well-mixed ones.
        let mixed =
            (a ^ b.rotate_left(32) ^ ports.rotate_left(20)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        usize::try_from(mixed >> 52).expect("12 bits")
    }

    pub(crate) fn record(&mut self, port: u16, peer: SocketAddr, now: Seconds) {
        self.0[Self::slot(port, peer)] = Some((port, peer, now));
    }

    pub(crate) fn called(&self, port: u16, peer: SocketAddr, now: Seconds) -> bool {
        self.0[Self::slot(port, peer)].is_some_and(|(p, from, at)| {
            (p, from) == (port, peer) && now.0.saturating_sub(at.0) <= reply_window()
        })
    }
}

/// The DNS questions that were asked last and not answered yet; the oldest is forgotten first.
#[derive(Debug, Default)]
pub(crate) struct Questions(VecDeque<(SocketAddr, Question, Seconds)>);

impl Questions {
    /// Takes note of a question from `from`, an address and port of ours.
    pub(crate) fn record(&mut self, from: SocketAddr, question: Question, now: Seconds) {
        if self.0.len() >= QUESTIONS {
            self.0.pop_front();
        }
        self.0.push_back((from, question, now));
    }

    /// Whether `question` was asked from there. It is forgotten with this: one answer a question.
    pub(crate) fn take(&mut self, from: SocketAddr, question: &Question, now: Seconds) -> bool {
        let asked = self.0.iter().position(|(asker, asked, at)| {
            *asker == from && asked == question && now.0.saturating_sub(at.0) <= reply_window()
        });
        asked.is_some_and(|index| self.0.remove(index).is_some())
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

fn reply_window() -> u32 {
    u32::try_from(UDP_REPLY_WINDOW.as_secs()).expect("some minutes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const NOW: Seconds = Seconds(1000);

    proptest! {
        #[test]
        fn a_port_is_open_for_its_window_only(port: u16, at in 0u32..1_000_000, later in 0u32..400) {
            let mut sent = LastSent::new();
            prop_assert!(!sent.is_recent(port, Seconds(at)));
            sent.record(port, Seconds(at));
            prop_assert_eq!(sent.is_recent(port, Seconds(at + later)), later <= 180);
            prop_assert!(!sent.is_recent(port.wrapping_add(1), Seconds(at)));
        }

        #[test]
        fn callers_never_vouch_for_another(
            records in vec((any::<u16>(), any::<u32>(), any::<u16>()), 1..50),
            asked: (u16, u32, u16),
        ) {
            let mut callers = Callers::new();
            let peer = |ip: u32, port| SocketAddr::new(Ipv4Addr::from_bits(ip).into(), port);
            for (port, ip, from) in &records {
                callers.record(*port, peer(*ip, *from), NOW);
            }
            let (port, ip, from) = *records.last().expect("not empty");
            prop_assert!(callers.called(port, peer(ip, from), NOW));
            if !records.contains(&asked) {
                prop_assert!(!callers.called(asked.0, peer(asked.1, asked.2), NOW));
            }
        }
    }
}
