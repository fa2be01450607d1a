//! The program: command line, log, and the parts put together in their order.

use crate::config::Config;
use crate::init::boot;
use crate::interface::Interface;
use crate::privileges::Needs;
use crate::pump::Command;
use crate::resolv_conf::ResolvConf;
use crate::supervisor::{Signals, Supervisor};
use crate::threads::Threads;
use crate::{config, init, link, privileges};
use anyhow::{Context, Result};
use clap::Parser;
use netd_log::{Log, Tee};
use netd_proto::address::LinkAddress;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// Exit status for a wrong command line or configuration.
pub(crate) const USAGE: u8 = 2;

/// The enclave's end of the enclave network: a tun device carried over one vsock connection.
///
/// Runs COMMAND once the network is up, passes signals on to it and exits with its status.
/// Without COMMAND it runs until SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// Configuration file (TOML); everything has a default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where host-netd listens: vsock:CID:PORT or unix:PATH [default: vsock:3:1024].
    #[arg(long, value_name = "ADDRESS")]
    parent: Option<String>,
    /// Give up when the link does not stand within this time [default: wait for ever].
    #[arg(long, value_name = "SECONDS")]
    ready_timeout: Option<u32>,
    /// What to log: error, warn, info, debug, trace, or a filter such as enclave_netd::pump=trace
    /// [default: info; environment: NETD_LOG, RUST_LOG].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// What to run once the network is up.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Subcommand)]
enum Mode {
    /// Be the first process of an enclave: bring everything up and run the configuration's program.
    Init(init::Options),
    /// Say whether a configuration would do for init, and do nothing else.
    Check {
        /// Configuration file (TOML) with the program to run.
        #[arg(value_name = "FILE", default_value = init::CONFIG)]
        config: PathBuf,
    },
    /// Carry packets for init, which starts this.
    #[command(hide = true)]
    Carrier,
}

/// What the `enclave-netd` program does.
pub fn main() -> ExitCode {
    if boot::is_process_one() && is_named_init() {
        return init::main(&init::Options::of_kernel());
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => return fail(USAGE, &usage(&error)),
    };
    match &cli.mode {
        Some(Mode::Init(options)) => init::main(options),
        Some(Mode::Check { config }) => check(config),
        Some(Mode::Carrier) => init::carrier::main(),
        None => run_plain(cli),
    }
}

/// For whoever builds an image: in an enclave nobody may be there to read what is wrong with it.
fn check(path: &Path) -> ExitCode {
    let checked = Config::read(path)
        .and_then(|text| Config::parse(&text))
        .and_then(|config| config.program().map(drop));
    match checked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(USAGE, &format!("configuration {}: {error}", path.display())),
    }
}

/// Whether it was started by the name that the kernel gives an image's first process.
fn is_named_init() -> bool {
    let name = std::env::args_os().next();
    name.is_some_and(|name| {
        Path::new(&name)
            .file_name()
            .is_some_and(|name| name == "init")
    })
}

fn run_plain(cli: Cli) -> ExitCode {
    let settings = start_log(cli.log.as_deref()).and_then(|log| Ok((log, settings(&cli)?)));
    let (log, config) = match settings {
        Ok(settings) => settings,
        Err(error) => return fail(USAGE, &format!("{error:#}")),
    };
    match run(cli, config, &log) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            log.say(&complaint(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn fail(status: u8, message: &str) -> ExitCode {
    // Who closed standard error learns the status at least.
    let _ = writeln!(io::stderr(), "{}", complaint(message));
    ExitCode::from(status)
}

pub(crate) fn complaint(message: &str) -> String {
    format!("enclave-netd: {}", message.replace('\n', " "))
}

/// The first line of what clap has to say.
fn usage(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    format!(
        "{} (see --help)",
        lines.join(" ").trim_start_matches("error: ")
    )
}

/// The filter that the command line or the environment asks for.
pub(crate) fn log_filter(option: Option<&str>) -> Option<String> {
    let environment = || {
        ["NETD_LOG", "RUST_LOG"]
            .iter()
            .find_map(|name| std::env::var(name).ok())
    };
    option.map(str::to_owned).or_else(environment)
}

/// Starts the log.
///
/// # Errors
/// The filter is none.
pub(crate) fn start_log(filter: Option<&str>) -> Result<Log> {
    Ok(Log::start(parse_filter(filter)?, true))
}

/// The same, with a second reader.
pub(crate) fn start_teed_log(filter: Option<&str>, tee: Tee) -> Result<Log> {
    Ok(Log::start_teed(parse_filter(filter)?, true, tee))
}

fn parse_filter(option: Option<&str>) -> Result<EnvFilter> {
    let filter = log_filter(option).unwrap_or_else(|| "info".into());
    EnvFilter::builder()
        .parse(&filter)
        .with_context(|| format!("--log {filter}: write error, warn, info, debug or trace"))
}

fn settings(cli: &Cli) -> Result<Config> {
    let mut config = Config::load(cli.config.as_deref())
        .and_then(Config::without_program)
        .with_context(|| match &cli.config {
            Some(path) => format!("configuration {}", path.display()),
            None => "configuration".into(),
        })?;
    if let Some(parent) = &cli.parent {
        config.parent = config::parse_parent("--parent", parent)?;
    }
    Ok(config)
}

fn run(cli: Cli, config: Config, log: &Log) -> Result<u8> {
    let signals = Signals::catch()?;
    let interface = Interface::set_up(&config)?;
    let foreign_files = matches!(config.parent, LinkAddress::Unix(_))
        || interface
            .resolv_conf
            .as_ref()
            .is_some_and(ResolvConf::is_in_foreign_folder);
    let needs = Needs {
        command: !cli.command.is_empty(),
        foreign_files,
    };
    privileges::drop_all_but_needed(needs).context("cannot drop capabilities")?;
    log.detach(|| privileges::drop_in_thread(false))
        .context("cannot start a thread")?;

    let command = (!cli.command.is_empty()).then_some(cli.command);
    let ready_timeout = cli.ready_timeout.map(|s| Duration::from_secs(s.into()));
    let (mut supervisor, notifier) = Supervisor::new(signals, command, ready_timeout)?;
    interface.tell(&config);
    let notify = move |event| notifier.notify(event);
    let threads = Threads::start(interface.tun, &config, link::new_session(), None, notify)?;
    let ended = supervisor.run(|| ready(&config), || threads.send(Command::Report));
    threads.stop();
    if let Some(resolv_conf) = interface.resolv_conf {
        resolv_conf
            .restore()
            .context("resolv.conf is not as it was")?;
    }
    ended
}

fn ready(config: &Config) {
    info!(parent = %config.parent, interface = config.network.interface, "ready");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!(%error, "cannot tell the service manager");
    }
}
