//! `enclave-netd init`: the first process of an enclave.
//!
//! # Theory of operation
//! Three processes. The **keeper** ([`keeper`]) has the privileges and never sees a byte of the
//! parent. The **carrier** ([`carrier`]) has none, and moves packets and log lines over the link. The
//! **program** is the image's. The keeper keeps the tun open, so a carrier that dies takes neither
//! the interface nor its addresses with it, nor the program: flows are reset as at the loss of a
//! link, and the next carrier goes on in the same session.
//!
//! The order of things:
//!
//! 1. As process 1: file systems, modules, entropy ([`boot::bring_up`]). Otherwise only a look at
//!    what there is.
//! 2. Log and signals; the configuration is read, while the boot image's root is there.
//! 3. As process 1: a heartbeat to the parent; the program's root becomes the root, if the image has
//!    one; the clock.
//! 4. The interface, its addresses, the resolver ([`crate::interface`]), and privileges that nobody
//!    needs any more are dropped.
//! 5. The keeper's loop: a carrier; with the first link the program; its end.
//! 6. As process 1: power off. Otherwise exit with the program's status.
//!
//! Where AWS's own init is process 1, or a container's, what says *as process 1* is done by them.
//! Processes whose parents ended come here all the same.

pub(crate) mod boot;
pub(crate) mod carrier;
mod carrier_process;
pub(crate) mod channel;
mod keeper;
mod lines;
mod own;
mod program;
mod record;
mod ring;

use crate::config::Config;
use crate::interface::Interface;
use crate::supervisor::Signals;
use crate::{daemon, link, privileges};
use anyhow::{Context, Result};
use carrier_process::Freight;
use keeper::Keeper;
use netd_log::Log;
use netd_proto::report::Exit;
use own::OwnLines;
use std::io::{Write, stderr};
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use tracing::warn;

/// Where an image has its configuration.
pub(crate) const CONFIG: &str = "/enclave.toml";

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Configuration file (TOML) with the program to run.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// What to log, as without init [default: info; environment: NETD_LOG, RUST_LOG].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl Options {
    /// As the kernel starts it, whose further words are not for this program.
    pub(crate) fn of_kernel() -> Options {
        Options {
            config: CONFIG.into(),
            log: None,
        }
    }
}

/// What `enclave-netd init` does.
pub(crate) fn main(options: &Options) -> ExitCode {
    let started = Instant::now();
    close_inherited();
    // A first process that ends makes the kernel panic, with a trace that hides the reason.
    let ended = catch_unwind(AssertUnwindSafe(|| bring_up(options, started)));
    let status = ended.unwrap_or_else(|_| {
        complain("init panicked: this is a bug, please report it");
        1
    });
    if boot::is_process_one() {
        let error = boot::power_off();
        complain(&format!("cannot power off: {error}"));
    }
    ExitCode::from(status)
}

/// Closes what whoever started this left open: the program is to have nothing of it. The kernel
/// leaves the first process its standard streams only, and no list of what is open.
fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // One of them was the list's own, and is closed already.
        let _ = nix::unistd::close(fd);
    }
}

fn complain(message: &str) {
    // Who closed standard error sees the status at least.
    let _ = writeln!(stderr(), "{}", daemon::complaint(message));
}

fn bring_up(options: &Options, started: Instant) -> u8 {
    let booted = match boot::is_process_one() {
        true => boot::bring_up(),
        false => Ok(boot::survey()),
    };
    let begun = OwnLines::new()
        .and_then(|(own, tee)| Ok((own, daemon::start_teed_log(options.log.as_deref(), tee)?)));
    let (own, log) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            complain(&format!("{error:#}"));
            return daemon::USAGE;
        }
    };
    let ended = booted.and_then(|booted| {
        booted.tell();
        set_up_and_run(options, &log, own, started)
    });
    match ended {
        Ok(exit) => exit.status(),
        Err(error) => {
            log.say(&daemon::complaint(&format!("{error:#}")));
            1
        }
    }
}

fn set_up_and_run(options: &Options, log: &Log, own: OwnLines, started: Instant) -> Result<Exit> {
    let signals = Signals::catch()?;
    let path = &options.config;
    let context = || format!("configuration {}", path.display());
    let text = Config::read(path).with_context(context)?;
    let config = Config::parse(&text).with_context(context)?;
    let program = config.program().with_context(context)?;
    if boot::is_process_one() {
        boot::heartbeat(&config.parent);
        let root = Path::new(boot::ROOTFS);
        if root.is_dir() {
            boot::switch_root(root)?;
        }
        boot::clock::Discipline::start().context("cannot start a thread")?;
    } else if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        warn!(%error, "processes whose parents ended are not waited for here");
    }
    let interface = Interface::set_up(&config)?;
    privileges::drop_in_keeper().context("cannot drop capabilities")?;
    log.detach(|| privileges::drop_in_thread(false))
        .context("cannot start a thread")?;
    interface.tell(&config);
    let filter = daemon::log_filter(options.log.as_deref());
    let freight = Freight {
        config: &text,
        session: link::new_session(),
        tun: &interface.tun,
        log: filter.as_deref(),
    };
    let settings = config.log.unwrap_or_default();
    let keeper = Keeper::new(program, settings, freight, signals, own, log, started);
    let exit = keeper.run()?;
    if let Some(resolv_conf) = interface.resolv_conf {
        resolv_conf
            .restore()
            .context("resolv.conf is not as it was")?;
    }
    Ok(exit)
}
