//! From the tun to the link's queue, with consecutive UDP datagrams of one flow gathered into a
//! [`Run`].
//!
//! Each packet costs one read of the tun; there is no call that takes several. While a run is open
//! the read is told to put headers aside and the payload behind the run's last. If the headers are
//! those of the run, that was all there is to do for the packet: what the guard said about the
//! first holds for each. If not, the run is sealed and the packet moved to its own place.

use crate::tun::Tun;
use netd_proto::frame::{HEADER, Queue};
use netd_proto::limits::{LINK_QUEUE, MAX_PACKET_FRAME};
use netd_proto::run::Run;
use std::io::{self, IoSliceMut};

/// What a read of the tun brought.
pub(crate) enum Taken {
    /// A datagram that joined the run.
    Joined,
    /// A packet of this length, in the queue's packet space: to be judged, and committed or not.
    Packet(usize),
    /// Nothing: the queue is full.
    Full,
}

/// The run that is being gathered, and room for what does not fit it.
pub(crate) struct Outbound {
    run: Option<Run>,
    spare: Box<[u8]>,
}

impl Outbound {
    pub(crate) fn new() -> Outbound {
        Outbound {
            run: None,
            spare: vec![0; MAX_PACKET_FRAME].into_boxed_slice(),
        }
    }

    /// Reads one packet.
    ///
    /// # Errors
    /// As the tun's; "would block" when there is none.
    pub(crate) fn take(&mut self, tun: &Tun, queue: &mut Queue) -> io::Result<Taken> {
        if let Some(run) = self.run {
            // What does not fit the run must find room behind it.
            if run.may_grow() && queue.len() + HEADER + run.end() < LINK_QUEUE {
                return self.take_behind(run, tun, queue);
            }
            self.seal(queue);
        }
        match queue.packet_space() {
            Some(space) => tun.read(space).map(Taken::Packet),
            None => Ok(Taken::Full),
        }
    }

    fn take_behind(&mut self, mut run: Run, tun: &Tun, queue: &mut Queue) -> io::Result<Taken> {
        let Some(space) = queue.packet_space() else {
            return Ok(Taken::Full);
        };
        let (headers, end) = (run.headers(), run.end());
        let (aside, rest) = self.spare.split_at_mut(headers);
        let (in_place, rest) = rest.split_at_mut(run.segment());
        let (first, behind) = space.split_at_mut(end);
        let behind = &mut behind[..run.segment()];
        let n = tun.read_parts(&mut [
            IoSliceMut::new(aside),
            IoSliceMut::new(behind),
            IoSliceMut::new(rest),
        ])?;
        let length = n.saturating_sub(headers);
        if n > headers && run.is_alike(&first[..headers], aside, length) && run.join(length) {
            self.run = Some(run);
            return Ok(Taken::Joined);
        }
        in_place.copy_from_slice(behind);
        self.seal(queue);
        let Some(space) = queue.packet_space() else {
            return Ok(Taken::Full);
        };
        space[..n].copy_from_slice(&self.spare[..n]);
        Ok(Taken::Packet(n))
    }

    /// Queues the packet of `n` bytes that was taken last. It begins `run`, if others may join.
    pub(crate) fn queue(&mut self, n: usize, run: Option<Run>, queue: &mut Queue) {
        match run.filter(Run::may_grow) {
            Some(run) => self.run = Some(run),
            None => queue.commit_packet(n),
        }
    }

    /// Queues the run that is open.
    pub(crate) fn seal(&mut self, queue: &mut Queue) {
        // A run is begun only where a packet has room, and nothing is queued while it is open.
        if let Some(run) = self.run.take()
            && let Some(space) = queue.packet_space()
        {
            let length = run.seal(space);
            queue.commit_packet(length);
        }
    }
}
