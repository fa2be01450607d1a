//! The command line.

use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Keeps the enclave network under mixed load and faults, and checks that nothing is lost, wrong or
/// left over.
#[derive(Debug, Parser)]
#[command(name = "soak", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What is not a run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The server of all loads, run in a machine by this program itself.
    #[command(hide = true)]
    Serve {
        /// Where, over TCP and UDP.
        at: Vec<SocketAddr>,
    },
}

/// One run.
#[derive(Clone, Debug, Args)]
pub(crate) struct Run {
    /// How long the load lasts; what lingers needs most of three
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=10_000))]
    minutes: u64,
    /// Decides what is done and which faults come [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Most that bulk transfers move on the average, in Mbit/s, all together
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) mbit: u64,
    /// No faults: then no operation may fail at all
    #[arg(long)]
    pub(crate) calm: bool,
    /// Where host-netd and enclave-netd are [default: NETD_BIN_DIR, or beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

impl Run {
    /// How long the load lasts.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.minutes * 60)
    }

    /// What was said, or something else each time.
    pub(crate) fn seed(&self) -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.seed
            .unwrap_or_else(|| now.map_or(1, |now| now.as_secs()))
    }

    /// Where the daemons are.
    pub(crate) fn bin_dir(&self) -> std::io::Result<PathBuf> {
        let said = self.bin_dir.clone();
        match said.or_else(|| std::env::var_os("NETD_BIN_DIR").map(PathBuf::from)) {
            Some(dir) => Ok(dir),
            None => Ok(std::env::current_exe()?.with_file_name("")),
        }
    }
}
