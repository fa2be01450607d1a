//! Programs that run in a machine.

use crate::wait::{Deadline, LOOK_EVERY, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

/// How long a program may take to end once it was asked to, in seconds.
const GRACE: u64 = 5;

/// A running program; ended when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Done {
    /// What was run, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Process {
    pub(crate) fn new(name: String, child: Child, log: PathBuf) -> Process {
        Process { name, child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("pids are small"))
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All it wrote so far, to both streams.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has written `text` at least `times`.
    ///
    /// # Panics
    /// When it has not within `seconds`, or ended before.
    pub fn wait_log_times(&mut self, text: &str, times: usize, seconds: u64) {
        let deadline = Deadline::after(seconds);
        let what = format!("{} logs {text:?} ({times} times)", self.name);
        until(seconds + 1, &what, || {
            // The order matters: what it wrote before it ended counts.
            let ended = self.child.try_wait().expect("it is our child");
            let log = self.log();
            if log.matches(text).count() >= times {
                return Some(());
            }
            assert!(
                ended.is_none() && !deadline.is_over(),
                "{what}: not seen; ended: {ended:?}; its log:\n{log}"
            );
            None
        });
    }

    /// Waits until it has written `text`.
    ///
    /// # Panics
    /// When it has not within `seconds`, or ended before.
    pub fn wait_log(&mut self, text: &str, seconds: u64) {
        self.wait_log_times(text, 1, seconds);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself; its id is ours until it is waited for.
        let _ = kill(self.pid(), signal);
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs after `seconds`.
    pub fn wait(&mut self, seconds: u64) -> ExitStatus {
        let what = format!("{} ends", self.name);
        until(seconds, &what, || self.ended())
    }

    /// Waits for its end, `seconds` at most.
    pub fn ended_within(&mut self, seconds: u64) -> Option<ExitStatus> {
        let deadline = Deadline::after(seconds);
        loop {
            let status = self.ended();
            if status.is_some() || deadline.is_over() {
                return status;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Ends it as an operator would, and by force if that is not enough.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended_within(GRACE).unwrap_or_else(|| self.kill())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.terminate();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, tail(&self.log(), 4000));
        }
    }
}

/// The last `most` bytes or so of a text.
fn tail(text: &str, most: usize) -> &str {
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

impl Done {
    /// Its standard output, if it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// Its exit code, if it was not killed.
    #[track_caller]
    pub fn code(&self) -> i32 {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => code,
            (None, signal) => panic!("killed by signal {signal:?}: {self}"),
        }
    }

    /// Both its streams.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Done {
            command,
            status,
            stdout,
            stderr,
        } = self;
        let (stdout, stderr) = (tail(stdout, 4000), tail(stderr, 4000));
        write!(
            f,
            "`{command}`: {status}\nstdout: {stdout}\nstderr: {stderr}"
        )
    }
}
