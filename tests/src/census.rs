//! Counts what daemons and machines hold, so that what a fault leaves behind is seen.

use crate::lab::{Daemons, Lab};
use crate::machine::{MARK, Machine};
use crate::process::Process;
use crate::wait::{Deadline, LOOK_EVERY};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::Path;

/// How long a daemon may take to write its counters, in seconds.
const REPORT: u64 = 10;

/// How many of each thing there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<String, usize>);

impl Census {
    /// Of a lab and its daemons: threads and open files by kind of each daemon, flows of host-netd
    /// (0 when it has no session), sockets of each machine by state without those in TIME-WAIT,
    /// namespaces of the lab, and files in the link's folder and the enclave's `/etc`.
    pub fn of(lab: &Lab, daemons: &mut Daemons) -> Census {
        let mut census = Census::default();
        for (name, pid) in [
            ("enclave-netd", daemons.enclave.pid()),
            ("host-netd", daemons.host.pid()),
        ] {
            census.process(name, pid);
        }
        census.set("flows", daemons.host.flows());
        for (name, machine) in [
            ("enclave", &lab.enclave),
            ("parent", &lab.parent),
            ("internet", &lab.internet),
        ] {
            for file in ["tcp", "tcp6", "udp", "udp6", "icmp", "icmp6", "raw", "raw6"] {
                census.sockets(name, machine, file);
            }
        }
        census.set("namespaces", namespaces(lab.name()).len());
        let link = lab.link();
        let link = link.parent().expect("it lies in a folder");
        census.files("link", link);
        lab.enclave
            .inside(|| census.files("enclave's /etc", Path::new("/etc")));
        census
    }

    fn set(&mut self, what: &str, count: usize) {
        self.0.insert(what.to_owned(), count);
    }

    fn count(&mut self, what: String) {
        *self.0.entry(what).or_default() += 1;
    }

    fn process(&mut self, name: &str, pid: Pid) {
        let kinds = socket_kinds(pid);
        for entry in entries(&format!("/proc/{pid}/fd")) {
            let Ok(target) = fs::read_link(entry) else {
                continue;
            };
            let target = target.to_string_lossy();
            let kind = match target.split_once(":[") {
                // A link's socket was made in the enclave's network, and has no kind here.
                Some(("socket", inode)) => kinds
                    .get(inode.trim_end_matches(']'))
                    .map_or("socket", String::as_str),
                Some((kind, _)) if !kind.starts_with("anon_inode") => kind,
                // Each process of a lab has a log of its own.
                _ if target.ends_with(".log") => "log",
                _ => &target,
            };
            self.count(format!("{name}: file {kind}"));
        }
        /// Of tokio's pool for work that blocks: they come and go with the work.
        const POOL: &str = "tokio-rt-worker";
        for thread in entries(&format!("/proc/{pid}/task")) {
            let own = fs::read_to_string(format!("{thread}/comm")).unwrap_or_default();
            let own = own.trim_end();
            // A session's thread carries the session's number.
            let kind = own.split(' ').next().unwrap_or_default();
            if !own.is_empty() && own != POOL {
                self.count(format!("{name}: thread {kind}"));
            }
        }
    }

    fn sockets(&mut self, name: &str, machine: &Machine, file: &str) {
        /// See `enum` in include/net/tcp_states.h.
        const TIME_WAIT: &str = "06";
        let table = machine.proc_net(file);
        let states = table.lines().skip(1);
        let states = states.filter_map(|line| line.split_whitespace().nth(3));
        let is_tcp = file.starts_with("tcp");
        for state in states.filter(|&state| !is_tcp || state != TIME_WAIT) {
            self.count(format!("{name}: {file} socket in state {state}"));
        }
    }

    fn files(&mut self, name: &str, folder: &Path) {
        let count = fs::read_dir(folder).map_or(0, Iterator::count);
        self.set(&format!("files in {name}"), count);
    }

    /// What there is more of than before, one line each.
    pub fn beyond(&self, before: &Census) -> Vec<String> {
        let more = self.0.iter().filter_map(|(what, &now)| {
            let then = before.0.get(what).copied().unwrap_or(0);
            (now > then).then(|| format!("{what}: {now}, was {then}"))
        });
        more.collect()
    }

    /// How many there are of all whose description begins so.
    pub fn total(&self, beginning: &str) -> usize {
        let all = self.0.iter();
        let those = all.filter(|(what, _)| what.starts_with(beginning));
        those.map(|(_, count)| count).sum()
    }

    /// Counts until there is no more of anything than before, for some seconds at most, and tells
    /// the last count.
    pub fn settled(before: &Census, seconds: u64, mut count: impl FnMut() -> Census) -> Census {
        let deadline = Deadline::after(seconds);
        loop {
            let now = count();
            if now.beyond(before).is_empty() || deadline.is_over() {
                return now;
            }
            std::thread::sleep(LOOK_EVERY * 40);
        }
    }

    /// Asserts that there is no more of anything than before, within some seconds.
    ///
    /// # Panics
    /// When there is; with what it is.
    #[track_caller]
    pub fn assert_no_more_than(before: &Census, seconds: u64, lab: &Lab, daemons: &mut Daemons) {
        let after = Census::settled(before, seconds, || Census::of(lab, daemons));
        let beyond = after.beyond(before);
        assert!(beyond.is_empty(), "left over: {beyond:#?}");
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.0.iter();
        all.try_for_each(|(what, count)| writeln!(f, "{count:>6}  {what}"))
    }
}

impl Process {
    /// The flows of all sessions of a host-netd, as it counts them itself.
    ///
    /// # Panics
    /// When it does not answer SIGUSR1.
    pub fn flows(&mut self) -> usize {
        const LINE: &str = " counters ";
        let before = self.log().matches(LINE).count();
        // A session that has begun and not ended answers; the log tells how many there are.
        let log = self.log();
        let sessions = log.matches("session started").count();
        let ended = log.matches("session ended").count();
        let sessions = sessions.saturating_sub(ended);
        if sessions == 0 {
            return 0;
        }
        self.signal(Signal::SIGUSR1);
        self.wait_log_times(LINE, before + sessions, REPORT);
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains(LINE)).skip(before);
        let flows = lines.filter_map(|line| {
            let (_, rest) = line.split_once(" flows=")?;
            rest.split(' ').next()?.parse::<usize>().ok()
        });
        flows.sum()
    }
}

/// The network and mount namespaces that processes of a lab are in or hold.
fn namespaces(lab: &str) -> BTreeSet<String> {
    let mark = format!("{MARK}={lab}").into_bytes();
    let mut found = BTreeSet::new();
    for process in entries("/proc") {
        let name = process.rsplit('/').next().unwrap_or_default();
        let is_of_lab = || {
            let environment = fs::read(format!("{process}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|one| one == mark)
        };
        if !name.starts_with(|c: char| c.is_ascii_digit()) || !is_of_lab() {
            continue;
        }
        let held = entries(&format!("{process}/fd"));
        let inside = ["net", "mnt"].map(|kind| format!("{process}/ns/{kind}"));
        let links = held.into_iter().chain(inside);
        let links = links.filter_map(|link| Some(fs::read_link(link).ok()?.display().to_string()));
        found.extend(links.filter(|to| to.starts_with("net:[") || to.starts_with("mnt:[")));
    }
    found
}

/// What each socket of a process's network is, by its inode.
fn socket_kinds(pid: Pid) -> HashMap<String, String> {
    // Where the inode stands in a line.
    const TABLES: [(&str, usize); 10] = [
        ("tcp", 9),
        ("tcp6", 9),
        ("udp", 9),
        ("udp6", 9),
        ("icmp", 9),
        ("icmp6", 9),
        ("raw", 9),
        ("raw6", 9),
        ("unix", 6),
        ("netlink", 9),
    ];
    let mut kinds = HashMap::new();
    for (table, field) in TABLES {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            if let Some(inode) = line.split_whitespace().nth(field) {
                kinds.insert(inode.to_owned(), format!("{table} socket"));
            }
        }
    }
    kinds
}

fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().display().to_string())
        .collect()
}
