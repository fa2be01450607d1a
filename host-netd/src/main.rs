//! The `host-netd` program: puts the parts of the library together.

use anyhow::Context;
use host_netd::admin::{Admin, client};
use host_netd::budget::{Budget, Limits};
use host_netd::capture::Tap;
use host_netd::config::{Config, Files, Task};
use host_netd::dns::Dns;
use host_netd::io::{Services, ping_sockets_permitted};
use host_netd::listen::Listener;
use host_netd::local::LocalAddresses;
use host_netd::publish;
use host_netd::record::Records;
use host_netd::sandbox;
use host_netd::session::{Sessions, Shared};
use host_netd::tenant::Tenants;
use netd_log::Log;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

const MIB: usize = 1024 * 1024;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("NETD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = Log::start(filter, false);
    match run(&log) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(log: &Log) -> anyhow::Result<ExitCode> {
    let config = match Config::from_command_line()? {
        Task::Serve(config) => *config,
        Task::Ask(question, admin) => {
            // For a person or a script, who need no time and level before it.
            return Ok(
                client::ask(question, admin.as_deref()).unwrap_or_else(|error| {
                    log.say(&format!("host-netd: {error:#}"));
                    ExitCode::FAILURE
                }),
            );
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(config, log))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config, log: &Log) -> anyhow::Result<()> {
    // Before anything is bound, so that a signal always finds its handler.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut report = signal(SignalKind::user_defined1())?;

    if let Err(error) = ping_sockets_permitted() {
        tracing::warn!(
            %error,
            "ping from enclaves is off: permit it with sysctl -w net.ipv4.ping_group_range='0 2147483647'"
        );
    }
    let with_table = (config.enclaves.iter()).map(|enclave| (enclave.cid, &enclave.terms));
    let tenants = Tenants::bind(&config.others, with_table)?;
    let listening = tenants.files() + config.enclaves.len();
    let files = Files::of_process(&config.limits, listening)?;
    let limits = Limits {
        all_flows: files.flows,
        ..config.limits
    };
    let listeners = listeners(&config)?;
    let capture = match &config.capture {
        Some(path) => Some(
            File::create(path)
                .with_context(|| format!("cannot write the capture file {}", path.display()))?,
        ),
        None => None,
    };
    let admin = Admin::bind(config.admin.as_deref())?;
    // Everything is open, no thread runs yet, and nothing has come from an enclave.
    let sockets = listeners.iter().filter_map(Listener::socket);
    let sockets = sockets.chain(admin.iter().map(Admin::path));
    let touched_later = sandbox::Files {
        resolv_conf: config.resolv_conf.clone(),
        sockets: sockets.map(Path::to_owned).collect(),
    };
    sandbox::enter(config.sandbox, &touched_later)?;
    let tap = capture.map(Tap::start).transpose();
    let tap = tap.context("cannot write the capture file")?;
    let services = Services {
        runtime: tokio::runtime::Handle::current(),
        dns: Dns::start(config.resolv_conf, files.dns),
        tap,
    };
    let own = LocalAddresses::follow().context("cannot read this host's addresses")?;
    let records = Records::new();
    let sessions = Sessions::new(Shared {
        services,
        tenants,
        own,
        budget: Budget::new(limits).keeping(config.enclaves.len()),
        records: Arc::clone(&records),
    });
    log.detach(|| ()).context("no thread for the log")?;
    publish::serve(&sessions)?;
    tracing::info!(
        address = config.listen.as_ref().map(tracing::field::display),
        max_enclaves = limits.enclaves,
        max_flows = limits.flows.min(limits.all_flows),
        flows_of_all_enclaves = limits.all_flows,
        most_ring_memory_mib = limits.most_ring_memory() / MIB,
        most_memory_mib = limits.most_memory() / MIB,
        "listening"
    );
    for enclave in &config.enclaves {
        if let Some(path) = &enclave.listen {
            tracing::info!(cid = %enclave.cid, socket = %path.display(), "listening for one enclave");
        }
    }

    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "the service manager cannot be told that this is ready");
    }

    let mut serving = JoinSet::new();
    for listener in listeners {
        serving.spawn(Arc::clone(&sessions).serve(listener));
    }
    if let Some(admin) = admin {
        serving.spawn(admin.serve(records));
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = report.recv() => sessions.report(),
        }
    }
    // Dropping the listeners removes their sockets.
    serving.shutdown().await;
    sessions.close().await;
    Ok(())
}

/// The common one, unless each enclave has its own, and those.
fn listeners(config: &Config) -> anyhow::Result<Vec<Listener>> {
    let common = (config.listen.iter()).map(|at| Listener::bind(at, config.cids.clone()));
    let own = config.enclaves.iter().filter_map(|enclave| {
        let path = enclave.listen.as_deref()?;
        Some(Listener::for_enclave(enclave.cid, path))
    });
    common.chain(own).collect()
}
