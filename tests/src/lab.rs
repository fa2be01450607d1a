//! Three machines, and the daemons that join the first to the others.

use crate::machine::{MARK, Machine};
use crate::process::Process;
use crate::tap::Tap;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

const PREFIX: &str = "netd-lab-";
/// How long a daemon may take to be ready, in seconds.
const START: u64 = 20;

/// The addresses of a lab, in both families.
pub mod address {
    use std::net::IpAddr;

    const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d))
    }

    const fn v6(net: u16, host: u16) -> IpAddr {
        IpAddr::V6(std::net::Ipv6Addr::new(
            0x2001, 0xdb8, net, 0, 0, 0, 0, host,
        ))
    }

    const fn inside(host: u16) -> IpAddr {
        IpAddr::V6(std::net::Ipv6Addr::new(
            0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, host,
        ))
    }

    /// The enclave's own.
    pub const ENCLAVE: [IpAddr; 2] = [v4(100, 64, 0, 2), inside(2)];
    /// The gateway, which serves DNS.
    pub const GATEWAY: [IpAddr; 2] = [v4(100, 64, 0, 1), inside(1)];
    /// What stands for the parent's loopback.
    pub const PARENT_LOOPBACK: [IpAddr; 2] = [v4(100, 64, 0, 3), inside(3)];
    /// The parent's own.
    pub const PARENT: [IpAddr; 2] = [v4(192, 0, 2, 1), v6(1, 1)];
    /// The internet's first server.
    pub const SERVER: [IpAddr; 2] = [v4(192, 0, 2, 2), v6(1, 2)];
    /// Another address of the internet.
    pub const OTHER: [IpAddr; 2] = [v4(192, 0, 2, 3), v6(1, 3)];
    /// The DNS server.
    pub const DNS: [IpAddr; 2] = [v4(192, 0, 2, 53), v6(1, 0x53)];
    /// On the parent's own network, and nobody's: host unreachable.
    pub const ABSENT: [IpAddr; 2] = [v4(192, 0, 2, 99), v6(1, 0x99)];
    /// Never answers.
    pub const SILENT: [IpAddr; 2] = [v4(198, 51, 100, 1), v6(2, 1)];
    /// One hop further than the others, and nobody's.
    pub const FAR: [IpAddr; 2] = [v4(198, 51, 100, 129), v6(5, 1)];
    /// Administratively prohibited by the router on the way.
    pub const PROHIBITED: [IpAddr; 2] = [v4(203, 0, 113, 1), v6(3, 1)];
    /// The router on the way has no route.
    pub const UNROUTED: [IpAddr; 2] = [v4(203, 0, 113, 129), v6(4, 1)];
}

/// One of the two IP families; indexes the pairs of [`address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for tests that hold for each.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The one of a pair that is of this family.
    pub fn of(self, pair: [IpAddr; 2]) -> IpAddr {
        pair[self as usize]
    }

    /// The one of a pair, with a port.
    pub fn at(self, pair: [IpAddr; 2], port: u16) -> SocketAddr {
        SocketAddr::new(self.of(pair), port)
    }

    /// The unspecified address with a port, to bind to.
    pub fn any(self, port: u16) -> SocketAddr {
        match self {
            Family::V4 => SocketAddr::from(([0; 4], port)),
            Family::V6 => SocketAddr::from(([0; 16], port)),
        }
    }

    /// What `ping` and `curl` call it.
    pub fn flag(self) -> &'static str {
        match self {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }
}

/// Both daemons, running and joined.
#[derive(Debug)]
pub struct Daemons {
    /// In the enclave, as root. Dropped first, as a machine would go.
    pub enclave: Process,
    /// On the parent, as nobody.
    pub host: Process,
}

/// Three machines.
#[derive(Debug)]
pub struct Lab {
    /// Where enclave-netd and the programs run.
    pub enclave: Machine,
    /// Where host-netd runs.
    pub parent: Machine,
    /// Where the servers run.
    pub internet: Machine,
    name: String,
    dir: TempDir,
    binaries: PathBuf,
    configs: AtomicUsize,
}

impl Default for Lab {
    fn default() -> Self {
        Lab::new()
    }
}

impl Lab {
    /// Makes the machines and the wire between parent and internet; no daemon runs yet.
    ///
    /// # Panics
    /// When not run by root, or a tool is missing.
    pub fn new() -> Lab {
        Lab::with_daemons_of(binaries())
    }

    /// The same, with the daemons of that folder.
    ///
    /// # Panics
    /// As [`Lab::new`].
    pub fn with_daemons_of(binaries: PathBuf) -> Lab {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces and needs root: run `sudo -E scripts/test`"
        );
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        static LABS: AtomicUsize = AtomicUsize::new(0);
        let own = std::process::id();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{own}-{}-{number}", started(own).unwrap_or(0));
        let dir = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir()
            .expect("cannot make a temporary folder");
        open_to_all(dir.path(), 0o755);
        let link = dir.path().join("link");
        fs::create_dir(&link).unwrap();
        open_to_all(&link, 0o777);
        let machine = |role| Machine::new(role, &name, dir.path().join(role));
        let (enclave, parent) = (machine("enclave"), machine("parent"));
        let internet = machine("internet");
        let add = [
            "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns",
        ];
        parent
            .run("ip", &[&add[..], &[&internet.net_path()]].concat())
            .ok();
        let script = servers_dir().join("set-up-machine");
        let script = script.to_str().unwrap();
        for (machine, role) in [
            (&enclave, "enclave"),
            (&parent, "parent"),
            (&internet, "internet"),
        ] {
            machine.run(script, &[role]).ok();
        }
        parent.write_resolv_conf("nameserver 192.0.2.53\n");
        enclave.write_resolv_conf("# the enclave's own\nnameserver 127.0.0.53\n");
        Lab {
            enclave,
            parent,
            internet,
            name,
            dir,
            binaries,
            configs: AtomicUsize::new(0),
        }
    }

    /// Makes a further machine with nothing in its network, as an enclave is before its daemon runs.
    pub fn machine(&self, name: &str) -> Machine {
        self.machine_around(name, None)
    }

    /// The same, around the network namespace of a process if there is one already.
    pub fn machine_around(&self, name: &str, net_of: Option<Pid>) -> Machine {
        let machine = Machine::around(name, &self.name, self.dir().join(name), net_of);
        let script = servers_dir().join("set-up-machine");
        machine.run(script.to_str().unwrap(), &["enclave"]).ok();
        machine
    }

    /// Ends all that runs in its machines and removes its folder: for one who is about to exit
    /// without dropping it.
    pub fn abandon(&self) -> impl Fn() + Send + Sync + 'static {
        let (name, dir) = (self.name.clone(), self.dir().to_owned());
        move || {
            end_marked(|mark| mark == name);
            let _ = fs::remove_dir_all(&dir);
        }
    }

    /// The lab's name, which all its processes carry.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The unix socket that host-netd listens on.
    pub fn link(&self) -> PathBuf {
        self.dir().join("link/host.sock")
    }

    /// host-netd's address, as its option takes it.
    pub fn link_address(&self) -> String {
        format!("unix:{}", self.link().display())
    }

    /// A daemon's binary, where nobody may run it.
    ///
    /// # Panics
    /// When it is not built.
    pub fn binary(&self, name: &str) -> String {
        let here = self.dir().join(name);
        if !here.exists() {
            let built = self.binaries.join(name);
            assert!(
                built.exists(),
                "{} is missing: run `cargo build --workspace` first, or set NETD_BIN_DIR",
                built.display()
            );
            // Where it was built may be closed to nobody.
            if fs::hard_link(&built, &here).is_err() {
                fs::copy(&built, &here).expect("cannot copy a daemon");
            }
        }
        here.to_str().unwrap().to_owned()
    }

    /// Lets everybody connect to host-netd: what connects in an enclave with init is neither root
    /// nor host-netd's user.
    pub fn open_link(&self) {
        open_to_all(&self.link(), 0o777);
    }

    /// Writes a configuration file and tells its path.
    pub fn config(&self, text: &str) -> String {
        let number = self.configs.fetch_add(1, Ordering::Relaxed);
        let path = self.dir().join(format!("config-{number}.toml"));
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Starts host-netd as nobody, and waits until it listens.
    pub fn start_host(&self, arguments: &[&str]) -> Process {
        let link = self.link_address();
        let arguments = [&["--listen", &link], arguments].concat();
        let mut host = self
            .parent
            .spawn_as_nobody(&self.binary("host-netd"), &arguments);
        host.wait_log("listening", START);
        host
    }

    /// Starts enclave-netd with a configuration, towards any unix socket; waits for nothing.
    pub fn spawn_enclave(&self, parent: &Path, config: &str, command: &[&str]) -> Process {
        self.spawn_enclave_on(&self.enclave, parent, config, command)
    }

    /// The same, on a further [`machine`](Lab::machine).
    pub fn spawn_enclave_on(
        &self,
        machine: &Machine,
        parent: &Path,
        config: &str,
        command: &[&str],
    ) -> Process {
        let parent = format!("unix:{}", parent.display());
        let config = self.config(config);
        let mut arguments = vec!["--config", &config, "--parent", &parent];
        if !command.is_empty() {
            arguments.push("--");
            arguments.extend(command);
        }
        machine.spawn(&self.binary("enclave-netd"), &arguments)
    }

    /// Starts enclave-netd and waits until it is ready.
    pub fn start_enclave(&self, config: &str) -> Process {
        let mut enclave = self.spawn_enclave(&self.link(), config, &[]);
        enclave.wait_log("ready", START);
        enclave
    }

    /// Starts both daemons as they come.
    pub fn up(&self) -> Daemons {
        self.up_with(&[], "")
    }

    /// Starts both daemons, host-netd with arguments and enclave-netd with a configuration.
    pub fn up_with(&self, host: &[&str], config: &str) -> Daemons {
        let host = self.start_host(host);
        Daemons {
            enclave: self.start_enclave(config),
            host,
        }
    }

    /// Starts both daemons with a tap on the link between them.
    pub fn up_tapped(&self, host: &[&str], config: &str) -> (Daemons, Tap) {
        let host = self.start_host(host);
        let path = self.dir().join("link/tap.sock");
        let tap = Tap::new(&path, &self.link());
        let mut enclave = self.spawn_enclave(&path, config, &[]);
        enclave.wait_log("ready", START);
        (Daemons { enclave, host }, tap)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        end_marked(|mark| mark == self.name);
        if std::thread::panicking() && std::env::var_os("NETD_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept: {}", self.dir().display());
        }
    }
}

/// The folder with the servers' configurations.
pub(crate) fn servers_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("servers")
}

/// Where the daemons were built: beside this test, unless the environment says otherwise.
fn binaries() -> PathBuf {
    if let Some(dir) = std::env::var_os("NETD_BIN_DIR") {
        return dir.into();
    }
    let own = std::env::current_exe().expect("a test has a path");
    own.ancestors()
        .nth(2)
        .expect("target/PROFILE/deps/test")
        .to_owned()
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// When a process started, in ticks since boot: tells it from a later one with its id.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22; the second may hold blanks and ends with the last parenthesis.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// Whether a lab's test still runs.
fn is_alive(name: &str) -> bool {
    let mut parts = name
        .trim_start_matches(PREFIX)
        .split('-')
        .map(str::parse::<u64>);
    match (parts.next(), parts.next()) {
        (Some(Ok(pid)), Some(Ok(start))) => {
            u32::try_from(pid).ok().and_then(started) == Some(start)
        }
        // Not a name of ours: not ours to judge.
        _ => true,
    }
}

/// Ends what labs of dead tests left, and removes their folders.
fn sweep() {
    end_marked(|mark| mark.starts_with(PREFIX) && !is_alive(mark));
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && !is_alive(&name) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Kills every process whose mark is of those.
fn end_marked(is_meant: impl Fn(&str) -> bool) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let mark = environment
            .split(|&byte| byte == 0)
            .find_map(|variable| variable.strip_prefix(format!("{MARK}=").as_bytes()))
            .map(String::from_utf8_lossy);
        if mark.is_some_and(|mark| is_meant(&mark)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
