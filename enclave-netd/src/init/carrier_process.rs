//! The keeper's side of the carrier: starts it, and starts another when it has ended.

use super::channel::{self, ChannelError, KeeperEnd, Notice, Order};
use super::lines::Lines;
use crate::limits::{
    CARRIER_BACKOFF_MAX, CARRIER_BACKOFF_MIN, CARRIER_MESSAGES, CARRIER_STEADY, CARRIER_USER,
    CONFIG_PART,
};
use crate::socket;
use crate::tun::Tun;
use anyhow::{Context, Result};
use netd_proto::handshake::SessionId;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// What every carrier is started with.
pub(crate) struct Freight<'a> {
    /// The configuration's text.
    pub(crate) config: &'a str,
    pub(crate) session: SessionId,
    pub(crate) tun: &'a Tun,
    /// What to log, if it is not the default.
    pub(crate) log: Option<&'a str>,
}

/// The carrier, or the wait for the next.
pub(crate) struct CarrierProcess<'a> {
    freight: Freight<'a>,
    state: State,
    wait: Duration,
}

enum State {
    Runs(Running),
    /// Start another at this time.
    Rests(Instant),
    /// There will be none any more.
    Over,
}

/// A carrier that runs.
pub(crate) struct Running {
    pub(crate) pid: Pid,
    pub(crate) channel: KeeperEnd,
    /// What it logs; none once it was closed.
    pub(crate) log: Option<File>,
    pub(crate) lines: Lines,
    since: Instant,
    /// It broke the rules, or left: it is not listened to until it is reaped.
    pub(crate) is_dismissed: bool,
}

impl<'a> CarrierProcess<'a> {
    /// None yet: it is started by the first [`start_if_due`](Self::start_if_due).
    pub(crate) fn new(freight: Freight<'a>, now: Instant) -> CarrierProcess<'a> {
        CarrierProcess {
            freight,
            state: State::Rests(now),
            wait: Duration::ZERO,
        }
    }

    /// Starts one if it is time. Trouble is logged, and tried again.
    pub(crate) fn start_if_due(&mut self, now: Instant) {
        if !matches!(self.state, State::Rests(at) if at <= now) {
            return;
        }
        match self.freight.start(now) {
            Ok(running) => {
                debug!(pid = %running.pid, "carrier started");
                self.state = State::Runs(running);
            }
            Err(error) => {
                self.back_off(now);
                warn!(
                    error = format!("{error:#}"), wait = ?self.wait,
                    "cannot start a carrier; trying on"
                );
            }
        }
    }

    /// When [`start_if_due`](Self::start_if_due) will do something.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Rests(at) => Some(at),
            State::Runs(_) | State::Over => None,
        }
    }

    /// The carrier that runs.
    pub(crate) fn running(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Runs(running) => Some(running),
            State::Rests(_) | State::Over => None,
        }
    }

    /// Takes note that the carrier that ran has ended.
    pub(crate) fn reaped(&mut self, how: &str, now: Instant) {
        let State::Runs(running) = &self.state else {
            return;
        };
        if now.saturating_duration_since(running.since) >= CARRIER_STEADY {
            self.wait = Duration::ZERO;
        }
        self.back_off(now);
        match self.wait {
            CARRIER_BACKOFF_MAX => warn!(
                how, wait = ?self.wait,
                "the carrier ends again and again: trying on, as slowly as it gets"
            ),
            wait => warn!(
                how,
                ?wait,
                "the carrier ended; flows are reset, starting another"
            ),
        }
    }

    fn back_off(&mut self, now: Instant) {
        self.wait = (self.wait * 2).clamp(CARRIER_BACKOFF_MIN, CARRIER_BACKOFF_MAX);
        self.state = State::Rests(now + self.wait);
    }

    /// Starts none any more.
    pub(crate) fn is_over(&mut self) {
        self.state = State::Over;
    }
}

impl Running {
    /// The next thing it tells, a bounded number in a turn.
    pub(crate) fn notices(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        while !self.is_dismissed && notices.len() < CARRIER_MESSAGES {
            match self.channel.next() {
                Ok(Some(notice)) => notices.push(notice),
                Ok(None) => break,
                Err(error) => self.dismiss(&error),
            }
        }
        notices
    }

    /// Gives it an order.
    pub(crate) fn give(&mut self, order: &Order) {
        if !self.is_dismissed
            && let Err(error) = self.channel.give(order)
        {
            self.dismiss(&error);
        }
    }

    /// Ends it: it said what it must not, or nothing more is heard of it.
    pub(crate) fn dismiss(&mut self, error: &ChannelError) {
        if !self.is_dismissed {
            match error {
                // It is about to end, or did.
                ChannelError::Closed => {}
                error => warn!(%error, "ending the carrier, which said what it must not"),
            }
            self.is_dismissed = true;
            self.end();
        }
    }

    /// Ends it by force. It stays until it is reaped.
    pub(crate) fn end(&self) {
        // It is not reaped yet, so its number is nobody else's.
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

impl Freight<'_> {
    fn start(&self, now: Instant) -> Result<Running> {
        let (mut channel, theirs) = channel::pair().context("cannot make a pair of sockets")?;
        let (log, their_log) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        socket::set_nonblocking(&log, true)?;
        let tun: OwnedFd = self.tun.share()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("enclave-netd")
            .arg("carrier")
            .env_clear()
            .envs(self.log.map(|filter| ("NETD_LOG", filter)))
            .stdin(theirs)
            .stdout(tun)
            .stderr(their_log)
            .current_dir("/")
            .uid(CARRIER_USER)
            .gid(CARRIER_USER);
        let child = command.spawn().context(
            "cannot run /proc/self/exe: is there /proc, and may all execute enclave-netd?",
        )?;
        for part in self.config.as_bytes().chunks(CONFIG_PART) {
            channel.give(&Order::Config(part.to_vec()))?;
        }
        channel.give(&Order::Begin(self.session))?;
        Ok(Running {
            pid: Pid::from_raw(i32::try_from(child.id()).expect("the kernel's own type")),
            channel,
            log: Some(log.into()),
            lines: Lines::default(),
            since: now,
            is_dismissed: false,
        })
    }
}
