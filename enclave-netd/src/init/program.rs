//! Starts the program: as its user, in its folder, with its environment, and with nothing else that
//! this process has.
//!
//! It gets a session of its own, standard input from `/dev/null`, both outputs into pipes, no other
//! open file, the default dispositions of signals with none blocked, and of the environment `PATH`,
//! `HOME` and what is configured. A program of another user than root has no capability; one of root
//! has what the kernel gives root: the enclave is its own.
//!
//! With process 1 all others die. A keeper that is not process 1 and is killed takes its program with
//! it unless that is root's: what gains capabilities by exec forgets whose death it is to follow.

use crate::config::{Program, User};
use crate::limits::CARRIER_USER;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{
    self, Gid, Pid, Uid, chdir, getgrouplist, pipe2, setgid, setgroups, setsid, setuid,
};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use thiserror::Error;

/// Where programs are looked for unless the environment says otherwise.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// The reading ends of its outputs; they do not block.
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Why it does not run, and what to do.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error(
        "program.user = {0:?}: no such user in /etc/passwd of the program's root: add it there, or \
         give UID or UID:GID"
    )]
    NoUser(String),
    #[error("program.user = {0:?}: cannot look it up: {1}")]
    User(String, Errno),
    #[error("program.user is {CARRIER_USER}, the carrier's own: take another")]
    CarriersUser,
    #[error("program.directory = {0:?}: {1}: give a folder that is in the program's root")]
    Directory(PathBuf, io::Error),
    #[error("cannot run {program:?}: {source}{hint}")]
    Exec {
        program: String,
        source: io::Error,
        hint: &'static str,
    },
    #[error("cannot make a pipe: {0}")]
    Pipe(io::Error),
}

impl StartError {
    /// The kernel's number for it.
    pub(crate) fn errno(&self) -> u8 {
        let number = match self {
            StartError::NoUser(_) | StartError::CarriersUser => Errno::EINVAL as i32,
            StartError::User(_, errno) => *errno as i32,
            StartError::Directory(_, error)
            | StartError::Exec { source: error, .. }
            | StartError::Pipe(error) => error.raw_os_error().unwrap_or(Errno::EINVAL as i32),
        };
        u8::try_from(number).unwrap_or(u8::MAX)
    }
}

/// Starts it.
///
/// # Errors
/// See [`StartError`].
pub(crate) fn start(program: &Program) -> Result<Started, StartError> {
    let identity = Identity::of(&program.user)?;
    if identity.uid.as_raw() == CARRIER_USER {
        return Err(StartError::CarriersUser);
    }
    // The command's own complaint about it could not be told from one about the program.
    let directory = std::fs::metadata(&program.directory)
        .and_then(|found| match found.is_dir() {
            true => Ok(c_string(&program.directory)),
            false => Err(Errno::ENOTDIR.into()),
        })
        .map_err(|error| StartError::Directory(program.directory.clone(), error))?;
    let (stdout, their_stdout) = pipe()?;
    let (stderr, their_stderr) = pipe()?;
    let name = &program.command[0];
    let mut command = Command::new(name);
    command
        .args(&program.command[1..])
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("HOME", &identity.home)
        .envs(&program.environment)
        .stdin(Stdio::null())
        .stdout(their_stdout)
        .stderr(their_stderr);
    let become_it = move || {
        identity.take_on()?;
        chdir(directory.as_c_str())?;
        // A change of user forgets it, too, so it comes after.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only, each of them
    // async-signal-safe, on memory that was made before: it neither allocates nor locks.
    #[allow(unsafe_code)]
    let child = unsafe { command.pre_exec(become_it) }.spawn();
    let child = child.map_err(|source| StartError::Exec {
        program: name.clone(),
        hint: hint(&source),
        source,
    })?;
    Ok(Started {
        pid: Pid::from_raw(i32::try_from(child.id()).expect("the kernel's own type")),
        stdout,
        stderr,
    })
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => {
            "; is it in the program's root, with its interpreter or loader and libraries?"
        }
        Some(Errno::EACCES) => "; may its user execute it, and enter its folders?",
        Some(Errno::ENOEXEC) => "; is it of this machine's architecture, or a script without '#!'?",
        _ => "",
    }
}

/// What the kernel knows a user by, and where the user is at home.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    home: PathBuf,
}

impl Identity {
    fn of(user: &User) -> Result<Identity, StartError> {
        match user {
            User::Name(name) => {
                match unistd::User::from_name(name) {
                    Ok(Some(entry)) => Identity::listed(entry),
                    // An image without any users, or without a list of them, has root all the same.
                    Ok(None) | Err(Errno::ENOENT) if name == "root" => Ok(Identity::bare(0, 0)),
                    Ok(None) | Err(Errno::ENOENT) => Err(StartError::NoUser(name.clone())),
                    Err(errno) => Err(StartError::User(name.clone(), errno)),
                }
            }
            User::Ids {
                uid,
                gid: Some(gid),
            } => Ok(Identity {
                home: home_of(*uid),
                ..Identity::bare(*uid, *gid)
            }),
            User::Ids { uid, gid: None } => {
                match unistd::User::from_uid(Uid::from_raw(*uid)) {
                    Ok(Some(entry)) => Identity::listed(entry),
                    // Not group 0, which is root's.
                    _ => Ok(Identity::bare(*uid, *uid)),
                }
            }
        }
    }

    fn listed(entry: unistd::User) -> Result<Identity, StartError> {
        let groups = match c_name(&entry.name).and_then(|name| getgrouplist(&name, entry.gid)) {
            Ok(groups) => groups,
            // There is no list of groups.
            Err(Errno::ENOENT) => vec![entry.gid],
            Err(errno) => return Err(StartError::User(entry.name, errno)),
        };
        Ok(Identity {
            uid: entry.uid,
            gid: entry.gid,
            groups,
            home: entry.dir,
        })
    }

    fn bare(uid: u32, gid: u32) -> Identity {
        Identity {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: vec![Gid::from_raw(gid)],
            home: "/".into(),
        }
    }

    /// Becomes this user, in a session of its own and with no disposition of signals left over.
    fn take_on(&self) -> io::Result<()> {
        setsid()?;
        for number in Signal::iterator() {
            // Those that cannot be changed are as they should be.
            // SAFETY: no handler is installed, the default disposition only.
            #[allow(unsafe_code)]
            let _ = unsafe { signal(number, SigHandler::SigDfl) };
        }
        setgroups(&self.groups)?;
        setgid(self.gid)?;
        setuid(self.uid)?;
        Ok(())
    }
}

fn home_of(uid: u32) -> PathBuf {
    match unistd::User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(entry)) => entry.dir,
        _ => "/".into(),
    }
}

fn c_name(name: &str) -> nix::Result<CString> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("the configuration has no NUL")
}

fn pipe() -> Result<(OwnedFd, OwnedFd), StartError> {
    let make = || {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        crate::socket::set_nonblocking(&ours, true)?;
        Ok((ours, theirs))
    };
    make().map_err(StartError::Pipe)
}
