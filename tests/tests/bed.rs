//! The bed itself, without a tunnel: what the other tests take for granted of servers, routes and
//! streams. When this fails, look no further.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{
    Answer, Census, Direction, FakeDns, Family, Lab, Pattern, Tap, address, echo_compared,
    echo_server, until,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

#[test]
fn servers_answer() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let _iperf3 = lab.iperf3();
    let _node = lab.internet.node(3000);

    for family in Family::BOTH {
        let url = "https://web.lab.example/";
        let curl = ["-sS", family.flag(), "--cacert", &nginx.ca, url];
        let page = lab.parent.run("curl", &curl).ok();
        assert!(page.starts_with("hello from nginx over HTTP/2.0"), "{page}");
    }
    let page = lab
        .parent
        .run("curl", &["-sS", "http://web.lab.example:3000/"])
        .ok();
    assert!(page.starts_with("hello from node"), "{page}");
    assert!(nginx.access_log().contains("GET / HTTP/2.0"));
    let addresses = lab.parent.run("dig", &["+short", "www.lab.example"]).ok();
    assert!(addresses.ends_with("192.0.2.2\n"), "{addresses}");
}

#[test]
fn routes_fail_in_the_ways_that_they_are_named_for() {
    use nix::libc::{EACCES, EHOSTUNREACH, ENETUNREACH};
    let lab = Lab::new();
    for family in Family::BOTH {
        let errno = |pair| {
            let connect = || {
                TcpStream::connect_timeout(&family.at(pair, 80), Duration::from_secs(2))
                    .map_err(|error| error.raw_os_error())
            };
            lab.parent.inside(connect).unwrap_err()
        };
        assert_eq!(errno(address::ABSENT), Some(EHOSTUNREACH), "{family:?}");
        assert_eq!(errno(address::UNROUTED), Some(ENETUNREACH), "{family:?}");
        // Linux tells the two families apart (net/ipv4/icmp.c, net/ipv6/icmp.c).
        let prohibited = if family == Family::V4 {
            EHOSTUNREACH
        } else {
            EACCES
        };
        assert_eq!(errno(address::PROHIBITED), Some(prohibited), "{family:?}");
        assert_eq!(errno(address::SILENT), None, "{family:?}: a time-out");
    }
    let ping = lab
        .parent
        .run("ping", &["-c1", "-W2", "-t1", "198.51.100.129"]);
    assert!(ping.text().contains("Time to live exceeded"), "{ping}");
}

#[test]
fn the_enclave_is_alone() {
    let lab = Lab::new();
    let devices = lab.enclave.proc_net("dev");
    assert_eq!(
        devices.lines().count(),
        3,
        "two lines of heading and lo: {devices}"
    );
    let error = lab
        .enclave
        .inside(|| TcpStream::connect((address::SERVER[0], 80)))
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENETUNREACH));
}

#[test]
fn machines_have_a_resolv_conf_each_and_the_real_one_is_untouched() {
    let before = std::fs::read("/etc/resolv.conf").ok();
    let lab = Lab::new();
    lab.parent.write_resolv_conf("nameserver 192.0.2.7\n");
    assert_eq!(
        lab.parent.shell("cat /etc/resolv.conf").ok(),
        "nameserver 192.0.2.7\n"
    );
    assert_ne!(lab.enclave.resolv_conf(), lab.parent.resolv_conf());
    assert_eq!(std::fs::read("/etc/resolv.conf").ok(), before);
}

#[test]
fn a_comparison_sees_one_wrong_byte_and_a_missing_one() {
    let pattern = Pattern::new(1);
    let mut bytes = Vec::new();
    pattern.send(&mut bytes, 5_000_000).unwrap();
    assert_eq!(pattern.compare(&mut &bytes[..]).unwrap(), 5_000_000);
    bytes[4_900_000] ^= 1;
    let error = pattern.compare(&mut &bytes[..]).unwrap_err();
    assert!(
        error.to_string().contains("byte 4900000 differs"),
        "{error}"
    );
    bytes[4_900_000] ^= 1;
    bytes.remove(3_000_000);
    assert!(pattern.compare(&mut &bytes[..]).is_err());
    assert!(Pattern::new(2).compare(&mut &bytes[..]).is_err());
}

#[test]
fn an_echo_is_compared_to_its_end() {
    let lab = Lab::new();
    for family in Family::BOTH {
        let server = echo_server(&lab.internet, family.at(address::SERVER, 7));
        let stream = lab.parent.inside(|| TcpStream::connect(server)).unwrap();
        let pattern = Pattern::new(3);
        echo_compared(&stream, &pattern, &pattern, 1_000_003).unwrap();
    }
}

#[test]
fn a_fake_dns_server_says_what_it_is_told() {
    let lab = Lab::new();
    let [at, _] = address::OTHER;
    let dns = FakeDns::new(
        &lab.internet,
        at,
        Answer::Addresses(vec![address::SERVER[0]], 60),
    );
    let dig = || {
        lab.parent
            .run("dig", &["+tries=1", "+time=1", "@192.0.2.3", "x.example"])
    };
    assert!(dig().ok().contains("60\tIN\tA\t192.0.2.2"));
    dns.say(Answer::Code(2));
    assert!(dig().ok().contains("SERVFAIL"));
    assert_eq!(dns.questions(), 2);
    dns.say(Answer::Silence);
    assert_eq!(dig().code(), 9);
}

#[test]
fn a_tap_sees_cuts_and_freezes() {
    let dir = tempfile::tempdir().unwrap();
    let (host_path, tap_path) = (dir.path().join("host"), dir.path().join("tap"));
    let host = UnixListener::bind(&host_path).unwrap();
    let tap = Tap::new(&tap_path, &host_path);
    let mut near = UnixStream::connect(&tap_path).unwrap();
    let (mut far, _) = host.accept().unwrap();
    let mut bytes = [0; 5];

    near.write_all(b"hello").unwrap();
    far.read_exact(&mut bytes).unwrap();
    assert!(tap.saw(b"hell") && !tap.saw(b"heaven"));
    assert_eq!(tap.passed(Direction::Up), b"hello");

    tap.freeze();
    far.write_all(b"later").unwrap();
    near.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert_eq!(
        near.read(&mut bytes).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    tap.thaw();
    near.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"later");

    tap.cut();
    assert_eq!(near.read(&mut bytes).unwrap(), 0);
    assert_eq!(far.read(&mut bytes).unwrap(), 0);
}

#[test]
fn a_tap_cuts_at_the_byte_it_is_told_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (host_path, tap_path) = (dir.path().join("host"), dir.path().join("tap"));
    let host = UnixListener::bind(&host_path).unwrap();
    let tap = Tap::new(&tap_path, &host_path);
    for (cut, expected) in [(Some(3), &b"hel"[..]), (Some(0), b""), (None, b"hello")] {
        if let Some(bytes) = cut {
            tap.cut_after(Direction::Up, bytes);
        }
        let mut near = UnixStream::connect(&tap_path).unwrap();
        let (mut far, _) = host.accept().unwrap();
        near.write_all(b"hello").unwrap();
        if cut.is_none() {
            near.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut came = Vec::new();
        far.read_to_end(&mut came).unwrap();
        assert_eq!(came, expected);
    }
}

#[test]
fn a_census_sees_one_file_one_thread_and_one_socket_more() {
    let lab = Lab::new();
    let mut daemons = lab.up_with(&["--publish", "7000/udp"], "");
    let before = Census::of(&lab, &mut daemons);
    assert!(before.beyond(&before).is_empty());
    assert_eq!(before.total("host-netd: thread session"), 1);
    assert_eq!(
        before.total("namespaces"),
        4,
        "a network and a mount one each: {before}"
    );

    let socket = lab
        .parent
        .inside(|| UdpSocket::bind("192.0.2.1:9"))
        .unwrap();
    let other = lab.machine("other");
    let link = lab.link_address();
    let mut second = other.spawn(&lab.binary("enclave-netd"), &["--parent", &link]);
    second.wait_log("ready", 10);
    let after = Census::of(&lab, &mut daemons);

    let beyond = after.beyond(&before).join("\n");
    for what in [
        "parent: udp socket",
        "host-netd: thread session",
        "host-netd: file socket",
    ] {
        assert!(beyond.contains(what), "{what}: {beyond}");
    }
    drop((socket, second));
    Census::assert_no_more_than(&before, 10, &lab, &mut daemons);
}

#[test]
fn nothing_outlives_a_lab() {
    let lab = Lab::new();
    let pid_file = lab.dir().join("pid");
    let line = format!("sleep 1000 & echo $! > {}", pid_file.display());
    lab.parent.shell(&line).ok();
    let pid = std::fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .to_owned();
    let running = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(sleep)") && !stat.contains(") Z")
    };
    // The shell tells the number before the program has taken its place.
    until(5, "the orphan runs", || running().then_some(()));
    let dir = lab.dir().to_owned();
    drop(lab);
    until(5, "the orphan is gone", || (!running()).then_some(()));
    assert!(!dir.exists());
}

#[test]
fn udp_between_machines() {
    let lab = Lab::new();
    for family in Family::BOTH {
        let server = lab
            .internet
            .inside(|| UdpSocket::bind(family.at(address::SERVER, 9000)));
        let server = server.unwrap();
        let client = lab
            .parent
            .inside(|| UdpSocket::bind(family.any(0)))
            .unwrap();
        client
            .send_to(b"datagram", server.local_addr().unwrap())
            .unwrap();
        let mut buffer = [0; 100];
        let (n, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..n], from.ip()),
            (&b"datagram"[..], family.of(address::PARENT))
        );
    }
}
