//! The host's kernel and the program outside: one connected socket, and what the data loop does
//! with it in a flow's turn.
//!
//! The kernel holds a bounded number of bytes each way and tells of changes by edges, as epoll
//! does: what was not read or written until the kernel said no is not told of again.
//! [`Host::turn`] plays the part of host-netd's `io/flow.rs`, against this kernel.

use crate::ledger::{Ledger, Side};
use crate::random::Random;
use host_netd::engine::{Egress, Engine, FlowId, Standing};
use host_netd::limits::QUANTUM;
use std::time::Instant;

/// Why a system call did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errno {
    WouldBlock,
    Interrupted,
    Reset,
}

/// What epoll has to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Edges {
    readable: bool,
    writable: bool,
    closed: bool,
    error: bool,
}

/// What to do with a flow after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Idle,
    Again,
    LinkFull,
    Ended,
}

/// A connected socket of the host and the program at its other end.
#[derive(Debug)]
pub(crate) struct Host {
    /// Bytes that the kernel takes for the program outside.
    send_room: usize,
    /// Bytes that it takes from it.
    receive_room: usize,
    /// Bytes for the program outside that it did not read yet.
    sending: usize,
    /// Bytes of the program outside that were not read yet, and the place of the first.
    received: usize,
    place: u64,
    ended: bool,
    /// The connection was reset, or the program outside is gone.
    reset: bool,
    error_told: bool,
    /// The end of what the enclave sends was passed on.
    shut: bool,
    end_read: bool,
    edges: Edges,
    interrupts: usize,
    // What the data loop keeps of a stream.
    readable: bool,
    writable: bool,
    read_closed: bool,
    finished: bool,
    shut_down: bool,
}

impl Host {
    pub(crate) fn new(random: &mut Random) -> Host {
        Host {
            send_room: random.magnitude(1000..=400_000),
            receive_room: random.magnitude(1000..=400_000),
            sending: 0,
            received: 0,
            place: 0,
            ended: false,
            reset: false,
            error_told: false,
            shut: false,
            end_read: false,
            edges: Edges::default(),
            interrupts: if random.percent(20) { 3 } else { 0 },
            readable: true,
            writable: true,
            read_closed: false,
            finished: false,
            shut_down: false,
        }
    }

    /// Gives both buffers this size.
    pub(crate) fn set_buffers(&mut self, bytes: usize) {
        self.send_room = bytes;
        self.receive_room = bytes;
        self.interrupts = 0;
    }

    /// Bytes in the buffer for the program outside.
    pub(crate) fn sending(&self) -> usize {
        self.sending
    }

    /// Bytes of the program outside that were not read yet.
    pub(crate) fn received(&self) -> usize {
        self.received
    }

    /// Room for what the program outside writes.
    fn room(&self) -> usize {
        self.receive_room - self.received
    }

    /// The program outside writes up to `most` bytes.
    pub(crate) fn outside_writes(&mut self, most: usize, ledger: &mut Ledger) -> usize {
        if self.reset || self.ended {
            return 0;
        }
        let bytes = most.min(self.room());
        self.received += bytes;
        ledger.wrote(Side::Outside, bytes);
        self.edges.readable |= bytes > 0;
        bytes
    }

    /// It reads up to `most` bytes.
    pub(crate) fn outside_reads(&mut self, most: usize, ledger: &mut Ledger) -> usize {
        if self.reset {
            return 0;
        }
        // Linux tells of room only when a third of the buffer is free again.
        let was_tight = self.sending * 3 >= self.send_room * 2;
        let bytes = most.min(self.sending);
        self.sending -= bytes;
        self.edges.writable |= was_tight && self.sending * 3 < self.send_room * 2;
        if self.sending == 0 && self.shut && !self.end_read {
            self.end_read = true;
            ledger.sees_end(Side::Outside);
        }
        bytes
    }

    /// It ends its half.
    pub(crate) fn outside_finishes(&mut self, ledger: &mut Ledger) {
        if !self.reset && !self.ended {
            self.ended = true;
            ledger.finished(Side::Outside);
            self.edges.readable = true;
            self.edges.closed = true;
        }
    }

    /// It closes its socket; what comes later is answered by a reset.
    pub(crate) fn outside_closes(&mut self, ledger: &mut Ledger) {
        if self.sending > 0 {
            self.outside_resets(ledger);
        } else {
            self.outside_finishes(ledger);
            ledger.left(Side::Outside);
        }
    }

    /// It resets the connection.
    pub(crate) fn outside_resets(&mut self, ledger: &mut Ledger) {
        ledger.cause("a reset from outside");
        ledger.left(Side::Outside);
        self.reset = true;
        self.edges.readable = true;
        self.edges.writable = true;
        self.edges.closed = true;
        self.edges.error = true;
    }

    /// Whether the program outside read everything that its kernel has for it.
    pub(crate) fn is_read_up(&self) -> bool {
        self.reset || self.sending == 0
    }

    /// Whether epoll has something to tell; the data loop hears of it.
    pub(crate) fn poll(&mut self) -> bool {
        let edges = std::mem::take(&mut self.edges);
        self.readable |= edges.readable;
        self.writable |= edges.writable;
        self.read_closed |= edges.closed;
        edges != Edges::default()
    }

    fn interrupted(&mut self) -> bool {
        let now = self.interrupts > 0;
        self.interrupts = self.interrupts.saturating_sub(1);
        now
    }

    fn read(&mut self, space: &mut [u8], ledger: &Ledger) -> Result<usize, Errno> {
        if self.interrupted() {
            return Err(Errno::Interrupted);
        }
        if self.received == 0 {
            // What came before a reset can still be read.
            if self.reset && !std::mem::replace(&mut self.error_told, true) {
                return Err(Errno::Reset);
            }
            return match self.ended || self.reset {
                true => Ok(0),
                false => Err(Errno::WouldBlock),
            };
        }
        let bytes = space.len().min(self.received);
        ledger
            .stream(Side::Outside)
            .fill(self.place, &mut space[..bytes]);
        self.place += bytes as u64;
        self.received -= bytes;
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8], ledger: &mut Ledger) -> Result<usize, Errno> {
        if self.interrupted() {
            return Err(Errno::Interrupted);
        }
        if self.reset {
            return Err(Errno::Reset);
        }
        if ledger.has_left(Side::Outside) {
            // Its kernel answers with a reset, which comes later.
            self.outside_resets(ledger);
            return Ok(bytes.len());
        }
        let taken = bytes.len().min(self.send_room - self.sending);
        if taken == 0 {
            return Err(Errno::WouldBlock);
        }
        ledger.reads(Side::Outside, &bytes[..taken]);
        self.sending += taken;
        Ok(taken)
    }

    fn shutdown_write(&mut self, ledger: &mut Ledger) {
        self.shut = true;
        self.outside_reads(0, ledger);
    }

    /// The data loop closes the socket with a reset.
    pub(crate) fn reset_on_close(&mut self, ledger: &mut Ledger) {
        if !self.reset && !ledger.is_over(Side::Outside) {
            ledger.sees_reset(Side::Outside);
        }
        self.reset = true;
    }

    /// The data loop closes it in good order.
    fn close(&self) {
        let in_good_order = self.shut && self.finished;
        assert!(
            in_good_order || self.reset,
            "closed before both ends: {self:?}"
        );
    }

    /// A flow's turn: moves what can be moved, up to the quantum.
    pub(crate) fn turn(
        &mut self,
        engine: &mut Engine,
        id: FlowId,
        ledger: &mut Ledger,
        now: Instant,
    ) -> Turn {
        let Ok(again) = self.transfer(engine, id, ledger) else {
            return self.abort(engine, id, now);
        };
        let egress = engine.egress(id, QUANTUM, now);
        let flow = engine.tcp(id).expect("a flow ends with its turn only");
        match (egress, flow.standing()) {
            (Egress::LinkFull, _) => Turn::LinkFull,
            (_, Standing::Reset) => {
                self.reset_on_close(ledger);
                Turn::Ended
            }
            (_, Standing::Finished) => {
                self.close();
                Turn::Ended
            }
            (Egress::More, _) => Turn::Again,
            (Egress::Done, _) if again => Turn::Again,
            (Egress::Done, _) => Turn::Idle,
        }
    }

    fn abort(&mut self, engine: &mut Engine, id: FlowId, now: Instant) -> Turn {
        engine.egress(id, QUANTUM, now);
        engine.tcp(id).expect("open").abort();
        self.readable = false;
        self.writable = false;
        match engine.egress(id, QUANTUM, now) {
            Egress::LinkFull => Turn::LinkFull,
            Egress::Done | Egress::More => Turn::Ended,
        }
    }

    /// True if there is more to read than the quantum allowed.
    fn transfer(
        &mut self,
        engine: &mut Engine,
        id: FlowId,
        ledger: &mut Ledger,
    ) -> Result<bool, Errno> {
        let link_has_room = engine.queue().has_room();
        let mut flow = engine.tcp(id).expect("a flow ends with its turn only");
        let mut reset = None;
        while self.writable {
            let written = flow.receive(|bytes| match self.write(bytes, ledger) {
                Ok(taken) => {
                    self.writable = taken == bytes.len();
                    (taken, Ok(()))
                }
                Err(error) => (0, Err(error)),
            });
            match written {
                None => break,
                Some(Ok(()) | Err(Errno::Interrupted)) => {}
                Some(Err(Errno::WouldBlock)) => self.writable = false,
                Some(Err(Errno::Reset)) => {
                    self.writable = false;
                    reset = Some(Errno::Reset);
                }
            }
        }
        if !self.shut_down && flow.enclave_finished() {
            self.shut_down = true;
            self.shutdown_write(ledger);
        }
        if !link_has_room {
            return reset.map_or(Ok(false), Err);
        }
        let mut budget = QUANTUM;
        while self.readable && !self.finished && budget > 0 {
            let read = flow.send(|space| {
                let wanted = space.len().min(budget);
                match self.read(&mut space[..wanted], ledger) {
                    Ok(bytes) => (bytes, Ok((bytes, bytes == wanted))),
                    Err(error) => (0, Err(error)),
                }
            });
            match read {
                None => break,
                Some(Ok((0, _))) => {
                    self.finished = true;
                    flow.finish();
                }
                Some(Ok((bytes, filled))) => {
                    budget -= bytes;
                    self.readable = filled || self.read_closed;
                }
                Some(Err(Errno::WouldBlock)) => self.readable = false,
                Some(Err(Errno::Interrupted)) => {}
                Some(Err(Errno::Reset)) => return Err(Errno::Reset),
            }
        }
        let again = self.readable && !self.finished && flow.can_send();
        reset.map_or(Ok(again), Err)
    }
}
