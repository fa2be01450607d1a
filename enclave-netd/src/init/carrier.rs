//! The carrier: the process that touches the link.
//!
//! It is this same program, started by the keeper ([`super::keeper`]) with three descriptors and
//! nothing else: standard input is the way to the keeper ([`super::channel`]), standard output the
//! tun, and standard error a pipe that the keeper reads its log from. It runs as a user that nothing
//! else runs as, without any capability and without a way to get one. Whoever took it over could
//! forge the enclave's packets and log lines, as the parent can anyway, and nothing more.
//!
//! It needs no privilege: reading and writing a tun that is open and set up takes none, and the
//! sockets of a lost link are listed by files of `/proc/net` that all may read ([`crate::sweep`]).
//!
//! Signals that the keeper blocks stay blocked here: it is the keeper's to end the carrier, and its
//! end is the carrier's.

use super::channel::{CarrierEnd, ChannelError, Order};
use crate::config::Config;
use crate::feed::Feed;
use crate::pump::Event;
use crate::threads::Threads;
use crate::tun::Tun;
use crate::{daemon, privileges};
use anyhow::{Context, Result, anyhow, bail};
use netd_log::Log;
use netd_proto::handshake::SessionId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::SockType;
use nix::sys::socket::{self, getsockopt};
use nix::unistd::dup2_stdout;
use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use tracing::warn;

/// What the carrier does.
pub(crate) fn main() -> ExitCode {
    let log = match daemon::start_log(None) {
        Ok(log) => log,
        Err(error) => return daemon::fail(daemon::USAGE, &format!("{error:#}")),
    };
    match run(&log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&daemon::complaint(&format!("carrier: {error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(log: &Log) -> Result<()> {
    let (channel, tun) = inherited().context("only `enclave-netd init` starts this")?;
    privileges::confine().context("cannot give up privileges")?;
    log.detach(|| privileges::drop_in_thread(false))
        .context("cannot start a thread")?;
    let mut channel = CarrierEnd::new(channel);
    let (config, session) = begin(&mut channel)?;
    let tun = Tun::inherited(tun, &config.network.interface)?;
    let (failures, failed) = sync_channel(2);
    let threads = Threads::start(
        tun,
        &config,
        session,
        Some(Feed::new(channel)),
        move |event| {
            if let Event::Failed(error) = event {
                // The first says it all.
                let _ = failures.try_send(error);
            }
        },
    )?;
    threads.join();
    match failed.try_recv() {
        Ok(error) => Err(error).context("the network ended"),
        Err(_) => Ok(()),
    }
}

/// Takes over what the standard streams are.
fn inherited() -> Result<(OwnedFd, OwnedFd)> {
    let channel = stdin().as_fd().try_clone_to_owned()?;
    if getsockopt(&channel, SockType)? != socket::SockType::SeqPacket {
        bail!("standard input is another socket");
    }
    let tun = stdout().as_fd().try_clone_to_owned()?;
    // A stray word must not go out as a packet.
    dup2_stdout(stderr())?;
    Ok((channel, tun))
}

/// Waits for the configuration, which the keeper read.
fn begin(channel: &mut CarrierEnd) -> Result<(Config, SessionId)> {
    let mut text = Vec::new();
    loop {
        match channel.next() {
            Ok(Some(Order::Config(part))) => text.extend(part),
            Ok(Some(Order::Begin(session))) => {
                let text = String::from_utf8(text).context("the configuration")?;
                return Ok((Config::parse(&text)?, session));
            }
            Ok(None) => {
                let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                if let Err(error) = poll(&mut fds, PollTimeout::NONE) {
                    warn!(%error, "cannot wait for the keeper");
                }
            }
            Ok(Some(order)) => bail!("the keeper said {order:?} before the beginning"),
            Err(ChannelError::Closed) => bail!("the keeper is gone"),
            Err(error) => return Err(anyhow!(error)),
        }
    }
}
