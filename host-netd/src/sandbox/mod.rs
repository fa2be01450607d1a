//! What host-netd can still do to its machine once it serves enclaves.
//!
//! All bytes that host-netd handles come from enclaves or the internet. Should one of them ever take
//! the process over, it must not gain the parent with it. So, after everything is read, bound and
//! opened, and before the first link is accepted, the process gives up for good:
//!
//! * by **landlock** (`files`): every file but those that it reads while it runs, listening on a
//!   further TCP port, signals to others, abstract unix sockets;
//! * by **seccomp** (`calls`): every system call that it does not need. What nothing but an
//!   intruder calls (execve, ptrace, mount, raw sockets ...) ends the process with SIGSYS; any other
//!   call that is not on the list fails with ENOSYS, as on a kernel that does not have it. So a newer
//!   libc falls back to what it did before instead of taking all enclaves down.
//!
//! Neither needs a privilege, and both set `no_new_privs`. Landlock binds the calling thread and
//! those that it will start, so it has to be entered while there is only one.
//!
//! What this does not bound: sockets to the network and to the name servers are host-netd's work, and
//! files that stand open stay open.

mod calls;
mod files;

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How much the operator insists on the sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What the kernel offers; a warning for what it does not.
    #[default]
    Auto,
    /// Without seccomp and landlock there is no service.
    Require,
    /// None, with a warning: for an operator who has to tell whether the sandbox is in the way.
    Off,
}

/// The text names no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no mode of the sandbox: write auto, require or off")]
pub struct ModeError(String);

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Mode, ModeError> {
        match text {
            "auto" => Ok(Mode::Auto),
            "require" => Ok(Mode::Require),
            "off" => Ok(Mode::Off),
            _ => Err(ModeError(text.to_owned())),
        }
    }
}

/// The files that are touched while enclaves are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Read again when it changes, also when it is replaced.
    pub resolv_conf: PathBuf,
    /// Unix sockets, removed at the end.
    pub sockets: Vec<PathBuf>,
}

/// Enters the sandbox, for this thread and all that follow, and says in the log what is in force.
///
/// # Errors
/// Something is missing and `mode` requires it, or a thread runs already.
pub fn enter(mode: Mode, files: &Files) -> anyhow::Result<()> {
    if mode == Mode::Off {
        tracing::warn!("no sandbox: the configuration says sandbox = 'off'");
        return Ok(());
    }
    only_one_thread()?;
    // In this order: seccomp refuses the calls that landlock is made of.
    let landlock = files::restrict(files).context("landlock");
    let seccomp = calls::restrict(!files.sockets.is_empty()).context("seccomp");
    match (landlock, seccomp) {
        (Ok(landlock), Ok(())) => tracing::info!(
            %landlock,
            seccomp = "on",
            readable = ?files::readable(files),
            "sandbox"
        ),
        (landlock, seccomp) => {
            let state = |error: Option<&anyhow::Error>| match error {
                None => "on".to_owned(),
                Some(error) => format!("off: {error:#}"),
            };
            let landlock_state = state(landlock.as_ref().err());
            let seccomp_state = state(seccomp.as_ref().err());
            tracing::warn!(
                landlock = landlock_state,
                seccomp = seccomp_state,
                "the sandbox is not whole"
            );
            if mode == Mode::Require {
                let missing = landlock.map(drop).and(seccomp);
                return missing.context(
                    "the sandbox is required (key 'sandbox') and this kernel does not offer all of it",
                );
            }
        }
    }
    Ok(())
}

fn only_one_thread() -> anyhow::Result<()> {
    // Without /proc there is no telling.
    let threads = std::fs::read_dir(Path::new("/proc/self/task")).map_or(1, Iterator::count);
    if threads > 1 {
        bail!("the sandbox is entered with {threads} threads running: they would stay outside");
    }
    Ok(())
}
