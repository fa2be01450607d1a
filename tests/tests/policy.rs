//! What may be reached: closed classes, and rules of both sides.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Daemons, Family, Lab, address, connect, echo_server, until};
use nix::libc::{EACCES, ECONNREFUSED, EHOSTUNREACH};
use nix::sys::signal::Signal;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How often host-netd refused for a reason, as it tells on SIGUSR1.
fn denied(daemons: &mut Daemons, reason: &str) -> u64 {
    let before = daemons.host.log().len();
    daemons.host.signal(Signal::SIGUSR1);
    until(5, "host-netd reports its counters", || {
        let log = daemons.host.log();
        let report = log.get(before..)?;
        report.contains("drops").then(|| {
            let count = report.split(&format!("{reason}=")).nth(1);
            count.map_or(0, |rest| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().unwrap()
            })
        })
    })
}

/// What "forbidden" is to a program (RFC 1812 and 4443; Linux tells the families apart).
fn forbidden(family: Family) -> i32 {
    if family == Family::V4 {
        EHOSTUNREACH
    } else {
        EACCES
    }
}

fn tcp_errno(lab: &Lab, to: SocketAddr) -> Option<i32> {
    connect(&lab.enclave, to, 3)
        .err()
        .and_then(|error| error.raw_os_error())
}

fn udp_errno(lab: &Lab, to: SocketAddr) -> Option<i32> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = lab.enclave.inside(|| UdpSocket::bind(any)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    socket.connect(to).unwrap();
    socket.send(b"x").unwrap();
    socket.recv(&mut [0; 10]).unwrap_err().raw_os_error()
}

#[test]
fn what_is_closed_is_refused_told_and_counted() {
    let lab = Lab::new();
    let mut daemons = lab.up();
    // Services that would answer.
    echo_server(&lab.parent, Family::V6.any(7)); // both families
    let imds: [IpAddr; 2] = [
        "169.254.169.254".parse().unwrap(),
        "fd00:ec2::254".parse().unwrap(),
    ];
    for family in Family::BOTH {
        let mut closed = vec![
            (address::PARENT_LOOPBACK, "denied_loopback"),
            (address::PARENT, "denied_own_address"),
        ];
        if family == Family::V4 {
            closed.push((imds, "denied_link_local"));
        }
        for (pair, reason) in closed {
            let to = family.at(pair, 7);
            assert_eq!(tcp_errno(&lab, to), Some(forbidden(family)), "tcp {to}");
            let after_tcp = denied(&mut daemons, reason);
            assert!(after_tcp >= 1, "{reason} of {to} is not counted");
            assert_eq!(udp_errno(&lab, to), Some(forbidden(family)), "udp {to}");
            assert!(
                denied(&mut daemons, reason) > after_tcp,
                "{reason} of udp {to}"
            );
            let ping = ["-n", "-c1", "-W2", &to.ip().to_string()];
            let done = lab.enclave.run("ping", &ping);
            assert!(
                done.code() == 1 && done.stdout.contains("+1 errors"),
                "{done}"
            );
        }
    }
}

#[test]
fn multicast_and_broadcast_do_not_leave() {
    let lab = Lab::new();
    let daemons = lab.up();
    // Both are visible on the parent's wire if they leave.
    let pcap = lab.dir().join("wire.pcap");
    let arguments = [
        "-i",
        "veth0",
        "-U",
        "-w",
        pcap.to_str().unwrap(),
        "udp port 5353",
    ];
    let mut tcpdump = lab.parent.spawn("tcpdump", &arguments);
    tcpdump.wait_log("listening on", 10);
    let send = |any: &str, to: &str| {
        let socket = lab.enclave.inside(|| UdpSocket::bind(any)).unwrap();
        socket.set_broadcast(true).unwrap();
        // The kernel of the enclave may refuse it by itself.
        let _ = socket.send_to(b"x", to.parse::<SocketAddr>().unwrap());
    };
    send("0.0.0.0:0", "224.0.0.251:5353");
    send("0.0.0.0:0", "239.1.2.3:5353");
    send("0.0.0.0:0", "255.255.255.255:5353");
    // The enclave's own guard counts them.
    until(5, "all three are counted", || {
        daemons.enclave.signal(Signal::SIGUSR1);
        let log = daemons.enclave.log();
        log.contains("out_destination=3").then_some(())
    });
    // Something that does leave: what came before it would have, too.
    send("0.0.0.0:0", "192.0.2.3:5353");
    until(5, "an ordinary datagram is on the wire", || {
        let captured = std::fs::read(&pcap).unwrap_or_default();
        captured
            .windows(4)
            .any(|w| w == [192, 0, 2, 3])
            .then_some(())
    });
    let captured = std::fs::read(&pcap).unwrap();
    for group in [[224, 0, 0, 251], [239, 1, 2, 3], [255, 255, 255, 255]] {
        assert!(!captured.windows(4).any(|w| w == group), "{group:?} left");
    }
}

#[test]
fn a_rule_opens_the_parents_loopback_and_nothing_beside() {
    let lab = Lab::new();
    let allow = [
        "--allow",
        "tcp 100.64.0.3:7",
        "--allow",
        "tcp [fd00:6e65:7464::3]:7",
    ];
    let mut daemons = lab.up_with(&allow, "");
    for family in Family::BOTH {
        let loopback: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        echo_server(&lab.parent, family.at(loopback, 7));
        echo_server(&lab.parent, family.at(loopback, 8));
        assert_eq!(
            tcp_errno(&lab, family.at(address::PARENT_LOOPBACK, 7)),
            None,
            "{family:?}"
        );
        let beside = family.at(address::PARENT_LOOPBACK, 8);
        assert_eq!(tcp_errno(&lab, beside), Some(forbidden(family)));
        assert_eq!(
            tcp_errno(&lab, family.at(address::PARENT, 7)),
            Some(forbidden(family))
        );
    }
    assert_eq!(denied(&mut daemons, "denied_loopback"), 2);
}

#[test]
fn rules_of_the_operator_in_their_order() {
    let lab = Lab::new();
    let rules = [
        &["--allow", "tcp 192.0.2.2:7"][..],
        &["--deny", "192.0.2.0/25", "--deny", "2001:db8:1::3"],
        &["--allow", "tcp 169.254.169.254:80"],
    ]
    .concat();
    let mut daemons = lab.up_with(&rules, "");
    for family in Family::BOTH {
        for pair in [address::SERVER, address::OTHER] {
            echo_server(&lab.internet, family.at(pair, 7));
            echo_server(&lab.internet, family.at(pair, 8));
        }
    }
    let errno = |to: &str| tcp_errno(&lab, to.parse().unwrap());
    assert_eq!(errno("192.0.2.2:7"), None);
    assert_eq!(errno("192.0.2.2:8"), Some(EHOSTUNREACH));
    assert_eq!(errno("192.0.2.3:7"), Some(EHOSTUNREACH));
    assert_eq!(errno("[2001:db8:1::2]:8"), None);
    assert_eq!(errno("[2001:db8:1::3]:8"), Some(EACCES));
    assert_eq!(denied(&mut daemons, "denied_by_rule"), 3);
    // IMDS, opened.
    lab.parent
        .shell("ip addr add 169.254.169.254/32 dev lo")
        .ok();
    echo_server(&lab.parent, "169.254.169.254:80".parse().unwrap());
    assert_eq!(errno("169.254.169.254:80"), None);
}

#[test]
fn rules_of_the_enclave_hold_whatever_the_host_permits() {
    let lab = Lab::new();
    let config = r#"rules = ["allow tcp 192.0.2.2:7", "deny 192.0.2.0/24", "deny udp *:9"]"#;
    let (_daemons, tap) = lab.up_tapped(&[], config);
    for pair in [address::SERVER, address::OTHER] {
        echo_server(&lab.internet, Family::V4.at(pair, 7));
    }
    echo_server(&lab.internet, Family::V6.at(address::SERVER, 8));
    let errno = |to: &str| tcp_errno(&lab, to.parse().unwrap());
    assert_eq!(errno("192.0.2.2:7"), None);
    assert_eq!(errno("192.0.2.3:7"), Some(EHOSTUNREACH));
    assert_eq!(errno("[2001:db8:1::2]:8"), None);
    assert_eq!(
        udp_errno(&lab, "[2001:db8:1::2]:9".parse().unwrap()),
        Some(EACCES)
    );
    assert_eq!(
        udp_errno(&lab, "[2001:db8:1::2]:10".parse().unwrap()),
        Some(ECONNREFUSED)
    );
    assert!(tap.saw(&[192, 0, 2, 2]), "the tap works");
    assert!(!tap.saw(&[192, 0, 2, 3]), "it never came to the link");
}

#[test]
fn a_rule_by_name_follows_dns() {
    let lab = Lab::new();
    let _unbound = lab.unbound();
    let rules = ["--allow", "tcp web.lab.example:7", "--deny", "192.0.2.0/30"];
    let _daemons = lab.up_with(&rules, "");
    for pair in [address::SERVER, address::OTHER] {
        echo_server(&lab.internet, Family::V4.at(pair, 7));
    }
    let errno = |to: &str| tcp_errno(&lab, to.parse().unwrap());
    assert_eq!(
        errno("192.0.2.2:7"),
        Some(EHOSTUNREACH),
        "before the name was looked up"
    );
    lab.enclave
        .run("dig", &["+short", "web.lab.example", "other.lab.example"])
        .ok();
    assert_eq!(errno("192.0.2.2:7"), None);
    assert_eq!(errno("192.0.2.3:7"), Some(EHOSTUNREACH));
}
