//! Keeps both daemons under mixed load and faults for as long as one likes, and looks for what
//! only shows with time.
//!
//! # Theory of operation
//! A [`netd_tests::Lab`] with a [`netd_tests::Tap`] on its link. [`workers`] run operations from
//! the enclave, and through published ports into it: transfers whose every byte is compared
//! ([`exchange`]), [`datagrams`], name look-ups, connections that end in every way there is. Each
//! tells the [`ledger`] how it went and when. Meanwhile [`faults`] come, one after the other, each
//! with the time from its beginning to its end: a window.
//!
//! An operation may fail in the window of a fault that excuses such a failure, and for two seconds
//! after it. Every other failure is a violation, and so is a wrong byte at any time.
//!
//! The number of faults and operations depends on the machine's speed; what they are depends on the
//! seed. Rates are bounded, so that a soak is no benchmark. [`memory`] is sampled throughout; what
//! the daemons hold is counted before the load and after it ([`netd_tests::Census`]).

mod datagrams;
mod exchange;
mod faults;
mod ledger;
mod memory;
mod options;
mod random;
mod report;
mod run;
mod stalls;
mod workers;

use clap::Parser;
use options::{Command, Options};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match options.command {
        Some(Command::Serve { at }) => exchange::serve(&at).map(|()| true),
        None => run::run(&options.run),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("netd-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
