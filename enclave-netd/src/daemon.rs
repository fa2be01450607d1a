//! The program: command line, log, and the parts put together in their order.

use crate::config::Config;
use crate::datapath::Datapath;
use crate::guard::{Addresses, Guard};
use crate::link::Connector;
use crate::network::Families;
use crate::privileges::Needs;
use crate::pump::{Command, Event, Pump};
use crate::resolv_conf::ResolvConf;
use crate::supervisor::{Notifier, Signals, Supervisor};
use crate::tun::Tun;
use crate::{config, link, network, privileges, pump, socket, supervisor, tun};
use anyhow::{Context, Result};
use clap::Parser;
use mio::{Poll, Waker};
use netd_log::Log;
use netd_proto::address::LinkAddress;
use netd_proto::handshake::{Hello, Lane, Network4, Network6};
use netd_proto::limits::MAX_LANES;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// Exit status for a wrong command line or configuration.
const USAGE: u8 = 2;

/// The enclave's end of the enclave network: a tun device carried over one vsock connection.
///
/// Runs COMMAND once the network is up, passes signals on to it and exits with its status.
/// Without COMMAND it runs until SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
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

/// What the `enclave-netd` program does.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => return fail(USAGE, &usage(&error)),
    };
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

fn fail(status: u8, message: &str) -> ExitCode {
    // Who closed standard error learns the status at least.
    let _ = writeln!(io::stderr(), "{}", complaint(message));
    ExitCode::from(status)
}

fn complaint(message: &str) -> String {
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

fn start_log(filter: Option<&str>) -> Result<Log> {
    let environment = ["NETD_LOG", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    let filter = filter
        .map(str::to_owned)
        .or(environment)
        .unwrap_or_else(|| "info".into());
    let filter = EnvFilter::builder()
        .parse(&filter)
        .with_context(|| format!("--log {filter}: write error, warn, info, debug or trace"))?;
    Ok(Log::start(filter, true))
}

fn settings(cli: &Cli) -> Result<Config> {
    let mut config = Config::load(cli.config.as_deref()).with_context(|| match &cli.config {
        Some(path) => format!("configuration {}", path.display()),
        None => "configuration".into(),
    })?;
    if let Some(parent) = &cli.parent {
        config.parent = config::parse_parent("--parent", parent)?;
    }
    Ok(config)
}

fn run(cli: Cli, config: Config, log: &Log) -> Result<u8> {
    socket::probe(&config.parent).with_context(|| {
        format!(
            "cannot make a socket for {}: does this kernel have AF_VSOCK?",
            config.parent
        )
    })?;
    let signals = Signals::catch()?;
    let tun = Tun::open(&config.network.interface)?;
    let families = network::set_up(&tun, &config.network)?;
    let resolv_conf = point_resolver(&config, families)?;
    let foreign_files = matches!(config.parent, LinkAddress::Unix(_))
        || resolv_conf
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
    info!(
        interface = tun.name(),
        address = %config.network.v4.address,
        address6 = families.ipv6.then(|| config.network.v6.address.to_string()),
        mtu = config.network.mtu,
        offload = ?tun.offload(),
        "network set up"
    );
    if tun.offload() < tun::Offload::Segmentation {
        warn!(offload = ?tun.offload(), "this kernel's tun lacks offload: expect less throughput");
    }
    let threads = Threads::start(tun, &config, notifier)?;
    let ended = supervisor.run(|| ready(&config), || threads.send(Command::Report));
    threads.stop();
    if let Some(resolv_conf) = resolv_conf {
        resolv_conf
            .restore()
            .context("resolv.conf is not as it was")?;
    }
    ended
}

fn point_resolver(config: &Config, families: Families) -> Result<Option<ResolvConf>> {
    let Some(path) = &config.dns.resolv_conf else {
        return Ok(None);
    };
    let mut servers: Vec<IpAddr> = vec![config.network.v4.gateway.into()];
    if families.ipv6 {
        servers.push(config.network.v6.gateway.into());
    }
    Ok(Some(ResolvConf::point_at(
        path,
        &servers,
        &config.dns.search,
    )?))
}

fn ready(config: &Config) {
    info!(parent = %config.parent, interface = config.network.interface, "ready");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!(%error, "cannot tell the service manager");
    }
}

/// Held by a thread without which there is no network: a bug that ends the thread ends the daemon,
/// in good order.
struct Alarm(Notifier);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            let error = io::Error::other("a thread panicked: this is a bug, please report it");
            self.0.notify(Event::Failed(error));
        }
    }
}

/// The connecting thread and the pump's.
struct Threads {
    commands: SyncSender<Command>,
    waker: Arc<Waker>,
    ended: Receiver<()>,
}

impl Threads {
    fn start(tun: Tun, config: &Config, notifier: Notifier) -> Result<Threads> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        let waker = Waker::new(poll.registry(), pump::WAKE).context("cannot make an eventfd")?;
        let waker = Arc::new(waker);
        // A link, a report and a stop may wait at once.
        let (commands, inbox) = sync_channel(4);
        let (to_pump, wake_pump) = (commands.clone(), waker.clone());
        let hello = hello(config, &tun);
        let alarm = Alarm(notifier.clone());
        let connector = Connector::start(config.parent.clone(), hello, move |link| {
            let _alarm = &alarm;
            let sent = to_pump.send(Command::Link(Box::new(link))).is_ok();
            sent && wake_pump.wake().is_ok()
        });
        let addresses = Addresses::from(&config.network);
        let guard = Guard::new(addresses, config.publish.clone(), config.rules.clone());
        let is_vsock = matches!(config.parent, LinkAddress::Vsock(..));
        let pump = Pump {
            poll,
            commands: inbox,
            connector: connector.context("cannot start a thread")?,
            notify: {
                let notifier = notifier.clone();
                move |event| notifier.notify(event)
            },
            datapath: Datapath::new(tun, guard, addresses, is_vsock),
        };
        let alarm = Alarm(notifier.clone());
        let (end, ended) = sync_channel(1);
        thread::Builder::new()
            .name("pump".into())
            .spawn(move || {
                let _alarm = alarm;
                pump.run();
                // Nobody waits when the daemon ends for another reason.
                let _ = end.send(());
            })
            .context("cannot start a thread")?;
        Ok(Threads {
            commands,
            waker,
            ended,
        })
    }

    fn send(&self, command: Command) {
        // A full inbox means that the pump is about to look at it.
        if self.commands.try_send(command).is_ok() {
            let _ = self.waker.wake();
        }
    }

    fn stop(&self) {
        supervisor::stop_pump(|command| self.send(command), &self.ended);
    }
}

fn hello(config: &Config, tun: &Tun) -> Hello {
    let (v4, v6) = (config.network.v4, config.network.v6);
    Hello {
        features: tun.offload().features(),
        session: link::new_session(),
        lane: Lane(0),
        lanes: MAX_LANES,
        mtu: config.network.mtu,
        v4: Network4 {
            enclave: v4.address,
            gateway: v4.gateway,
            parent_loopback: v4.parent_loopback,
        },
        v6: Network6 {
            enclave: v6.address,
            gateway: v6.gateway,
            parent_loopback: v6.parent_loopback,
        },
    }
}
