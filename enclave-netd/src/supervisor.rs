//! Runs the command, if there is one, and decides how the daemon ends.
//!
//! # How signals travel
//! All signals of interest are blocked in every thread and read from a signalfd, so there is no
//! handler, and a command starts with the dispositions that this daemon was started with and
//! with nothing blocked. A signal that another process sent here is sent on to the command. One
//! that the terminal sent came to the whole foreground group: the command has it already unless
//! it left the group.
//!
//! A zombie that some grandchild left is reaped as well, for this daemon may be process 1.

use crate::pump::Event;
use crate::spawn::spawn;
use anyhow::{Context, Result, bail};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

const SIGNALS: Token = Token(0);
const WAKE: Token = Token(1);

/// What a shell answers for a command that is not there, and for one that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Sent on to the command.
const FORWARDED: [Signal; 9] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
];

/// Signals, caught from here on.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks what the daemon handles. To be called before any thread is started.
    ///
    /// # Errors
    /// The kernel has no room for another descriptor.
    pub(crate) fn catch() -> Result<Signals> {
        // An ignored SIGCHLD would be inherited from whoever started us, and the command's exit
        // status would be lost. The flag is never read: having a handler is what counts.
        signal_hook::flag::register(libc::SIGCHLD, Arc::new(AtomicBool::new(false)))
            .context("cannot handle SIGCHLD")?;
        let mut mask = SigSet::empty();
        mask.extend(FORWARDED);
        mask.add(Signal::SIGCHLD);
        mask.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Signals(
            SignalFd::with_flags(&mask, flags).context("cannot make a signalfd")?,
        ))
    }
}

impl Signals {
    /// The next signal, none when there is none yet.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub(crate) fn next(&self) -> nix::Result<Option<siginfo>> {
        self.0.read_signal()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Wakes the supervisor for what the pump tells.
#[derive(Clone, Debug)]
pub(crate) struct Notifier {
    events: mpsc::Sender<Event>,
    waker: Arc<Waker>,
}

impl Notifier {
    pub(crate) fn notify(&self, event: Event) {
        // Nobody listens when the daemon ends.
        if self.events.send(event).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// The main thread's loop.
pub(crate) struct Supervisor {
    poll: Poll,
    signals: Signals,
    events: Receiver<Event>,
    command: Option<Vec<OsString>>,
    child: Option<Pid>,
    /// When the link must stand for the first time.
    deadline: Option<(Instant, Duration)>,
    ready: bool,
}

/// How the loop went on after an event.
enum Next {
    Wait,
    Exit(u8),
}

impl Supervisor {
    /// A supervisor, and what wakes it.
    ///
    /// # Errors
    /// The kernel has no room for another descriptor.
    pub(crate) fn new(
        signals: Signals,
        command: Option<Vec<OsString>>,
        ready_timeout: Option<Duration>,
    ) -> Result<(Supervisor, Notifier)> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        let fd = signals.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), SIGNALS, Interest::READABLE)
            .context("cannot watch for signals")?;
        let waker = Waker::new(poll.registry(), WAKE).context("cannot make an eventfd")?;
        let (sender, events) = mpsc::channel();
        let deadline = ready_timeout.map(|timeout| (Instant::now() + timeout, timeout));
        let supervisor = Supervisor {
            poll,
            signals,
            events,
            command,
            child: None,
            deadline,
            ready: false,
        };
        Ok((
            supervisor,
            Notifier {
                events: sender,
                waker: Arc::new(waker),
            },
        ))
    }

    /// Runs until the command ends, or without one until SIGTERM or SIGINT. Returns the exit
    /// status. `ready` is called when the link stands for the first time, and `report` when
    /// SIGUSR1 asks for the counters.
    ///
    /// # Errors
    /// The link did not stand in time, or the tun failed.
    pub(crate) fn run(&mut self, mut ready: impl FnMut(), report: impl Fn()) -> Result<u8> {
        let mut events = Events::with_capacity(8);
        loop {
            let timeout = self
                .deadline
                .map(|(at, _)| at.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled.context("epoll failed")?,
            }
            while let Ok(event) = self.events.try_recv() {
                match event {
                    Event::Connected if self.ready => {}
                    Event::Connected => {
                        self.ready = true;
                        self.deadline = None;
                        ready();
                        if let Next::Exit(status) = self.start() {
                            return Ok(status);
                        }
                    }
                    // Only a carrier has this to tell.
                    Event::Told => {}
                    Event::Failed(error) => {
                        self.end_child();
                        return Err(error).context("the network ended");
                    }
                }
            }
            while let Some(signal) = self.signals.next().context("no signals")? {
                if let Next::Exit(status) = self.on_signal(&signal, &report) {
                    return Ok(status);
                }
            }
            if let Some((at, timeout)) = self.deadline
                && Instant::now() >= at
            {
                bail!(
                    "no link to the parent within {} s: start host-netd there, or check the \
                     address given with --parent",
                    timeout.as_secs()
                );
            }
        }
    }

    fn start(&mut self) -> Next {
        let Some((program, arguments)) = self.command.as_deref().and_then(<[_]>::split_first)
        else {
            return Next::Wait;
        };
        // The readiness that a service manager waits for is ours to tell, once.
        match spawn(program, arguments, &["NOTIFY_SOCKET"]) {
            Ok(pid) => {
                info!(%pid, command = %program.display(), "command started");
                self.child = Some(pid);
                Next::Wait
            }
            Err(error) => Next::Exit(explain(program, error)),
        }
    }

    fn on_signal(&mut self, info: &siginfo, report: &impl Fn()) -> Next {
        let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else {
            return Next::Wait;
        };
        match (signal, self.child) {
            (Signal::SIGCHLD, _) => self.reap(),
            (signal, Some(child)) => {
                forward(signal, child, info.ssi_code == libc::SI_KERNEL);
                Next::Wait
            }
            (Signal::SIGUSR1, None) => {
                report();
                Next::Wait
            }
            (Signal::SIGTSTP, None) => {
                stop_here();
                Next::Wait
            }
            (Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGHUP, None) => {
                info!(%signal, "ending");
                // A command that was never started did not succeed.
                Next::Exit(if self.command.is_some() {
                    128 + number(signal)
                } else {
                    0
                })
            }
            _ => Next::Wait,
        }
    }

    fn reap(&mut self) -> Next {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) if Some(pid) == self.child => {
                    info!(status, "command ended");
                    return Next::Exit(u8::try_from(status & 0xFF).expect("eight bits"));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if Some(pid) == self.child => {
                    info!(%signal, "command ended by a signal");
                    return Next::Exit(128 + number(signal));
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Next::Wait,
                Ok(other) => debug!(?other, "reaped"),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    warn!(%error, "cannot wait for the command");
                    return Next::Wait;
                }
            }
        }
    }

    fn end_child(&self) {
        if let Some(child) = self.child {
            warn!(%child, "ending the command: there is no network any more");
            let _ = kill(child, Signal::SIGTERM);
        }
    }
}

/// Sends `signal` on, unless the terminal sent it to the command as well.
fn forward(signal: Signal, child: Pid, from_terminal: bool) {
    let has_it = from_terminal && getpgid(Some(child)) == Ok(getpgrp());
    if !has_it && let Err(error) = kill(child, signal) {
        debug!(%signal, %error, "not sent on");
    }
    if signal == Signal::SIGTSTP && from_terminal {
        // The shell waits for the whole group to stop.
        stop_here();
    }
}

fn stop_here() {
    let _ = raise(Signal::SIGSTOP);
}

fn number(signal: Signal) -> u8 {
    u8::try_from(signal as i32).expect("signals are below 64")
}

fn explain(program: &OsStr, error: Errno) -> u8 {
    let (what, status) = match error {
        Errno::ENOENT => ("command not found", NOT_FOUND),
        _ => ("command cannot be run", NOT_EXECUTABLE),
    };
    eprintln!(
        "enclave-netd: {}: {what}: {}",
        program.display(),
        error.desc()
    );
    status
}
