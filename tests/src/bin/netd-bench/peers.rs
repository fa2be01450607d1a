//! How the other subjects are set up: each as its own manual says, with its defaults where no
//! reason is given.

use crate::bed;
use anyhow::{Context, bail};
use netd_tests::{Lab, Machine, Process};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

type Tunnel = Vec<(String, Process)>;

/// Serves the namespace of a process from the parent machine. 65520 is what its users (rootless
/// container engines) set; its own default of 1500 is several times slower.
pub(crate) fn slirp4netns(lab: &Lab, holder: Pid) -> Tunnel {
    let pid = holder.to_string();
    let options = ["--configure", "--mtu=65520", "--disable-host-loopback"];
    let arguments = [&options[..], &[&pid, "tap0"]].concat();
    named("slirp4netns", lab.parent.spawn("slirp4netns", &arguments))
}

/// Gives nobody in the parent machine the tun device, with the mode that udev gives it everywhere:
/// without udev it may be root's alone.
pub(crate) fn open_tun_to_all(parent: &Machine) -> anyhow::Result<()> {
    const LINE: &str = "[ $(stat -c %a /dev/net/tun) != 666 ] || exit 0
        mkdir -p $0 && mount -t tmpfs tun $0 && mknod -m 666 $0/tun c 10 200 &&
        chmod 666 $0/tun && mount --bind $0/tun /dev/net/tun";
    let dir = parent.dir().join("tun");
    let dir = dir.to_str().context("not a path of text")?;
    bed::finish(parent, 5, "sh", &["-c", LINE, dir])?;
    Ok(())
}

/// Serves the namespace of a process from the parent machine, as nobody: it gives up being root
/// anyway, and then cannot enter a namespace that root owns. No port is forwarded to or from the
/// parent; its MTU is 65520 by default.
pub(crate) fn pasta(lab: &Lab, holder: Pid) -> Tunnel {
    let pid = holder.to_string();
    let ports = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];
    let options = ["--foreground", "--config-net", "--no-map-gw"];
    let arguments = [&options[..], &ports, &[&pid]].concat();
    named("pasta", lab.parent.spawn_as_nobody("pasta", &arguments))
}

/// A process of nobody's with a user and a network namespace of its own.
pub(crate) fn unprivileged_namespace(parent: &Machine) -> Process {
    let options = ["--user", "--map-root-user", "--net", "sleep", "infinity"];
    parent.spawn_as_nobody("unshare", &options)
}

/// Waits until a process has a network namespace of its own, and is the program that it will be.
pub(crate) fn wait_for_namespace(holder: &Process) -> anyhow::Result<Pid> {
    let begin = Instant::now();
    let pid = holder.pid();
    loop {
        // Only this program calls nothing more: before it, the namespace is not complete.
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if program.trim() == "sleep" {
            return Ok(pid);
        }
        if begin.elapsed() > Duration::from_secs(5) {
            bail!("no user namespace for nobody: {}", holder.log().trim());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A pair for each port, joined by a unix socket, which stands for vsock.
pub(crate) fn socat(lab: &Lab, enclave: &Machine) -> anyhow::Result<Tunnel> {
    bed::finish(enclave, 5, "ip", &["link", "set", "lo", "up"])?;
    let mut tunnel = Vec::new();
    for (port, server) in bed::ports() {
        let path = lab.dir().join(format!("link/socat-{port}"));
        let path = path.to_str().context("not a path of text")?;
        let _ = fs::remove_file(path);
        let far = [format!("UNIX-LISTEN:{path},fork"), format!("TCP:{server}")];
        let far = lab
            .parent
            .spawn("socat", &far.each_ref().map(String::as_str));
        let near = format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr");
        let near = [near, format!("UNIX-CONNECT:{path}")];
        let near = enclave.spawn("socat", &near.each_ref().map(String::as_str));
        wait_for_file(path)?;
        tunnel.push((format!("socat enclave {port}"), near));
        tunnel.push((format!("socat parent {port}"), far));
    }
    Ok(tunnel)
}

fn wait_for_file(path: &str) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !Path::new(path).exists() {
        if begin.elapsed() > Duration::from_secs(5) {
            bail!("socat did not make {path}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whatever the caller says.
pub(crate) fn command(lab: &Lab, enclave: Pid, name: &str, line: &str) -> anyhow::Result<Tunnel> {
    let dir = lab.dir().join(format!("{name}-files"));
    fs::create_dir_all(&dir)?;
    let parent = lab.parent.spawn("sleep", &["infinity"]);
    let variables = [
        format!("NETD_BENCH_ENCLAVE_PID={enclave}"),
        format!("NETD_BENCH_PARENT_PID={}", parent.pid()),
        format!("NETD_BENCH_DIR={}", dir.display()),
    ];
    let variables = variables.each_ref().map(String::as_str);
    let arguments = [&variables[..], &["sh", "-c", line]].concat();
    let process = lab.parent.spawn("env", &arguments);
    Ok(vec![
        (name.to_owned(), process),
        ("its view of the parent".to_owned(), parent),
    ])
}

fn named(name: &str, process: Process) -> Tunnel {
    vec![(name.to_owned(), process)]
}
