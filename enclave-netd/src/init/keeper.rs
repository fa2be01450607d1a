//! The keeper: the process that has privileges, and so has as little to do with the parent as can
//! be. It owns the tun and the program, keeps a carrier running, and collects the log.
//!
//! # Theory of operation
//! One thread, one loop. What it reads from (signals, its own log, the carrier, pipes) never blocks,
//! so each turn looks at everything, a bounded amount of each, and then waits in poll(2) for any of
//! it. It never waits for the carrier, the parent, the console or the program: lines go into a ring
//! and to the console's own thread, orders into a queue that its giver bounds.
//!
//! # Life of the program
//! ```text
//! Waiting --first link--> Running --it ends--> Draining --pipes are empty--> Telling --> over
//!    |                       |                                                  ^
//!    |                       +--SIGTERM, SIGINT: sent on, SIGKILL later         |
//!    +--SIGTERM, SIGINT: over         cannot be started -----------------------+
//! ```
//! *Telling* ends when the carrier says that the parent knows, or after [`TELL_TIME`]. The
//! carrier is started again for as long as there is something to carry.

use super::carrier_process::{CarrierProcess, Freight};
use super::channel::{Generation, Notice, Order};
use super::lines::Lines;
use super::own::OwnLines;
use super::program::{self, Started};
use super::record::Record;
use crate::config::{LogSettings, Program};
use crate::limits::{DRAIN_TIME, GOODBYE_TIMEOUT, PIPE_READ, STOP_GRACE, TELL_TIME};
use crate::supervisor::Signals;
use anyhow::{Context, Result};
use netd_log::Log;
use netd_proto::report::{Exit, Source};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

/// What the keeper is made of.
pub(crate) struct Keeper<'a> {
    program: &'a Program,
    signals: Signals,
    own: OwnLines,
    record: Record<'a>,
    carrier: CarrierProcess<'a>,
    outputs: Vec<Output>,
    phase: Phase,
    /// The link there is.
    link: Option<Generation>,
    /// When the program is ended by force.
    kill_at: Option<Instant>,
    buffer: Box<[u8]>,
    started: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running(Pid),
    Draining {
        exit: Exit,
        until: Instant,
    },
    Telling {
        exit: Exit,
        /// Lines below this number come first.
        after: u64,
        /// The link that it was given to.
        given: Option<Generation>,
        until: Instant,
    },
    Over(Exit),
}

/// One of the program's outputs.
struct Output {
    source: Source,
    pipe: File,
    lines: Lines,
    is_open: bool,
}

impl<'a> Keeper<'a> {
    /// A keeper with nothing running yet. `started` is when this process began.
    pub(crate) fn new(
        program: &'a Program,
        settings: LogSettings,
        freight: Freight<'a>,
        signals: Signals,
        own: OwnLines,
        log: &'a Log,
        started: Instant,
    ) -> Keeper<'a> {
        Keeper {
            program,
            signals,
            own,
            record: Record::new(settings, log),
            carrier: CarrierProcess::new(freight, Instant::now()),
            outputs: Vec::new(),
            phase: Phase::Waiting,
            link: None,
            kill_at: None,
            buffer: vec![0; PIPE_READ].into_boxed_slice(),
            started,
        }
    }

    /// Runs until the program has ended and the parent knows, or cannot be told. Returns how it
    /// ended.
    ///
    /// # Errors
    /// The kernel refused what it never refuses.
    pub(crate) fn run(mut self) -> Result<Exit> {
        loop {
            let now = Instant::now();
            self.own.take(&mut self.record);
            self.carrier.start_if_due(now);
            self.look_at_carrier(now);
            self.look_at_outputs(now);
            // Behind what was written before: an end comes after the last line.
            self.look_at_signals(now)?;
            self.advance(now);
            self.feed(now);
            // What was fed may have been what the end waited for.
            if let Phase::Over(exit) = self.advance(now) {
                self.stop_carrier();
                return Ok(exit);
            }
            self.wait(now)?;
        }
    }

    fn look_at_carrier(&mut self, now: Instant) {
        let Some(running) = self.carrier.running() else {
            return;
        };
        if let Some(pipe) = &mut running.log {
            let record = &mut self.record;
            let is_open = read_lines(pipe, &mut running.lines, &mut self.buffer, now, |line| {
                record.line(Source::Netd, line);
            });
            if !is_open {
                running.log = None;
            }
        }
        for notice in running.notices() {
            self.heed(notice, now);
        }
    }

    fn heed(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Linked {
                generation,
                takes_log,
            } => {
                self.link = Some(generation);
                self.record.replay(takes_log);
                self.order(&Order::Replay(generation));
                if self.phase == Phase::Waiting {
                    info!(took = ?now.saturating_duration_since(self.started), "ready");
                    self.start(now);
                }
            }
            Notice::Lost => self.unlink(),
            Notice::Told => {
                if let Phase::Telling {
                    exit,
                    given: Some(_),
                    ..
                } = self.phase
                {
                    self.phase = Phase::Over(exit);
                }
            }
        }
    }

    fn unlink(&mut self) {
        self.link = None;
        self.record.pause();
        if let Phase::Telling { given, .. } = &mut self.phase {
            *given = None;
        }
    }

    fn order(&mut self, order: &Order) {
        if let Some(running) = self.carrier.running() {
            running.give(order);
        }
    }

    fn start(&mut self, now: Instant) {
        match program::start(self.program) {
            Ok(Started {
                pid,
                stdout,
                stderr,
            }) => {
                info!(%pid, command = self.program.command[0], "program started");
                self.outputs = vec![
                    Output::new(Source::Stdout, stdout.into()),
                    Output::new(Source::Stderr, stderr.into()),
                ];
                self.phase = Phase::Running(pid);
            }
            Err(error) => {
                error!(%error, "the program cannot be started");
                self.tell(Exit::NotStarted(error.errno()), now);
            }
        }
    }

    fn look_at_outputs(&mut self, now: Instant) {
        for output in &mut self.outputs {
            let record = &mut self.record;
            let source = output.source;
            if output.is_open {
                output.is_open = read_lines(
                    &mut output.pipe,
                    &mut output.lines,
                    &mut self.buffer,
                    now,
                    |line| record.line(source, line),
                );
            }
        }
    }

    fn look_at_signals(&mut self, now: Instant) -> Result<()> {
        while let Some(info) = self.signals.next().context("no signals")? {
            let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else {
                continue;
            };
            match (signal, self.phase) {
                (Signal::SIGCHLD, _) => self.reap(now),
                (Signal::SIGUSR1, _) => self.order(&Order::Report),
                (Signal::SIGTERM | Signal::SIGINT, Phase::Waiting) => {
                    info!(%signal, "ending; the program was never started");
                    self.phase = Phase::Over(Exit::Signal(number(signal)));
                }
                (Signal::SIGTERM | Signal::SIGINT, Phase::Running(pid)) => {
                    info!(%signal, grace = ?STOP_GRACE, "stopping the program");
                    self.kill_at.get_or_insert(now + STOP_GRACE);
                    send_on(signal, pid);
                }
                (signal, Phase::Running(pid)) => send_on(signal, pid),
                (signal, _) => debug!(%signal, "nobody to send it on to"),
            }
        }
        Ok(())
    }

    fn reap(&mut self, now: Instant) {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (
                    pid,
                    Exit::Status(u8::try_from(status & 0xFF).expect("eight bits")),
                ),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(number(signal))),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    warn!(%error, "cannot wait for processes");
                    return;
                }
            };
            if self.phase == Phase::Running(pid) {
                self.program_ended(pid, exit, now);
            } else if self.is_carrier(pid) {
                // What it said last says why.
                self.look_at_carrier(now);
                self.carrier.reaped(&exit.to_string(), now);
                self.unlink();
            } else {
                debug!(%pid, %exit, "reaped an orphan");
            }
        }
    }

    fn is_carrier(&mut self, pid: Pid) -> bool {
        self.carrier
            .running()
            .is_some_and(|carrier| carrier.pid == pid)
    }

    fn program_ended(&mut self, pid: Pid, exit: Exit, now: Instant) {
        info!(%exit, "program ended");
        self.kill_at = None;
        // Its session is over: what it left of its process group would hold the pipes open.
        let _ = killpg(pid, Signal::SIGKILL);
        self.phase = Phase::Draining {
            exit,
            until: now + DRAIN_TIME,
        };
    }

    fn tell(&mut self, exit: Exit, now: Instant) {
        self.own.take(&mut self.record);
        self.phase = Phase::Telling {
            exit,
            after: self.record.next_number(),
            given: None,
            until: now + TELL_TIME,
        };
    }

    /// Goes on to the next phase where it is time.
    fn advance(&mut self, now: Instant) -> Phase {
        if let (Phase::Running(pid), Some(_)) = (self.phase, self.kill_at.filter(|at| *at <= now)) {
            warn!("the program did not end in time: ending it by force");
            self.kill_at = None;
            let _ = killpg(pid, Signal::SIGKILL);
            send_on(Signal::SIGKILL, pid);
        }
        if let Phase::Draining { exit, until } = self.phase
            && (until <= now || self.outputs.iter().all(|output| !output.is_open))
        {
            for output in &mut self.outputs {
                let (record, source) = (&mut self.record, output.source);
                output.lines.pause(|line| record.line(source, line));
            }
            self.outputs.clear();
            self.tell(exit, now);
        }
        if let Phase::Telling {
            exit,
            after,
            given,
            until,
        } = self.phase
        {
            if until <= now {
                warn!(%exit, "the parent could not be told how the program ended");
                self.phase = Phase::Over(exit);
            } else if self.link.is_some() && given.is_none() && self.record.has_fed(after) {
                self.order(&Order::Exit(exit));
                self.phase = Phase::Telling {
                    exit,
                    after,
                    given: self.link,
                    until,
                };
            }
        }
        self.phase
    }

    fn feed(&mut self, now: Instant) {
        if let Some(running) = self.carrier.running()
            && let Err(error) = self.record.feed(&mut running.channel, now)
        {
            running.dismiss(&error);
        }
        if self
            .carrier
            .running()
            .is_none_or(|running| running.is_dismissed)
        {
            self.unlink();
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self, now: Instant) -> Result<()> {
        let timeout = self.timeout(now);
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.own.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(running) = self.carrier.running() {
            let mut wanted = PollFlags::POLLIN;
            wanted.set(
                PollFlags::POLLOUT,
                self.record.is_congested() || running.channel.is_full(),
            );
            if !running.is_dismissed {
                fds.push(PollFd::new(running.channel.as_fd(), wanted));
            }
            if let Some(log) = &running.log {
                fds.push(PollFd::new(log.as_fd(), PollFlags::POLLIN));
            }
        }
        for output in self.outputs.iter().filter(|output| output.is_open) {
            fds.push(PollFd::new(output.pipe.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for anything"),
        }
    }

    fn timeout(&mut self, now: Instant) -> PollTimeout {
        let mut times: Vec<Instant> = self.outputs.iter().filter_map(|o| o.lines.due()).collect();
        times.extend(self.carrier.due());
        times.extend(self.kill_at);
        times.extend(self.record.wait().map(|wait| now + wait));
        match self.phase {
            Phase::Draining { until, .. } | Phase::Telling { until, .. } => times.push(until),
            Phase::Waiting | Phase::Running(_) | Phase::Over(_) => {}
        }
        if let Some(running) = self.carrier.running() {
            times.extend(running.lines.due());
        }
        let Some(next) = times.into_iter().min() else {
            return PollTimeout::NONE;
        };
        // Rounded up: a wait that ends too early would be followed by many of no time at all.
        let wait = next.saturating_duration_since(now) + Duration::from_micros(999);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }

    /// Ends the carrier in good order, and reads what it has to say last.
    fn stop_carrier(&mut self) {
        self.order(&Order::Stop);
        let deadline = Instant::now() + 2 * GOODBYE_TIMEOUT;
        while self.carrier.running().is_some() && Instant::now() < deadline {
            let now = Instant::now();
            self.look_at_carrier(now);
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) if status.pid().is_some_and(|pid| self.is_carrier(pid)) => {
                    self.look_at_carrier(now);
                    self.carrier.is_over();
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        if let Some(running) = self.carrier.running() {
            warn!("the carrier did not end in time");
            running.end();
        }
        self.own.take(&mut self.record);
    }
}

impl Output {
    fn new(source: Source, pipe: File) -> Output {
        Output {
            source,
            pipe,
            lines: Lines::default(),
            is_open: true,
        }
    }
}

/// Reads a pipe once, and hands out its lines. False at its end.
fn read_lines(
    pipe: &mut File,
    lines: &mut Lines,
    buffer: &mut [u8],
    now: Instant,
    mut each: impl FnMut(&[u8]),
) -> bool {
    let is_open = match pipe.read(buffer) {
        Ok(0) => false,
        Ok(n) => {
            lines.take(&buffer[..n], now, &mut each);
            true
        }
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    };
    if !is_open || lines.due().is_some_and(|due| due <= now) {
        lines.pause(each);
    }
    is_open
}

fn send_on(signal: Signal, pid: Pid) {
    if let Err(error) = kill(pid, signal) {
        debug!(%signal, %error, "not sent on");
    }
}

fn number(signal: Signal) -> u8 {
    u8::try_from(signal as i32).expect("signals are below 64")
}
