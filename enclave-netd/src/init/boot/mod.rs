//! What an enclave's first process owes to the rest: file systems, modules, entropy, the clock, a
//! sign of life to the parent, and the end.
//!
//! # Theory of operation
//! The order, for whoever is process 1:
//!
//! 1. [`bring_up`], before the log, before any thread and before anything asks for randomness.
//!    Kernels before 5.6 have no randomness that does not wait until their pool is seeded but
//!    `/dev/urandom`. Even a `HashMap` reads that then, and panics while there is no `/dev`. So
//!    this uses neither, gathers what it has to say, and leaves it to [`Booted::tell`], once there
//!    is a log.
//! 2. [`heartbeat()`], once the parent's address is known and signals are blocked: it starts a thread.
//! 3. [`switch_root`], when the image has a root for the program. What is needed of the boot image's
//!    root, such as the configuration, is to be read before.
//! 4. [`clock::Discipline::start`], before capabilities are dropped.
//! 5. [`power_off`], at the end.
//!
//! Few things are vital: `/proc` and `/dev`. Whatever else fails is a warning that says what is
//! missing and what follows, because an enclave that runs without it is better than one that says
//! nothing. What is already mounted is left alone.

pub(crate) mod clock;
mod console;
mod end;
mod entropy;
mod features;
mod heartbeat;
mod lack;
mod modules;
mod mounts;
mod nodes;
mod root;
mod sys;

use anyhow::Result;
use features::Features;
use lack::Lack;
use netd_proto::address::LinkAddress;
use std::io;
use std::path::Path;

/// Where the boot ramdisk has the modules, and their order.
const MODULES: &str = "/modules";

/// Where the application ramdisk has the program's root.
pub(crate) const ROOTFS: &str = "/rootfs";

/// Whether this is process 1 of its PID namespace. If it is not, another init did what is here.
pub(crate) fn is_process_one() -> bool {
    std::process::id() == 1
}

/// What was found and done before there was a log.
#[derive(Debug)]
pub(crate) struct Booted {
    features: Features,
    modules: Vec<String>,
    entropy_bits: Option<u32>,
    lacks: Vec<Lack>,
}

/// Mounts file systems, sees to standard output, loads the modules in `/modules`, and seeds the
/// kernel's entropy. Takes milliseconds.
///
/// # Errors
/// There is no `/proc` or no `/dev`.
pub(crate) fn bring_up() -> Result<Booted> {
    let mut lacks = Vec::new();
    let devices = mounts::mount_all(&mut lacks)?;
    console::open(&mut lacks);
    let modules = modules::load_all(Path::new(MODULES), &mut lacks);
    mounts::find_devices(devices);
    let entropy_bits = entropy::seed(&mut lacks);
    Ok(Booted {
        features: Features::probe(&mut lacks),
        modules,
        entropy_bits,
        lacks,
    })
}

/// Looks what is there and changes nothing: for who runs under another init.
pub(crate) fn survey() -> Booted {
    let mut lacks = Vec::new();
    Booted {
        features: Features::probe(&mut lacks),
        modules: Vec::new(),
        entropy_bits: None,
        lacks,
    }
}

impl Booted {
    /// Logs it: a line for what is there, and a warning for each thing that is not.
    pub(crate) fn tell(&self) {
        self.features.tell(&self.modules, self.entropy_bits);
        self.lacks.iter().for_each(Lack::tell);
    }
}

/// Sends the byte that `nitro-cli run-enclave` waits for to port 9000 of the parent, and awaits its
/// echo, in a thread without privileges that ends by itself within seconds. What goes wrong is a
/// warning. Does nothing for a parent on a unix socket.
pub(crate) fn heartbeat(parent: &LinkAddress) {
    if let LinkAddress::Vsock(cid, _) = parent {
        heartbeat::start(*cid);
    }
}

/// Makes `root` the root of this process and all that it starts. `/proc`, `/sys`, `/dev`, `/run`
/// and `/tmp` go along. Threads have one root together, whichever calls this.
///
/// # Errors
/// The kernel refused, or a folder could not be made; the message names it.
pub(crate) fn switch_root(root: &Path) -> Result<()> {
    root::switch(root)
}

/// Ends all other processes, first with SIGTERM and then by force, and resets the machine, which
/// ends an enclave; in a PID namespace it ends that. Needs CAP_KILL and CAP_SYS_BOOT, and takes
/// seconds at most. The log is to be dropped before, for what waits in it would be lost.
///
/// # Errors
/// Returns only if the kernel refuses. Then the process should exit, which makes the kernel panic.
pub(crate) fn power_off() -> io::Error {
    end::power_off()
}
