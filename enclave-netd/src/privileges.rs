//! Gives up what is not needed once the network is up.
//!
//! Capabilities and `no_new_privs` belong to threads, and new threads inherit them:
//! [`drop_all_but_needed`] runs while there is one, and the threads that handle the host's bytes give
//! up the rest when they begin.
//!
//! A command that is started as root gets what the kernel gives root at exec, as without us: so
//! where there is one, the main thread, which starts it, keeps its bounding set and does not set
//! `no_new_privs`. Its other sets shrink to what signals and files need.
//!
//! There is no system call filter as host-netd has one: the main thread has to start programs, and
//! whoever took over one thread of a process has its memory, and by it the other threads.

use crate::limits::{CARRIER_FILES, CARRIER_MEMORY, CARRIER_THREADS};
use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use tracing::warn;

/// What is needed later on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// A command will be started, and signals sent to it, also when it changed its user.
    pub(crate) command: bool,
    /// Access to other users' files: to connect to a unix socket of host-netd, which is not root,
    /// or to put back a file in another's folder.
    pub(crate) foreign_files: bool,
}

/// Drops every capability of this thread but those needed.
///
/// # Errors
/// The kernel refused, which it never does for a set that shrinks.
pub(crate) fn drop_all_but_needed(needs: Needs) -> Result<(), CapsError> {
    if !needs.command {
        // While there is CAP_SETPCAP, which this takes.
        drop_bounding()?;
        set_no_new_privs();
    }
    let mut kept = CapsHashSet::new();
    if needs.command {
        kept.insert(Capability::CAP_KILL);
    }
    if needs.foreign_files {
        kept.insert(Capability::CAP_DAC_OVERRIDE);
    }
    keep(kept)
}

/// For the keeper of `enclave-netd init`, which starts the program as any user and carriers as
/// theirs, sends them signals, and powers off at the end.
///
/// # Errors
/// As [`drop_all_but_needed`].
pub(crate) fn drop_in_keeper() -> Result<(), CapsError> {
    keep(CapsHashSet::from([
        Capability::CAP_KILL,
        Capability::CAP_SETUID,
        Capability::CAP_SETGID,
        Capability::CAP_SYS_BOOT,
        // The program's folder and file may be another user's, and resolv.conf's folder, too.
        Capability::CAP_DAC_OVERRIDE,
    ]))
}

/// For a carrier, which changed its user before: nothing is left, nothing is to be had again, nobody
/// of its user may look into it, it dies with the keeper, and what it may use is bounded. To be
/// called while there is one thread.
///
/// # Errors
/// The kernel refused; then it must not go on.
pub(crate) fn confine() -> anyhow::Result<()> {
    // It would be called after its path, /proc/self/exe.
    prctl::set_name(c"netd-carrier")?;
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    keep(CapsHashSet::new())?;
    for (resource, bound) in [
        (Resource::RLIMIT_CORE, 0),
        // It writes no file.
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NPROC, CARRIER_THREADS),
        (Resource::RLIMIT_NOFILE, CARRIER_FILES),
        (Resource::RLIMIT_DATA, CARRIER_MEMORY),
    ] {
        setrlimit(resource, bound, bound)?;
    }
    Ok(())
}

/// For a thread that starts no program and sends no signal: what is left to it is at most access
/// to other users' files, and that only where it is needed.
pub(crate) fn drop_in_thread(foreign_files: bool) {
    set_no_new_privs();
    let kept = foreign_files.then_some(Capability::CAP_DAC_OVERRIDE);
    if let Err(error) = keep(kept.into_iter().collect()) {
        warn!(%error, "a thread keeps capabilities that it does not need");
    }
}

/// Keeps of these what is there.
fn keep(mut kept: CapsHashSet) -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    kept.retain(|capability| permitted.contains(capability));
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    // With it goes the ambient set, which never exceeds it.
    caps::clear(None, CapSet::Inheritable)
}

fn drop_bounding() -> Result<(), CapsError> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        return Ok(());
    }
    // An older kernel does not know them all.
    let known = |capability: &Capability| {
        caps::has_cap(None, CapSet::Bounding, *capability).unwrap_or(false)
    };
    caps::all()
        .into_iter()
        .filter(known)
        .try_for_each(|capability| caps::drop(None, CapSet::Bounding, capability))
}

fn set_no_new_privs() {
    if let Err(error) = prctl::set_no_new_privs() {
        warn!(%error, "programs could gain privileges");
    }
}

/// For a thread that sets the clock, and does nothing else that takes a privilege.
pub(crate) fn keep_clock_in_thread() {
    set_no_new_privs();
    if let Err(error) = keep([Capability::CAP_SYS_TIME].into_iter().collect()) {
        warn!(%error, "a thread keeps capabilities that it does not need");
    }
}
