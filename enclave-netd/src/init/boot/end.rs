//! The end of an enclave.
//!
//! All of it is memory: what counts is that processes may end in good order, that file systems of
//! others which a program mounted get what was written, and that the machine is given back. They
//! are not unmounted: a server that can no longer be reached would hold that up for ever.

use crate::limits::{END_FORCED, END_GRACE, END_LOOK};
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::io;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// To every process that we may signal, but ourselves and the kernel's.
const ALL: Pid = Pid::from_raw(-1);

pub(super) fn power_off() -> io::Error {
    if !super::is_process_one() {
        return io::Error::other("only process 1 ends the machine");
    }
    if !(end_all(Signal::SIGTERM, END_GRACE) || end_all(Signal::SIGKILL, END_FORCED)) {
        warn!("processes that cannot be killed are left behind");
    }
    if !sync_within(END_FORCED) {
        warn!("file systems could not be written in time: their server may be gone");
    }
    // A reset ends an enclave: its hypervisor does not start it again, and neither does QEMU with
    // -no-reboot. To power off takes ACPI, and kernels without it stop their processors then and
    // leave the enclave running.
    for how in [
        RebootMode::RB_AUTOBOOT,
        RebootMode::RB_POWER_OFF,
        RebootMode::RB_HALT_SYSTEM,
    ] {
        let Err(errno) = reboot(how);
        warn!(?how, error = errno.desc(), "the kernel does not end");
    }
    io::Error::last_os_error()
}

/// Signals all others and reaps them. Whether nobody is left after `patience`.
fn end_all(signal: Signal, patience: Duration) -> bool {
    match kill(ALL, signal) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return true,
        Err(error) => {
            warn!(%signal, error = error.desc(), "cannot signal the processes that are left")
        }
    }
    let deadline = Instant::now() + patience;
    loop {
        match waitpid(ALL, Some(WaitPidFlag::WNOHANG)) {
            // Orphans become children of process 1, so without a child there is nobody.
            Err(Errno::ECHILD) => return true,
            Ok(status) if status.pid().is_some() => {
                debug!(?status, "ended");
                continue;
            }
            Ok(_) | Err(_) => {}
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(END_LOOK);
    }
}

fn sync_within(patience: Duration) -> bool {
    let (done, is_done) = sync_channel(1);
    let started = thread::Builder::new().name("sync".into()).spawn(move || {
        nix::unistd::sync();
        // Nobody waits any more after the deadline.
        let _ = done.send(());
    });
    started.is_ok() && is_done.recv_timeout(patience).is_ok()
}
