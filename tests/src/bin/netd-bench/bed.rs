//! The machines and the servers that all subjects share.

use crate::load::{self, port};
use crate::options::Run;
use crate::wan::{self, Wan};
use anyhow::{Context, bail};
use netd_tests::{Done, Lab, Machine, Nginx, Process, address};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// How long a server may take to start, in seconds.
const START: u64 = 20;
/// How much longer than its load a client may take, in seconds.
const GRACE: u64 = 20;
/// What nginx serves.
const BIG_FILE: u64 = 1 << 30;
/// Wide enough for 15,000 flows and many short ones.
const PORT_RANGE: &str = "10240 65535";

/// What makes a program run before others.
const URGENT: [&str; 3] = ["nice", "-n", "-10"];

/// The servers' address as clients know it, but for subjects without routes.
pub(crate) const SERVER: IpAddr = address::SERVER[0];

/// Three machines with servers in the third.
pub(crate) struct Bed {
    /// The machines.
    pub(crate) lab: Lab,
    /// With [`Bed::HTTPS_NAME`] and the file `/big`.
    pub(crate) nginx: Nginx,
    /// The way with delay and loss.
    pub(crate) wan: Wan,
    /// Of the small loads.
    _servers: Process,
    own: String,
}

impl Bed {
    /// The name in nginx's certificate.
    pub(crate) const HTTPS_NAME: &str = "web.lab.example";

    /// Makes the machines and starts the servers.
    pub(crate) fn new(options: &Run) -> anyhow::Result<Bed> {
        let own = std::env::current_exe()?;
        let binaries = options.bin_dir()?;
        for daemon in ["host-netd", "enclave-netd"] {
            let path: PathBuf = binaries.join(daemon);
            if !path.exists() {
                bail!(
                    "there is no {}: run scripts/bench, or say --bin-dir",
                    path.display()
                );
            }
        }
        more_files()?;
        let lab = Lab::with_daemons_of(binaries);
        for machine in [&lab.enclave, &lab.parent, &lab.internet] {
            prepare(machine)?;
        }
        let own = own.to_str().context("not a path of text")?.to_owned();
        let server = SERVER.to_string();
        let mut servers = lab.internet.spawn(&own, &["load", "serve", &server]);
        servers.wait_log(load::SERVING, START);
        let nginx = lab.nginx();
        // It has no blocks; what is read from it are zeroes, which TLS makes as costly as any.
        let big = nginx.www.join("big");
        File::create(&big)?.set_len(BIG_FILE)?;
        // From then on it is in memory: the first download is no slower than the next.
        std::io::copy(&mut File::open(&big)?, &mut std::io::sink())?;
        let wan = Wan::new(&lab)?;
        Ok(Bed {
            lab,
            nginx,
            wan,
            _servers: servers,
            own,
        })
    }

    /// Starts an iperf3 server for one run.
    pub(crate) fn iperf_server(&self, port: u16) -> Process {
        let port = port.to_string();
        let arguments = ["-s", "-1", "--forceflush", "-p", &port];
        let mut server = self.lab.internet.spawn("iperf3", &arguments);
        server.wait_log("Server listening", START);
        server
    }

    /// Runs one of this program's loads in a machine.
    pub(crate) fn load<T: DeserializeOwned>(
        &self,
        machine: &Machine,
        seconds: u64,
        load: &[&str],
    ) -> anyhow::Result<T> {
        let arguments = [&["load"], load].concat();
        let output = finish(machine, seconds, &self.own, &arguments)?;
        result_of(&output)
    }

    /// The same, before all others when processors are short.
    pub(crate) fn urgent_load<T: DeserializeOwned>(
        &self,
        machine: &Machine,
        seconds: u64,
        load: &[&str],
    ) -> anyhow::Result<T> {
        let arguments = [&URGENT[1..], &[&self.own, "load"], load].concat();
        let output = finish(machine, seconds, URGENT[0], &arguments)?;
        result_of(&output)
    }

    /// Starts one of this program's loads in a machine, before all others when processors are short.
    pub(crate) fn start_urgent_load(&self, machine: &Machine, load: &[&str]) -> Process {
        let arguments = [&URGENT[1..], &[&self.own, "load"], load].concat();
        machine.spawn(URGENT[0], &arguments)
    }

    /// Starts one of this program's loads in a machine.
    pub(crate) fn start_load(&self, machine: &Machine, load: &[&str]) -> Process {
        machine.spawn(&self.own, &[&["load"], load].concat())
    }

    /// This program's own path.
    pub(crate) fn program(&self) -> &str {
        &self.own
    }
}

/// The result in what a load has written.
pub(crate) fn result_of<T: DeserializeOwned>(output: &str) -> anyhow::Result<T> {
    let line = output.lines().rev().find(|line| line.starts_with('{'));
    let line = line.with_context(|| format!("no result, but: {}", output.trim()))?;
    serde_json::from_str(line).with_context(|| format!("not a result: {line}"))
}

/// Runs a client to its end and tells what it printed.
pub(crate) fn finish(
    machine: &Machine,
    seconds: u64,
    program: &str,
    arguments: &[&str],
) -> anyhow::Result<String> {
    let limit = seconds + GRACE;
    let done: Done = machine
        .run_within(limit, program, arguments)
        .with_context(|| format!("{program} did not end within {limit} s"))?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    let text = done.text();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.unwrap_or("failed without a word");
    let name = program.rsplit('/').next().unwrap_or(program);
    bail!("{name}: {}", last.trim_start_matches("netd-bench: "));
}

/// Settings that all machines share, the subjects' own as well.
pub(crate) fn prepare(machine: &Machine) -> anyhow::Result<()> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    machine
        .inside(|| std::fs::write(path, PORT_RANGE))
        .with_context(|| format!("cannot write {path}"))
}

/// Raises this program's limit of open files, which all it starts inherit.
fn more_files() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}

/// All ports that a subject without routes has to carry.
pub(crate) fn ports() -> Vec<(u16, SocketAddr)> {
    let single = [port::IPERF, port::IPERF_SECOND, port::ECHO, port::HTTPS];
    let near = single.into_iter().chain(port::IDLE).chain(port::CLOSE);
    near.map(|port| (port, SocketAddr::new(SERVER, port)))
        .chain([(
            port::FAR_IPERF,
            SocketAddr::new(wan::SERVER, port::FAR_IPERF),
        )])
        .collect()
}
