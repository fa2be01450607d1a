//! The command line.

use crate::load::Load;
use crate::measure::Measure;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Measures the enclave network beside other ways to give a network namespace a network.
#[derive(Debug, Parser)]
#[command(name = "bench", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What is not a run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One load, run in a machine by this program itself.
    #[command(hide = true)]
    Load {
        #[command(subcommand)]
        load: Load,
    },
}

/// One run.
#[derive(Clone, Debug, Args)]
pub(crate) struct Run {
    /// Short: 1 s, 2 repeats, no more than 1,000 idle flows; for a look, not for a claim
    #[arg(long)]
    pub(crate) quick: bool,
    /// How long one load runs; some never more than 2 s [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: Option<u64>,
    /// How often each load is run over each subject; medians are reported [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=50))]
    repeats: Option<u64>,
    /// Only these measures
    #[arg(long, value_name = "MEASURE", value_delimiter = ',', value_enum)]
    only: Vec<Measure>,
    /// Only these subjects: direct, ours, slirp4netns, pasta, socat, or a peer's name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) subjects: Vec<String>,
    /// One more subject: a command that gives a network namespace a network.
    ///
    /// It is run by sh, as root, in the parent machine, and has to stay in the foreground. It finds
    /// NETD_BENCH_ENCLAVE_PID, the process whose network namespace is to be given a network;
    /// NETD_BENCH_PARENT_PID, a process in the parent machine; NETD_BENCH_DIR, a folder for its
    /// files. It counts as up when that namespace reaches the server 192.0.2.2.
    #[arg(long = "peer", value_name = "NAME=UP_COMMAND", value_parser = peer)]
    pub(crate) peers: Vec<(String, String)>,
    /// Also compare every byte of large transfers, with slow readers and half-closed streams
    #[arg(long)]
    pub(crate) check: bool,
    /// Write report.md, report.json and report.svg there
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Where host-netd and enclave-netd are [default: NETD_BIN_DIR, or beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

impl Run {
    /// Seconds of one load.
    pub(crate) fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// Repeats of each load over each subject.
    pub(crate) fn repeats(&self) -> usize {
        let repeats = self.repeats.unwrap_or(if self.quick { 2 } else { 3 });
        usize::try_from(repeats).expect("at most 50")
    }

    /// Where the daemons are.
    pub(crate) fn bin_dir(&self) -> std::io::Result<PathBuf> {
        let said = self.bin_dir.clone();
        let said = said.or_else(|| std::env::var_os("NETD_BIN_DIR").map(PathBuf::from));
        match said {
            Some(dir) => Ok(dir),
            None => Ok(std::env::current_exe()?.with_file_name("")),
        }
    }

    /// What is measured, in the order of the report.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        let all = Measure::ALL.iter().copied();
        let is_wanted = |measure: &Measure| match self.only.is_empty() {
            true => !(self.quick && measure.is_long()),
            false => self.only.contains(measure),
        };
        all.filter(is_wanted).collect()
    }
}

fn peer(text: &str) -> Result<(String, String), String> {
    let (name, command) = text
        .split_once('=')
        .ok_or("expected NAME=UP_COMMAND, such as mine='my-tool --pid $NETD_BENCH_ENCLAVE_PID'")?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(is_plain) {
        return Err(format!(
            "the name {name:?} must be of letters, digits, - and _"
        ));
    }
    if crate::subject::BUILT_IN.contains(&name) {
        return Err(format!(
            "{name:?} is a subject already; choose another name"
        ));
    }
    Ok((name.to_owned(), command.to_owned()))
}
