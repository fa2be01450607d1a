//! A subject: one way from a machine to the internet, with its processes.

use crate::bed::{Bed, SERVER, prepare};
use crate::load::port;
use crate::{peers, usage, wan};
use anyhow::{Context, bail};
use netd_tests::{Machine, Process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a subject may take to carry the first connection.
const START: Duration = Duration::from_secs(15);
/// How often it is tried.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// How long a subject may take to have nothing to do.
const SETTLE: Duration = Duration::from_secs(10);
/// For how long it has to have nothing to do.
const LOOK: Duration = Duration::from_millis(200);
/// The part of a processor that counts as nothing.
const IDLE: f64 = 0.02;

/// The names of those that need no `--peer`, in the order of the report.
pub(crate) const BUILT_IN: [&str; 5] = [DIRECT, OURS, "slirp4netns", "pasta", "socat"];
/// No tunnel: the parent machine's own network.
pub(crate) const DIRECT: &str = "direct";
/// Both daemons.
pub(crate) const OURS: &str = "ours";

/// Our daemon in the enclave.
pub(crate) const ENCLAVE: &str = "enclave-netd";
/// Our daemon on the parent.
pub(crate) const HOST: &str = "host-netd";

/// How a subject comes to be.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// The client runs in the parent machine.
    Direct,
    /// Both daemons.
    Ours,
    /// A namespace that slirp4netns serves.
    Slirp4netns,
    /// A namespace that pasta serves.
    Pasta,
    /// A pair of socat for each port.
    Socat,
    /// A namespace that a command serves.
    Peer(String),
}

/// One way to the internet.
pub(crate) struct Subject<'b> {
    /// As the report calls it.
    pub(crate) name: String,
    bed: &'b Bed,
    kind: Kind,
    own: Option<Machine>,
    /// The tunnel's processes and what they are called.
    tunnel: Vec<(String, Process)>,
    /// What holds the namespace, if no thread of ours does.
    holder: Option<Process>,
    /// The most memory that those of each name used, in bytes.
    peaks: BTreeMap<String, f64>,
}

impl<'b> Subject<'b> {
    /// Sets it up, and waits until it carries a connection.
    pub(crate) fn start(name: &str, kind: Kind, bed: &'b Bed) -> anyhow::Result<Subject<'b>> {
        let mut subject = Subject {
            name: name.to_owned(),
            bed,
            kind,
            own: None,
            tunnel: Vec::new(),
            holder: None,
            peaks: BTreeMap::new(),
        };
        match subject.kind {
            Kind::Direct | Kind::Ours => {}
            Kind::Pasta => {
                peers::open_tun_to_all(&bed.lab.parent)?;
                let holder = peers::unprivileged_namespace(&bed.lab.parent);
                let pid = peers::wait_for_namespace(&holder)?;
                subject.own = Some(bed.lab.machine_around(name, Some(pid)));
                subject.holder = Some(holder);
            }
            Kind::Slirp4netns | Kind::Socat | Kind::Peer(_) => {
                let machine = bed.lab.machine(name);
                subject.holder = Some(machine.spawn("sleep", &["infinity"]));
                subject.own = Some(machine);
            }
        }
        if let Some(machine) = &subject.own {
            prepare(machine)?;
        }
        subject.start_tunnel()?;
        Ok(subject)
    }

    /// Ends its processes and starts them anew.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.end_tunnel();
        self.start_tunnel()
    }

    fn start_tunnel(&mut self) -> anyhow::Result<()> {
        let bed = self.bed;
        let holder = self.holder.as_ref().map(Process::pid);
        let holder = || holder.context("a subject with a namespace has its holder");
        let own = || self.own.as_ref().context("a subject with a namespace");
        self.tunnel = match &self.kind {
            Kind::Direct => Vec::new(),
            Kind::Ours => {
                let daemons = bed.lab.up();
                vec![
                    (ENCLAVE.to_owned(), daemons.enclave),
                    (HOST.to_owned(), daemons.host),
                ]
            }
            Kind::Slirp4netns => peers::slirp4netns(&bed.lab, holder()?),
            Kind::Pasta => peers::pasta(&bed.lab, holder()?),
            Kind::Socat => peers::socat(&bed.lab, own()?)?,
            Kind::Peer(command) => peers::command(&bed.lab, holder()?, &self.name, command)?,
        };
        self.wait_until_up()
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let server = self.at(port::ECHO);
            let connect = || TcpStream::connect_timeout(&server, TRY_EVERY * 10);
            if self.machine().inside(connect).is_ok() {
                return Ok(());
            }
            for (name, process) in &mut self.tunnel {
                if let Some(status) = process.ended() {
                    bail!("{name} ended with {status}: {}", last_line(&process.log()));
                }
            }
            if begin.elapsed() > START {
                let logs = self.tunnel.iter().map(|(_, process)| process.log());
                let logs = logs.collect::<String>();
                bail!("carries nothing after {START:?}: {}", last_line(&logs));
            }
            std::thread::sleep(TRY_EVERY);
        }
    }

    /// Where its clients run.
    pub(crate) fn machine(&self) -> &Machine {
        match (&self.own, &self.kind) {
            (Some(own), _) => own,
            (None, Kind::Ours) => &self.bed.lab.enclave,
            (None, _) => &self.bed.lab.parent,
        }
    }

    /// What its clients take for the server's address.
    pub(crate) fn server(&self) -> IpAddr {
        match self.kind {
            Kind::Socat => Ipv4Addr::LOCALHOST.into(),
            _ => SERVER,
        }
    }

    /// What its clients take for the address of the server behind the relay.
    pub(crate) fn far_server(&self) -> IpAddr {
        match self.kind {
            Kind::Socat => Ipv4Addr::LOCALHOST.into(),
            _ => wan::SERVER,
        }
    }

    /// The server's address with a port.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server(), port)
    }

    /// Whether it carries single ports only.
    pub(crate) fn is_pairs(&self) -> bool {
        matches!(self.kind, Kind::Socat)
    }

    /// The tunnel's processes with their names; their descendants are theirs.
    pub(crate) fn processes(&self) -> Vec<(&str, i32)> {
        let tunnel = self.tunnel.iter();
        tunnel
            .map(|(name, process)| (name.as_str(), process.pid().as_raw()))
            .collect()
    }

    /// Seconds of processor time that the tunnel has used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        usage::cpu_seconds(&self.pids())
    }

    /// The tunnel's process ids.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.processes().into_iter().map(|(_, pid)| pid).collect()
    }

    /// The most memory that the tunnel's own processes used so far, in bytes, by name.
    pub(crate) fn peaks(&mut self) -> &BTreeMap<String, f64> {
        let mut now = BTreeMap::<String, f64>::new();
        for (name, process) in &self.tunnel {
            let memory = usage::memory(process.pid().as_raw()).unwrap_or_default();
            *now.entry(name.clone()).or_default() += memory.peak;
        }
        for (name, peak) in now {
            let most = self.peaks.entry(name).or_default();
            *most = most.max(peak);
        }
        &self.peaks
    }

    /// Waits until the tunnel has nothing to do, for some seconds at most.
    pub(crate) fn settle(&self) {
        let begin = Instant::now();
        let pids = self.pids();
        while begin.elapsed() < SETTLE {
            let before = usage::fine_cpu_seconds(&pids);
            std::thread::sleep(LOOK);
            if usage::fine_cpu_seconds(&pids) - before < LOOK.as_secs_f64() * IDLE {
                return;
            }
        }
    }

    fn end_tunnel(&mut self) {
        self.peaks();
        // First those that a process started itself: nothing else knows them.
        let own = self.pids();
        for pid in usage::tree(&own).into_iter().filter(|p| !own.contains(p)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        self.tunnel.clear();
    }
}

impl Drop for Subject<'_> {
    fn drop(&mut self) {
        self.end_tunnel();
    }
}

fn last_line(log: &str) -> &str {
    let mut lines = log.lines().rev();
    lines
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing")
}
