//! The way from the rest of the daemon to a data loop, and back.

use crate::budget::{Permit, Share, Shares};
use crate::capture::Tap;
use crate::dns::{Dns, Resolved};
use crate::engine::FlowId;
use crate::engine::drops::DropReason;
use crate::listen::Peer;
use crate::publish::Lent;
use mio::Waker;
use netd_proto::control::Goodbye;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

/// What tokio's side tells a data loop.
#[derive(Debug)]
pub enum Command {
    /// A connect began, or could not; and what stands for its file.
    Dialed(FlowId, io::Result<TcpStream>, Arc<Permit>),
    /// A client of a published port was accepted, for this port of the enclave.
    Accepted(TcpStream, SocketAddr, u16, Waiting),
    /// Published UDP ports lead to this session from now on.
    Published(Vec<Lent>),
    /// A DNS query was answered, or could not be.
    DnsAnswer {
        /// Who asked.
        client: SocketAddr,
        /// Which of the gateway's addresses.
        gateway: SocketAddr,
        /// The message.
        message: Option<Vec<u8>>,
    },
    /// DNS handed addresses out.
    Learnt(Resolved),
    /// Write the counters to the log.
    Report,
}

/// The place of a client that waits for the data loop.
#[derive(Debug)]
pub struct Waiting {
    _half_open: Permit,
    _file: Permit,
}

/// The way to a data loop.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    waker: Arc<Waker>,
    closing: Arc<OnceLock<Goodbye>>,
    figures_asked: Arc<AtomicBool>,
    shares: Arc<Shares>,
}

impl Handle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        waker: Arc<Waker>,
        shares: Arc<Shares>,
    ) -> Handle {
        Handle {
            commands,
            waker,
            closing: Arc::default(),
            figures_asked: Arc::default(),
            shares,
        }
    }

    /// Hands a command over, waiting while the loop has too many. False if the loop has ended.
    pub async fn send(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok() && self.waker.wake().is_ok()
    }

    /// Hands a command over if the loop takes it now; gives it back otherwise.
    ///
    /// # Errors
    /// The loop has too many, because its enclave does not read its link, or has ended.
    pub fn try_send(&self, command: Command) -> Result<(), Command> {
        self.commands
            .try_send(command)
            .map_err(|error| error.into_inner())?;
        // A loop that cannot be woken has ended.
        let _ = self.waker.wake();
        Ok(())
    }

    /// A place for one more client of a published port.
    ///
    /// # Errors
    /// The limit that is reached; it is counted for the session.
    pub(crate) fn admit_client(&self) -> Result<Waiting, DropReason> {
        let place = |share: &Share, reason| {
            share.take().ok_or_else(|| {
                share.refused();
                reason
            })
        };
        Ok(Waiting {
            _half_open: place(&self.shares.half_open, DropReason::HalfOpenLimit)?,
            _file: place(&self.shares.flows, DropReason::FlowLimit)?,
        })
    }

    /// Waits until the loop has ended and given back all it had.
    pub(crate) async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Ends the loop, whatever else it has to do.
    pub fn close(&self, goodbye: Goodbye) {
        // The first reason stands.
        let _ = self.closing.set(goodbye);
        let _ = self.waker.wake();
    }

    /// Has the loop tell figures to its record, in its next round.
    pub(crate) fn ask_figures(&self) {
        self.figures_asked.store(true, Ordering::Release);
        let _ = self.waker.wake();
    }

    pub(super) fn figures_asked(&self) -> bool {
        // The plain look is all that a round costs.
        self.figures_asked.load(Ordering::Relaxed)
            && self.figures_asked.swap(false, Ordering::Acquire)
    }

    pub(super) fn closing(&self) -> Option<&Goodbye> {
        self.closing.get()
    }

    /// Whether the loop has ended.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }
}

/// What a data loop uses of the rest of the daemon.
#[derive(Clone)]
pub struct Services {
    /// Where connects and DNS run.
    pub runtime: tokio::runtime::Handle,
    /// Behind the gateway's port 53.
    pub dns: Dns,
    /// Records what crosses the link.
    pub tap: Option<Tap>,
}

impl Services {
    /// The same services for a session of this peer, which may have so many DNS queries.
    pub(crate) fn for_session(&self, peer: Peer, dns_queries: &Share) -> Services {
        Services {
            runtime: self.runtime.clone(),
            dns: self.dns.for_session(dns_queries.clone()),
            tap: self.tap.as_ref().map(|tap| tap.for_session(peer)),
        }
    }
}
