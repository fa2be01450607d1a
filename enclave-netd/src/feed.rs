//! What the keeper has for the parent: lines of the log, and how the program ended.
//!
//! The [`pump`](crate::pump) gives it a turn behind packets. A line that the link has no room for is
//! held, and nothing more is taken from the keeper meanwhile: what its program writes then fills the
//! keeper's ring, where the oldest lines go.
//!
//! With each new link the keeper is asked for all lines of its ring again. Lines that were on their
//! way for the link before are told apart by [`Order::Replay`], which comes before those for the
//! new one.

use crate::datapath::Datapath;
use crate::init::channel::{CarrierEnd, ChannelError, Generation, Notice, Order};
use crate::limits::FEED_BUDGET;
use netd_proto::report::Exit;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// The carrier's end of the way to the keeper, and what is held of it.
pub(crate) struct Feed {
    channel: CarrierEnd,
    readable: bool,
    held: Option<Vec<u8>>,
    generation: Generation,
    /// Whether what comes is for the link there is.
    is_current: bool,
}

/// What the keeper wants now.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Line(Vec<u8>),
    Exit(Exit),
    Report,
    Stop,
}

/// How the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GoOn,
    Stop,
}

impl Feed {
    pub(crate) fn new(channel: CarrierEnd) -> Feed {
        Feed {
            channel,
            readable: true,
            held: None,
            generation: Generation::default(),
            is_current: false,
        }
    }

    /// Takes note that the keeper said something.
    pub(crate) fn event(&mut self) {
        self.readable = true;
    }

    /// Whether there is more to do now.
    pub(crate) fn waits(&self) -> bool {
        self.readable && self.held.is_none()
    }

    /// There is a link.
    pub(crate) fn linked(&mut self, takes_log: bool) -> io::Result<()> {
        self.generation = Generation(self.generation.0.wrapping_add(1));
        self.tell(Notice::Linked {
            generation: self.generation,
            takes_log,
        })
    }

    /// There is none any more.
    pub(crate) fn lost(&mut self) -> io::Result<()> {
        self.held = None;
        self.is_current = false;
        self.tell(Notice::Lost)
    }

    /// The parent knows how the program ended.
    pub(crate) fn told(&self) -> io::Result<()> {
        self.tell(Notice::Told)
    }

    fn tell(&self, notice: Notice) -> io::Result<()> {
        self.channel.tell(notice).map_err(io::Error::other)
    }

    /// Passes on what the keeper has, within a budget.
    ///
    /// # Errors
    /// The keeper said what is none.
    pub(crate) fn turn(&mut self, datapath: &mut Datapath) -> io::Result<Next> {
        let mut budget = FEED_BUDGET;
        loop {
            if let Some(line) = &self.held {
                if budget < line.len() || !datapath.queue_line(line) {
                    return Ok(Next::GoOn);
                }
                budget -= line.len();
                self.held = None;
            }
            let order = match self.channel.next() {
                Ok(Some(order)) => order,
                Ok(None) => {
                    self.readable = false;
                    return Ok(Next::GoOn);
                }
                Err(ChannelError::Closed) => return Ok(Next::Stop),
                Err(error) => return Err(io::Error::other(error)),
            };
            match self.sift(order)? {
                None => {}
                Some(Word::Line(line)) => self.held = Some(line),
                Some(Word::Exit(exit)) => datapath.conclude(exit),
                Some(Word::Report) => datapath.report(),
                Some(Word::Stop) => return Ok(Next::Stop),
            }
        }
    }

    /// What an order is for the link there is, if anything.
    fn sift(&mut self, order: Order) -> io::Result<Option<Word>> {
        Ok(match order {
            Order::Replay(generation) => {
                self.is_current = generation == self.generation;
                None
            }
            Order::Line(line) => self.is_current.then_some(Word::Line(line)),
            Order::Exit(exit) => self.is_current.then_some(Word::Exit(exit)),
            Order::Report => Some(Word::Report),
            Order::Stop => Some(Word::Stop),
            Order::Config(_) | Order::Begin(_) => {
                return Err(io::Error::other("the keeper began twice"));
            }
        })
    }
}

impl AsRawFd for Feed {
    fn as_raw_fd(&self) -> RawFd {
        self.channel.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::channel;
    use netd_proto::handshake::SessionId;

    #[test]
    fn what_was_on_its_way_for_an_earlier_link_is_left_out() {
        let (mut keeper, carrier) = channel::pair().expect("a pair");
        let mut feed = Feed::new(CarrierEnd::new(carrier));
        let line = |n: u8| Order::Line(vec![n]);
        let passed = |feed: &mut Feed, order| feed.sift(order).expect("allowed");
        assert_eq!(passed(&mut feed, line(0)), None, "there is no link");

        feed.linked(true).expect("told");
        let Ok(Some(Notice::Linked {
            generation,
            takes_log: true,
        })) = keeper.next()
        else {
            panic!("not told");
        };
        assert_eq!(passed(&mut feed, line(1)), None, "not for this link");
        assert_eq!(passed(&mut feed, Order::Replay(generation)), None);
        assert_eq!(passed(&mut feed, line(2)), Some(Word::Line(vec![2])));

        feed.lost().expect("told");
        assert!(matches!(keeper.next(), Ok(Some(Notice::Lost))));
        feed.linked(false).expect("told");
        let Ok(Some(Notice::Linked {
            generation: second,
            takes_log: false,
        })) = keeper.next()
        else {
            panic!("not told");
        };
        // What the keeper said before it knew.
        for late in [
            line(3),
            Order::Exit(Exit::Status(0)),
            Order::Replay(generation),
            line(4),
        ] {
            assert_eq!(passed(&mut feed, late), None);
        }
        assert_eq!(passed(&mut feed, Order::Replay(second)), None);
        assert_eq!(passed(&mut feed, line(5)), Some(Word::Line(vec![5])));
        let exit = Exit::Status(7);
        assert_eq!(passed(&mut feed, Order::Exit(exit)), Some(Word::Exit(exit)));
        assert!(feed.sift(Order::Begin(SessionId([0; 16]))).is_err());
    }
}
