//! Measures the enclave network beside other ways to give a namespace a network, in one run.
//!
//! # Theory of operation
//! A [`bed::Bed`] is a [`netd_tests::Lab`] with load servers in its internet machine. Each
//! [`subject::Subject`] is one way from a machine to that internet: no tunnel at all, ours,
//! slirp4netns, pasta, pairs of socat, or a command that the caller gives. All are set up at the
//! start and idle while another is measured.
//!
//! A [`measure::Measure`] runs one kind of load over one subject and records values. The order is
//! measure, then repeat, then subject, so that a slow change of the machine (other guests, heat)
//! hits every subject alike; medians are reported. What fails or is not possible is recorded with
//! its reason and left out from then on. [`report`] turns the values into a table, JSON and a
//! picture.
//!
//! The loads that no ready tool makes as needed are subcommands of this program (`load`), run in
//! the machines: every client and server is a process of its own, as programs are.

mod bed;
mod check;
mod load;
mod machine_facts;
mod measure;
mod options;
mod peers;
mod report;
mod results;
mod run;
mod subject;
mod targets;
mod usage;
mod wan;

use clap::Parser;
use options::{Command, Options};
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// A signal ends the program: what fails from then on is a consequence.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let options = Options::parse();
    // The bed panics when it cannot be made, with what to do about it: that is the message. It
    // unwinds, so that all is cleaned up.
    panic::set_hook(Box::new(|panic| {
        wait_if_interrupted();
        let message = panic.payload_as_str().unwrap_or("failed");
        eprintln!("netd-bench: {message}");
    }));
    let outcome = panic::catch_unwind(|| match options.command {
        Some(Command::Load { load }) => load::run(&load).map(|()| true),
        None => run::run(&options.run),
    });
    match outcome {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("netd-bench: {error:#}");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// What fails after a signal fails because everything is being ended: nothing is to be told then.
/// The thread that got the signal ends the process in a moment.
pub(crate) fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}
