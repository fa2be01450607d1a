//! What enclave-netd does inside: the interface, the resolver, the command.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Lab, until};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

#[test]
fn the_interface_is_as_designed_and_goes_with_the_process() {
    let lab = Lab::new();
    let mut daemons = lab.up();
    let link = lab.enclave.run("ip", &["-d", "link", "show", "netd0"]).ok();
    assert!(
        link.contains("mtu 1500") && link.contains("tun type tun"),
        "{link}"
    );
    let addresses = lab.enclave.run("ip", &["-o", "addr", "show"]).ok();
    for address in [
        "100.64.0.2/30",
        "fd00:6e65:7464::2/64",
        "127.0.0.1/8",
        "::1/128",
    ] {
        assert!(addresses.contains(address), "{address}: {addresses}");
    }
    let routes = lab.enclave.shell("ip route; ip -6 route").ok();
    assert!(routes.contains("default via 100.64.0.1"), "{routes}");
    assert!(routes.contains("default via fd00:6e65:7464::1"), "{routes}");

    assert!(daemons.enclave.terminate().success());
    assert!(!lab.enclave.proc_net("dev").contains("netd0"));
}

#[test]
fn resolv_conf_of_every_kind_is_pointed_at_the_gateway_and_put_back() {
    const OLD: &str = "# old\nnameserver 127.0.0.53\n";
    // What makes the kind, and what tells it.
    let kinds = [
        (
            "plain",
            format!("printf '{OLD}' > /etc/resolv.conf"),
            "stat -c %F /etc/resolv.conf",
        ),
        (
            "link",
            format!("printf '{OLD}' > /etc/stub; ln -sf stub /etc/resolv.conf"),
            "readlink /etc/resolv.conf; cat /etc/stub",
        ),
        (
            "mount",
            format!("printf '{OLD}' > /etc/other; mount --bind /etc/other /etc/resolv.conf"),
            "cat /etc/other; grep -c resolv.conf /proc/self/mounts",
        ),
        ("missing", "rm /etc/resolv.conf".to_owned(), "true"),
    ];
    for (kind, make, tell) in kinds {
        let lab = Lab::new();
        lab.enclave.shell(&make).ok();
        let look = format!("{tell}; ls -l /etc/resolv.conf | cut -c1-10; cat /etc/resolv.conf");
        let before = lab.enclave.shell(&look).text();
        let files = lab.enclave.shell("ls -a /etc").ok();
        let mut daemons = lab.up();

        let ours = lab.enclave.resolv_conf();
        assert!(ours.contains("nameserver 100.64.0.1"), "{kind}: {ours}");
        assert!(
            ours.contains("nameserver fd00:6e65:7464::1"),
            "{kind}: {ours}"
        );
        assert!(!ours.contains("127.0.0.53"), "{kind}: {ours}");

        assert!(daemons.enclave.terminate().success());
        assert_eq!(lab.enclave.shell(&look).text(), before, "{kind}");
        assert_eq!(
            lab.enclave.shell("ls -a /etc").ok(),
            files,
            "{kind}: something was left"
        );
    }
}

#[test]
fn resolv_conf_is_left_alone_when_told_so() {
    let lab = Lab::new();
    let before = lab.enclave.resolv_conf();
    let _daemons = lab.up_with(&[], "[dns]\nresolv_conf = false\n");
    assert_eq!(lab.enclave.resolv_conf(), before);
}

#[test]
fn the_commands_status_is_the_daemons() {
    let lab = Lab::new();
    let _host = lab.start_host(&[]);
    for (line, status) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 128 + 15)] {
        let mut enclave = lab.spawn_enclave(&lab.link(), "", &["sh", "-c", line]);
        assert_eq!(
            enclave.wait(20).code(),
            Some(status),
            "{line}: {}",
            enclave.log()
        );
    }
    let mut enclave = lab.spawn_enclave(&lab.link(), "", &["/no/such/program"]);
    assert_eq!(enclave.wait(20).code(), Some(127), "{}", enclave.log());
    assert!(
        enclave.log().contains("/no/such/program"),
        "{}",
        enclave.log()
    );
}

#[test]
fn the_command_runs_when_the_network_is_up() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let _host = lab.start_host(&[]);
    let curl = [
        "curl",
        "-sS",
        "--cacert",
        &nginx.ca,
        "https://web.lab.example/",
    ];
    let mut enclave = lab.spawn_enclave(&lab.link(), "", &curl);
    assert_eq!(enclave.wait(20).code(), Some(0), "{}", enclave.log());
    assert!(
        enclave.log().contains("hello from nginx"),
        "{}",
        enclave.log()
    );
}

#[test]
fn signals_are_passed_on_to_the_command() {
    let lab = Lab::new();
    let _host = lab.start_host(&[]);
    let signals = [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGUSR2, "USR2"),
    ];
    for (signal, name) in signals {
        let line =
            format!("trap 'echo got it; exit 9' {name}; echo begun; while :; do sleep 0.1; done");
        let mut enclave = lab.spawn_enclave(&lab.link(), "", &["bash", "-c", &line]);
        enclave.wait_log("begun", 20);
        enclave.signal(signal);
        assert_eq!(
            enclave.wait(10).code(),
            Some(9),
            "{name}: {}",
            enclave.log()
        );
        assert!(
            enclave.log().contains("got it"),
            "{name}: {}",
            enclave.log()
        );
    }
}

#[test]
fn the_command_does_not_outlive_the_daemon() {
    let lab = Lab::new();
    let _host = lab.start_host(&[]);
    let pid_file = lab.dir().join("command.pid");
    let line = format!(
        "echo $$ > {}; echo begun; exec sleep 1000",
        pid_file.display()
    );
    let mut enclave = lab.spawn_enclave(&lab.link(), "", &["sh", "-c", &line]);
    enclave.wait_log("begun", 20);
    let pid = std::fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .to_owned();
    enclave.signal(Signal::SIGTERM);
    let status = enclave.wait(15);
    assert!(
        status.code() == Some(128 + 15) || status.signal() == Some(15),
        "{status}"
    );
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z"), "it lives: {stat}");
}

#[test]
fn the_service_manager_is_told_when_the_link_stands() {
    let lab = Lab::new();
    let path = lab.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    let (binary, parent) = (lab.binary("enclave-netd"), lab.link_address());
    let mut enclave = lab
        .enclave
        .spawn("env", &[&notify, &binary, "--parent", &parent]);
    enclave.wait_log("no link to the parent", 10);
    let mut buffer = [0; 100];
    assert!(
        socket.recv(&mut buffer).is_err(),
        "told before the link stood"
    );
    let _host = lab.start_host(&[]);
    let n = until(5, "READY=1 comes", || socket.recv(&mut buffer).ok());
    assert_eq!(buffer[..n].trim_ascii_end(), b"READY=1");
}

#[test]
fn privileges_are_given_up() {
    let lab = Lab::new();
    let daemons = lab.up();
    let status = format!("/proc/{}/status", daemons.enclave.pid());
    let status = std::fs::read_to_string(status).unwrap();
    let effective = status
        .lines()
        .find(|line| line.starts_with("CapEff:"))
        .unwrap();
    let mask = u64::from_str_radix(effective.split_whitespace().nth(1).unwrap(), 16).unwrap();
    // CAP_SYS_ADMIN, CAP_SYS_MODULE, CAP_SYS_PTRACE, CAP_NET_RAW, CAP_SYS_BOOT.
    for (name, bit) in [
        ("admin", 21),
        ("module", 16),
        ("ptrace", 19),
        ("raw", 13),
        ("boot", 22),
    ] {
        assert_eq!(mask >> bit & 1, 0, "{name} is kept: {effective}");
    }
}
