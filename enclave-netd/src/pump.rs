//! Moves packets between the tun and the link.
//!
//! # Theory of operation
//! One thread, one epoll loop, in a fixed order with a budget for each step:
//!
//! 1. **receive**: read the link into the decoder, up to 256 KiB at once; validate each packet
//!    and write it to the tun from the decoder's buffer.
//! 2. **transmit**: read the tun straight into the space of the link's queue, behind where the
//!    frame's header goes; validate, and commit the frame or leave the space unused. When the
//!    queue holds 128 KiB the tun is not read: the kernel's own queue fills, and TCP slows down.
//! 3. **flush**: write the queue to the link. On vsock a single write is at most 32,000 bytes.
//! 4. **feed**: where this is the carrier of `enclave-netd init`, queue a few lines of the log in the
//!    room that is left ([`crate::feed`]).
//!
//! No step waits for another: a link that takes nothing leaves the queue full and is read on.
//! No packet is copied, and nothing is allocated for one.
//!
//! Readiness is edge-triggered. Each descriptor has a flag that an event sets and only the
//! kernel's "would block" clears; when a budget ran out with its flag still set, the loop polls
//! without waiting and comes back after the others had their turn.
//!
//! # Life of a link
//! The connecting thread delivers a link after its handshake. Silence of 5 s is answered with a
//! ping, silence of 15 s ends the link. When it ends, the tun and the addresses stay; what was
//! queued is forgotten, every open flow is reset ([`crate::sweep`]), and until there is another
//! link each packet from the tun is answered at once ([`crate::offline`]).

use crate::datapath::{Datapath, LinkEnd};
use crate::feed::{self, Feed};
use crate::link::{Connector, Link};
use crate::privileges;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

const TUN: Token = Token(0);
const LINK: Token = Token(1);
/// Wakes the loop for a [`Command`].
pub(crate) const WAKE: Token = Token(2);
const FEED: Token = Token(3);

/// What other threads want of the pump.
#[derive(Debug)]
pub(crate) enum Command {
    /// Use this link from now on.
    Link(Box<Link>),
    /// Log the counters.
    Report,
    /// Say goodbye and end.
    Stop,
}

/// What the pump tells.
#[derive(Debug)]
pub(crate) enum Event {
    /// There is a link; told each time.
    Connected,
    /// The parent knows how the program ended, and the pump has ended.
    Told,
    /// The pump ended by an error, and with it the network.
    Failed(io::Error),
}

/// The loop and all it owns.
pub(crate) struct Pump<N> {
    pub(crate) poll: Poll,
    pub(crate) commands: Receiver<Command>,
    pub(crate) connector: Connector,
    /// Takes an [`Event`].
    pub(crate) notify: N,
    pub(crate) datapath: Datapath,
    /// In the carrier of `enclave-netd init`.
    pub(crate) feed: Option<Feed>,
}

/// How the loop goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

impl<N: FnMut(Event)> Pump<N> {
    /// Runs until told to stop, or until the tun fails; that is told by [`Event::Failed`].
    pub(crate) fn run(mut self) {
        privileges::drop_in_thread(false);
        if let Err(error) = self.turn_for_ever() {
            (self.notify)(Event::Failed(error));
        }
        self.datapath.report();
    }

    fn turn_for_ever(&mut self) -> io::Result<()> {
        let tun = self.datapath.tun_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&tun), TUN, Interest::READABLE)?;
        if let Some(feed) = &self.feed {
            let fd = feed.as_raw_fd();
            self.poll
                .registry()
                .register(&mut SourceFd(&fd), FEED, Interest::READABLE)?;
        }
        // Before there is a link: what an enclave-netd that was killed left open.
        self.datapath.sweep_if_due(Instant::now())?;
        self.connector.request();
        let mut events = Events::with_capacity(8);
        loop {
            let timeout = match &self.feed {
                Some(feed) if feed.waits() => Some(Duration::ZERO),
                _ => self.datapath.timeout(Instant::now()),
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            let now = Instant::now();
            let mut woken = false;
            for event in &events {
                match event.token() {
                    TUN => self.datapath.tun_event(),
                    LINK => self.datapath.link_event(event),
                    FEED => self.feed.iter_mut().for_each(Feed::event),
                    _ => woken = true,
                }
            }
            if woken && !self.obey(now)? {
                return Ok(());
            }
            if self.turn(now)? == Next::End {
                return Ok(());
            }
        }
    }

    fn turn(&mut self, now: Instant) -> io::Result<Next> {
        if let Err(end) = self
            .datapath
            .receive(now)
            .and_then(|()| self.datapath.keep_alive(now))
        {
            if self.datapath.has_concluded(&end) {
                self.feed.iter().try_for_each(Feed::told)?;
                (self.notify)(Event::Told);
                return Ok(Next::End);
            }
            self.lose(&end, now)?;
        }
        self.datapath.transmit(now)?;
        self.datapath.flush();
        if let Some(feed) = &mut self.feed
            && feed.turn(&mut self.datapath)? == feed::Next::Stop
        {
            self.datapath.say_goodbye();
            return Ok(Next::End);
        }
        self.datapath.sweep_if_due(now)?;
        Ok(Next::GoOn)
    }

    /// False when the pump is to end.
    fn obey(&mut self, now: Instant) -> io::Result<bool> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Link(link) => {
                    let fd = self.datapath.adopt(*link, now)?;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    self.poll
                        .registry()
                        .register(&mut SourceFd(&fd), LINK, both)?;
                    if let Some(feed) = &mut self.feed {
                        feed.linked(self.datapath.takes_log())?;
                    }
                    (self.notify)(Event::Connected);
                }
                Command::Report => self.datapath.report(),
                Command::Stop => {
                    self.datapath.say_goodbye();
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn lose(&mut self, end: &LinkEnd, now: Instant) -> io::Result<()> {
        if let Some(fd) = self.datapath.link_fd() {
            self.poll.registry().deregister(&mut SourceFd(&fd))?;
            self.datapath.lose(end, now);
            self.feed.as_mut().map_or(Ok(()), Feed::lost)?;
            self.connector.request();
        }
        Ok(())
    }
}
