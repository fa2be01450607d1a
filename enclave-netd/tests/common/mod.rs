//! An enclave for each test: a thread with network and mount namespaces of its own, in which the
//! daemon, other programs and the test's own sockets live. Nothing needs cleaning up but the
//! processes, which end when they go out of scope.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod counters;
pub mod host;
pub mod segments;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{fs, thread};
use tempfile::TempDir;

/// Nothing in these tests takes this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` in an enclave without any network.
pub fn in_enclave(test: impl FnOnce(Enclave) + Send + 'static) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("these tests run as root: see scripts/test");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        // The namespace's own sysctls.
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).expect("sysfs");
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("resolv.conf"), ORIGINAL).expect("written");
        test(Enclave { folder });
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// What resolv.conf says before the daemon comes.
pub const ORIGINAL: &str = "nameserver 192.0.2.53\n";

pub struct Enclave {
    pub folder: TempDir,
}

impl Enclave {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn parent(&self) -> String {
        format!("unix:{}", self.path("host.sock").display())
    }

    pub fn resolv_conf(&self) -> String {
        fs::read_to_string(self.path("resolv.conf")).expect("readable")
    }

    /// Writes a configuration in which resolv.conf is the enclave's, and `more`.
    pub fn configure(&self, more: &str) -> PathBuf {
        let path = self.path("config.toml");
        let resolv_conf = self.path("resolv.conf");
        let text = format!("{more}\n[dns]\nresolv_conf = {resolv_conf:?}\n");
        fs::write(&path, text).expect("written");
        path
    }

    /// Starts the daemon with the enclave's configuration and `arguments`.
    pub fn start(&self, arguments: &[&str]) -> Daemon {
        self.start_configured("", arguments)
    }

    pub fn start_configured(&self, config: &str, arguments: &[&str]) -> Daemon {
        let config = self.configure(config).display().to_string();
        let parent = self.parent();
        let mut all = vec!["--config", &config, "--parent", &parent];
        all.extend(arguments);
        Daemon::start(&all)
    }

    /// The daemon's last words and exit status, for an input that is wrong.
    pub fn fails(&self, arguments: &[&str]) -> (String, i32) {
        let mut daemon = Daemon::start(arguments);
        let status = daemon.wait();
        let lines = daemon.lines();
        let errors: Vec<_> = lines
            .iter()
            .filter(|l| l.starts_with("enclave-netd: "))
            .collect();
        let [error] = errors.as_slice() else {
            panic!("not one line: {lines:?}")
        };
        assert_eq!(lines.last(), Some(*error), "the error comes last");
        (error.to_string(), status.code().expect("not by a signal"))
    }

    pub fn has_interface(&self, name: &str) -> bool {
        nix::net::if_::if_nametoindex(name).is_ok()
    }
}

/// Runs a program in the enclave and returns its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect(program);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Waits until `condition` holds; for what cannot be waited for otherwise.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

pub struct Daemon {
    child: Child,
    stderr: Receiver<String>,
    seen: Vec<String>,
}

impl Daemon {
    pub fn start(arguments: &[&str]) -> Daemon {
        Self::spawn(Self::command(arguments))
    }

    pub fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enclave-netd"));
        command
            .args(arguments)
            .env_remove("NETD_LOG")
            .env_remove("RUST_LOG");
        command
    }

    pub fn spawn(mut command: Command) -> Daemon {
        let mut child = command
            // The kernel ignores a terminal's stop for a group without a parent in its session, as
            // this test's own group may be.
            .process_group(0)
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("built");
        let (sender, stderr) = channel();
        let pipes: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stderr.take().expect("piped")),
            Box::new(child.stdout.take().expect("piped")),
        ];
        for pipe in pipes {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Daemon {
            child,
            stderr,
            seen: Vec::new(),
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// Waits for a line of its output (or its command's) that contains `text`, and returns it.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.stderr.recv_timeout(left) else {
                panic!("never said '{text}': {:#?}", self.seen)
            };
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "does not end: {:#?}",
                self.lines()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Everything it said, once it ended.
    pub fn lines(&mut self) -> Vec<String> {
        let quiet = Duration::from_millis(200);
        while let Ok(line) = self.stderr.recv_timeout(quiet) {
            self.seen.push(line);
        }
        self.seen.clone()
    }

    /// Asks it to end and expects success.
    pub fn stop(mut self) -> Vec<String> {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert!(status.success(), "{status}: {:#?}", self.lines());
        self.lines()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{:#?}", self.lines());
        }
    }
}
