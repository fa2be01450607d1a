//! How a flow ends: both halves in good order, by a reset behind what came before it, or by another
//! connection between the same ports.

use super::Stack;
use crate::limits::RESET_PATIENCE;
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;

/// The host's peer reset the flow. The enclave is told behind what came before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resetting {
    /// All that came before is in the ring.
    complete: bool,
    /// How much of it the enclave had acknowledged, and until when it may take its time for more.
    acknowledged: u32,
    pub(super) until: Option<Instant>,
}

/// Where an open flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// At least one half carries data or waits for its end, or received bytes wait to be taken.
    Open,
    /// Both halves ended in good order, and everything received was taken.
    Finished,
    /// The enclave reset it, or refused or ignored an inbound connection.
    Reset,
}

impl Stack {
    /// Whether everything that the enclave sent was received, up to its FIN.
    pub(in crate::engine) fn enclave_finished(&self) -> bool {
        self.enclave_finished && self.socket.socket_ref().recv_queue() == 0
    }

    /// The host side will send nothing more.
    pub(in crate::engine) fn finish(&mut self) {
        self.host_finished = true;
        self.end_if_there_is_room();
    }

    /// Lets the FIN go.
    ///
    /// Where the enclave sent its own before, smoltcp 0.14 takes no window update in LAST-ACK: with
    /// bytes left to send it would not see a shut window open again. So it gets there only when
    /// there is room for all of them.
    pub(super) fn end_if_there_is_room(&mut self) {
        let waits = self.state() == State::CloseWait && !self.receiver.has_room_for_all();
        if self.host_finished && !waits {
            self.tcp().close();
        }
    }

    /// Resets the enclave's connection; the RST goes out with the next egress.
    pub(in crate::engine) fn abort(&mut self) {
        // Not in good order, whatever was received before.
        self.host_finished = false;
        self.silent = false;
        self.resetting = None;
        self.tcp().abort();
    }

    /// Resets the enclave's connection behind what was queued for it; `complete` tells whether
    /// more of it is to come.
    pub(in crate::engine) fn abort_behind(&mut self, complete: bool) {
        match &mut self.resetting {
            Some(resetting) => resetting.complete |= complete,
            None => {
                self.resetting = Some(Resetting {
                    complete,
                    acknowledged: 0,
                    until: None,
                });
            }
        }
    }

    /// Whether the time for that reset has come: all before it was sent, or the enclave did not
    /// take any of it for [`RESET_PATIENCE`].
    pub(super) fn is_to_be_reset(&mut self, now: Instant) -> bool {
        let waiting = self.socket.socket_ref().send_queue();
        let Some(resetting) = &mut self.resetting else {
            return false;
        };
        let acknowledged = self.receiver.acknowledged(waiting);
        if acknowledged != resetting.acknowledged {
            resetting.acknowledged = acknowledged;
            resetting.until = None;
        }
        let until = *resetting.until.get_or_insert(now + RESET_PATIENCE.into());
        (resetting.complete && self.receiver.was_sent_all()) || until <= now
    }

    /// Whether a SYN with this sequence number begins another connection than this one: the
    /// enclave's kernel has forgotten this one, since its link repeats and loses nothing.
    pub(in crate::engine) fn is_followed_by(&self, syn: u32) -> bool {
        self.syn.is_some_and(|own| own != syn)
    }

    /// Lets the rest of what the enclave sent go on to the host's peer, without another word to
    /// the enclave. False if the enclave had not ended the connection in good order.
    pub(in crate::engine) fn part(&mut self) -> bool {
        let over = self.is_over();
        self.silent |= over;
        over
    }

    /// Both halves ended in good order, as far as the enclave is concerned.
    fn is_over(&self) -> bool {
        match self.state() {
            State::TimeWait => true,
            State::Closed => self.enclave_finished && self.host_finished,
            _ => false,
        }
    }

    pub(in crate::engine) fn standing(&self) -> Standing {
        let closed = self.is_over();
        match self.state() {
            _ if closed && self.socket.socket_ref().recv_queue() > 0 => Standing::Open,
            _ if closed => Standing::Finished,
            State::Closed | State::Listen => Standing::Reset,
            _ => Standing::Open,
        }
    }

    /// An enclave that acknowledges a FIN it was not sent while its window is shut leaves smoltcp
    /// with a window probe that is due for ever. What is due once or twice, an acknowledgement and a
    /// keep-alive, is not that.
    pub(super) fn end_if_restless(&mut self, now: Instant) {
        let at = self.interface.poll_at(now, self.socket.set_ref());
        if at.is_none_or(|at| at > now) {
            self.restless = 0;
            return;
        }
        self.restless += 1;
        if self.restless > 2 {
            self.abort();
        }
    }
}
