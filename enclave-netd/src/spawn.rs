//! Starts the command.
//!
//! The standard library's `Command` hands down the caller's blocked signals, and this daemon
//! blocks nearly all. posix_spawn(3) starts with an empty mask instead, without a moment in which
//! a signal could reach the daemon itself.

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Starts `program`, found by `PATH`, with this process's standard streams and environment, but
/// for the variables named in `without`.
///
/// # Errors
/// As of execve(2).
pub(crate) fn spawn(
    program: &OsStr,
    arguments: &[OsString],
    without: &[&str],
) -> Result<Pid, Errno> {
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Rust's runtime ignores it in this process.
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;

    let program = c_string(program)?;
    let mut words = vec![program.clone()];
    for argument in arguments {
        words.push(c_string(argument)?);
    }
    let environment: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| !without.iter().any(|w| name == *w))
        .filter_map(|(name, value)| {
            let pair = [name.into_vec(), value.into_vec()].join(&b'=');
            CString::new(pair).ok()
        })
        .collect();
    let actions = PosixSpawnFileActions::init()?;
    posix_spawnp(&program, &actions, &attributes, &words, &environment)
}

fn c_string(text: &OsStr) -> Result<CString, Errno> {
    CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL)
}
