//! A machine: a network namespace, a mount namespace with an `/etc` of its own, and what runs there.

use crate::process::{Done, Process};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

/// The variable that tells which lab a process belongs to.
pub(crate) const MARK: &str = "NETD_LAB";
/// Nobody, on Debian and most others.
const NOBODY: &str = "65534";
/// What a client program may take at most, in seconds.
const CLIENT_LIMIT: u64 = 120;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and a mount namespace.
#[derive(Debug)]
pub struct Machine {
    name: String,
    dir: PathBuf,
    lab: String,
    net: OwnedFd,
    mounts: OwnedFd,
    /// The thread that starts programs: they die with it.
    starter: Option<(Sender<Job>, JoinHandle<()>)>,
    runs: AtomicUsize,
}

impl Machine {
    /// Makes a machine whose files lie in `dir`.
    pub(crate) fn new(name: &str, lab: &str, dir: PathBuf) -> Machine {
        Machine::around(name, lab, dir, None)
    }

    /// The same, around the network namespace of a process if there is one already.
    pub(crate) fn around(name: &str, lab: &str, dir: PathBuf, net_of: Option<Pid>) -> Machine {
        fs::create_dir_all(&dir).expect("cannot make the machine's folder");
        let (jobs, queue) = channel::<Job>();
        let (made, ready) = channel();
        let etc = dir.join("etc.original");
        let starter = thread::spawn(move || {
            const NO_NAMESPACES: &str = "cannot make namespaces: is this root with CAP_SYS_ADMIN?";
            unshare(CloneFlags::CLONE_NEWNS).expect(NO_NAMESPACES);
            match net_of {
                None => unshare(CloneFlags::CLONE_NEWNET).expect(NO_NAMESPACES),
                Some(pid) => {
                    let net = File::open(format!("/proc/{pid}/ns/net")).expect("it runs");
                    setns(net, CloneFlags::CLONE_NEWNET).expect("setns");
                }
            }
            private_etc(&etc);
            let open = |what: &str| -> OwnedFd {
                File::open(format!("/proc/thread-self/ns/{what}"))
                    .expect("no /proc?")
                    .into()
            };
            made.send((open("net"), open("mnt")))
                .expect("the maker waits");
            for job in queue {
                job();
            }
        });
        let (net, mounts) = ready.recv().expect("the machine could not be made");
        Machine {
            name: name.to_owned(),
            dir,
            lab: lab.to_owned(),
            net,
            mounts,
            starter: Some((jobs, starter)),
            runs: AtomicUsize::new(0),
        }
    }

    /// Its folder, which every machine sees.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A name by which `ip link` finds this machine's network namespace.
    pub(crate) fn net_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// Runs `work` on a thread inside the machine. Sockets made there stay there, wherever they
    /// are used. Programs are to be started by [`Machine::run`] and [`Machine::spawn`].
    ///
    /// # Panics
    /// When `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = thread::scope(|scope| {
            scope
                .spawn(|| {
                    // A mount namespace can only be entered by a thread with its own root folder.
                    unshare(CloneFlags::CLONE_FS).expect("unshare");
                    setns(&self.net, CloneFlags::CLONE_NEWNET).expect("setns");
                    setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("setns");
                    work()
                })
                .join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a program to its end.
    ///
    /// # Panics
    /// When it cannot be started, or takes longer than two minutes.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Done {
        self.run_as(program, arguments, None)
    }

    /// Runs a program to its end as nobody, without any capability.
    #[track_caller]
    pub fn run_as_nobody(&self, program: &str, arguments: &[&str]) -> Done {
        self.run_as(program, arguments, Some(NOBODY))
    }

    #[track_caller]
    fn run_as(&self, program: &str, arguments: &[&str], user: Option<&str>) -> Done {
        self.run_limited(program, arguments, user, CLIENT_LIMIT)
            .unwrap_or_else(|| {
                let line = arguments.join(" ");
                panic!("not within {CLIENT_LIMIT} s: {program} {line} ends")
            })
    }

    /// Runs a program to its end, or ends it after some seconds and tells nothing.
    pub fn run_within(&self, seconds: u64, program: &str, arguments: &[&str]) -> Option<Done> {
        self.run_limited(program, arguments, None, seconds)
    }

    fn run_limited(
        &self,
        program: &str,
        arguments: &[&str],
        user: Option<&str>,
        seconds: u64,
    ) -> Option<Done> {
        let command = format!("{program} {}", arguments.join(" "));
        let file = self.fresh(program);
        let (out, err) = (file.with_extension("out"), file.with_extension("err"));
        let child = self.start(program, arguments, user, &out, &err);
        let mut process = Process::new(command.clone(), child, err.clone());
        let status = process.ended_within(seconds)?;
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Some(Done {
            command,
            status,
            stdout: read(&out),
            stderr: read(&err),
        })
    }

    /// Runs a line of shell.
    #[track_caller]
    pub fn shell(&self, line: &str) -> Done {
        self.run("bash", &["-c", line])
    }

    /// Starts a program; both its streams go to its log.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Process {
        self.spawn_as(program, arguments, None)
    }

    /// Starts a program as nobody, without any capability.
    pub fn spawn_as_nobody(&self, program: &str, arguments: &[&str]) -> Process {
        self.spawn_as(program, arguments, Some(NOBODY))
    }

    fn spawn_as(&self, program: &str, arguments: &[&str], user: Option<&str>) -> Process {
        let log = self.fresh(program).with_extension("log");
        let child = self.start(program, arguments, user, &log, &log);
        Process::new(format!("{} in {}", base(program), self.name), child, log)
    }

    fn start(
        &self,
        program: &str,
        arguments: &[&str],
        user: Option<&str>,
        out: &Path,
        err: &Path,
    ) -> Child {
        let append = |path| {
            File::options()
                .append(true)
                .create(true)
                .open(path)
                .unwrap()
        };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = user {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
            command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
        }
        command.args(["--", program]).args(arguments);
        command
            .env(MARK, &self.lab)
            .env("HOME", &self.dir)
            .env("LC_ALL", "C.UTF-8");
        command.env("NO_COLOR", "1");
        command
            .stdin(Stdio::null())
            .stdout(append(out))
            .stderr(append(err));
        let (started, result) = channel();
        let (jobs, _) = self.starter.as_ref().expect("there until dropped");
        let job = move || started.send(command.spawn()).expect("the starter waits");
        jobs.send(Box::new(job))
            .expect("the machine's thread lives");
        let child = result.recv().expect("the machine's thread lives");
        child.expect("cannot run setpriv: install util-linux")
    }

    fn fresh(&self, program: &str) -> PathBuf {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{}-{run}.", base(program)))
    }

    /// Writes the machine's `/etc/resolv.conf` as a plain file.
    pub fn write_resolv_conf(&self, text: &str) {
        self.inside(|| {
            fs::write("/etc/resolv.conf.new", text).unwrap();
            fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf").unwrap();
        });
    }

    /// The machine's `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> String {
        self.inside(|| fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    /// A file of `/proc/net`, such as `snmp` or `dev`.
    pub fn proc_net(&self, file: &str) -> String {
        self.inside(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((jobs, starter)) = self.starter.take() {
            drop(jobs);
            let _ = starter.join();
        }
    }
}

fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Lays a writable folder over `/etc` in which every entry leads to the original.
fn private_etc(original: &Path) {
    const NONE: Option<&str> = None;
    fs::create_dir_all(original).expect("cannot make a folder");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("mount private");
    mount(
        Some("/etc"),
        original,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
    .expect("mount --bind /etc");
    mount(
        Some("tmpfs"),
        "/etc",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .expect("mount a tmpfs on /etc");
    for entry in fs::read_dir(original).expect("readable").flatten() {
        let target = match fs::read_link(entry.path()) {
            Ok(link) => link,
            Err(_) => entry.path(),
        };
        let name = entry.file_name();
        if name != "resolv.conf" {
            symlink(target, Path::new("/etc").join(name)).expect("symlink in /etc");
        }
    }
    // No machine of a lab has a way out to the servers of the real one.
    fs::write("/etc/resolv.conf", "").expect("write resolv.conf");
}
