//! What changes around the daemons: addresses, routes, name servers, the clock.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{
    Census, Daemons, Family, Lab, Machine, Pattern, address, connect, echo_compared, echo_server,
    serve, until, works_again,
};
use nix::libc::ENETUNREACH;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;

/// A server that tells each client its address as it sees it, after whatever it is sent.
fn who_am_i(machine: &Machine, at: SocketAddr) -> SocketAddr {
    serve(machine, at, |mut stream| {
        let seen = stream.peer_addr().unwrap().ip().to_string();
        while let Ok(1..) = stream.read(&mut [0]) {
            let _ = stream.write_all(seen.as_bytes());
        }
    })
}

/// Asks, and tells what came within a second.
fn ask(mut stream: &TcpStream) -> Result<String, ErrorKind> {
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut answer = [0; 64];
    let asked = stream
        .write_all(b"?")
        .and_then(|()| stream.read(&mut answer));
    let n = asked.map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

#[test]
fn flows_see_a_change_of_the_parents_address_as_on_the_parent_itself() {
    let lab = Lab::new();
    let mut daemons = lab.up();
    let who = who_am_i(&lab.internet, Family::V4.at(address::SERVER, 9000));
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let server = (lab.internet)
        .inside(|| UdpSocket::bind("192.0.2.2:9000"))
        .unwrap();
    let udp = lab.enclave.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let udp_seen = || {
        udp.send_to(b"x", "192.0.2.2:9000").unwrap();
        server
            .recv_from(&mut [0; 10])
            .map(|(_, from)| from.ip().to_string())
    };
    works_again(&lab.enclave, echo);
    assert_eq!(udp_seen().unwrap(), "192.0.2.1");
    let before = Census::of(&lab, &mut daemons);
    let through = connect(&lab.enclave, who, 5).unwrap();
    let direct = connect(&lab.parent, who, 5).unwrap();
    for stream in [&through, &direct] {
        assert_eq!(ask(stream).as_deref(), Ok("192.0.2.1"));
    }
    let bulk = connect(&lab.enclave, echo, 5).unwrap();
    let pattern = Pattern::new(21);

    thread::scope(|scope| {
        let transfer = scope.spawn(|| echo_compared(&bulk, &pattern, &pattern, 96 * MIB));
        (lab.parent)
            .shell(
                "ip addr del 192.0.2.1/24 dev veth0 && ip addr add 192.0.2.77/24 dev veth0 &&
                 ip route add default via 192.0.2.2",
            )
            .ok();
        let changed = Instant::now();

        until(2, "a new flow comes from the new address", || {
            let stream = connect(&lab.enclave, who, 1).ok()?;
            (ask(&stream).as_deref() == Ok("192.0.2.77")).then_some(())
        });
        until(
            2,
            "a datagram of an old socket comes from the new address",
            || (udp_seen().ok()? == "192.0.2.77").then_some(()),
        );
        assert!(changed.elapsed() < Duration::from_secs(4));
        // The parent's own address is closed to the enclave, also one that is new.
        until(4, "the new address is closed", || {
            let to: SocketAddr = "192.0.2.77:22".parse().unwrap();
            let error = connect(&lab.enclave, to, 1).unwrap_err();
            (error.kind() == ErrorKind::HostUnreachable).then_some(())
        });
        // Nobody has the old address any more: silence, as for a program on the parent.
        let (through, direct) = (ask(&through), ask(&direct));
        assert_eq!(through, direct);
        assert_eq!(through, Err(ErrorKind::WouldBlock));

        lab.parent.shell("ip addr add 192.0.2.1/24 dev veth0").ok();
        transfer.join().unwrap().unwrap();
    });

    until(10, "the old flow goes on", || {
        (ask(&through).as_deref() == Ok("192.0.2.1")).then_some(())
    });
    drop((through, direct, bulk));
    Census::assert_no_more_than(&before, 15, &lab, &mut daemons);
}

#[test]
fn a_route_that_goes_and_comes_back_loses_no_byte() {
    let lab = Lab::new();
    let mut daemons = lab.up();
    lab.internet
        .run("ip", &["addr", "add", "203.0.113.200/32", "dev", "lo"])
        .ok();
    let behind: SocketAddr = "203.0.113.200:7".parse().unwrap();
    let echo = echo_server(&lab.internet, behind);
    works_again(&lab.enclave, echo);
    let before = Census::of(&lab, &mut daemons);
    let bulk = connect(&lab.enclave, echo, 5).unwrap();
    let pattern = Pattern::new(22);

    thread::scope(|scope| {
        let transfer = scope.spawn(|| echo_compared(&bulk, &pattern, &pattern, 96 * MIB));
        lab.parent.run("ip", &["route", "del", "default"]).ok();
        let begin = Instant::now();
        let error = connect(&lab.enclave, echo, 5).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ENETUNREACH), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(2));
        let route = ["route", "add", "default", "via", "192.0.2.2"];
        lab.parent.run("ip", &route).ok();
        works_again(&lab.enclave, echo);
        transfer.join().unwrap().unwrap();
    });

    drop(bulk);
    Census::assert_no_more_than(&before, 15, &lab, &mut daemons);
}

#[test]
fn name_servers_that_die_and_come_back() {
    let lab = Lab::new();
    let mut unbound = lab.unbound();
    let mut daemons = lab.up();
    let dig = |name: &str| {
        let arguments = ["+tries=1", "+time=8", "+short", name];
        lab.enclave.run("dig", &arguments).text()
    };
    assert!(dig("web.lab.example").contains("192.0.2.2"));
    let before = Census::of(&lab, &mut daemons);
    for _ in 0..2 {
        unbound.process.kill();
        let begin = Instant::now();
        let status = lab
            .enclave
            .run("dig", &["+tries=1", "+time=8", "www.lab.example", "TXT"]);
        assert!(status.text().contains("SERVFAIL"), "{status}");
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "{:?}",
            begin.elapsed()
        );

        unbound = lab.unbound();
        until(2, "names are known again", || {
            dig("v4only.lab.example")
                .contains("192.0.2.2")
                .then_some(())
        });
    }
    Census::assert_no_more_than(&before, 15, &lab, &mut daemons);
}

/// Makes the wall clock of a process jump by a year, forth and back, every 100 ms.
const JUMPING_CLOCK: &str = r"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t which, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, which, now);
    if (which == CLOCK_REALTIME && now->tv_nsec / 100000000 % 2)
        now->tv_sec -= 365 * 24 * 3600;
    return result;
}
";

#[test]
fn a_wall_clock_that_jumps_changes_nothing() {
    let lab = Lab::new();
    let _unbound = lab.unbound();
    let source = lab.dir().join("clock.c");
    let shim = lab.dir().join("clock.so");
    std::fs::write(&source, JUMPING_CLOCK).unwrap();
    let (source, shim) = (source.to_str().unwrap(), shim.to_str().unwrap());
    (lab.internet)
        .run("cc", &["-shared", "-fPIC", "-O1", "-o", shim, source])
        .ok();
    let preload = format!("LD_PRELOAD={shim}");
    let pcap = lab.dir().join("link/x.pcap");
    let link = lab.link_address();
    let host = lab.binary("host-netd");
    let capture = ["--listen", &link, "--capture", pcap.to_str().unwrap()];
    let host = [&[preload.as_str(), &host][..], &capture].concat();
    let mut host = lab.parent.spawn_as_nobody("env", &host);
    host.wait_log("listening", 10);
    let enclave = [&preload, &lab.binary("enclave-netd"), "--parent", &link];
    let mut enclave = lab.enclave.spawn("env", &enclave);
    enclave.wait_log("ready", 10);
    let mut daemons = Daemons { enclave, host };
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    works_again(&lab.enclave, echo);
    let before = Census::of(&lab, &mut daemons);
    let idle = connect(&lab.enclave, echo, 5).unwrap();
    let pattern = Pattern::new(23);

    // Longer than a silent link lives, a ring stays without traffic, and a name is kept.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(16) {
        let stream = connect(&lab.enclave, echo, 1).unwrap();
        echo_compared(&stream, &pattern, &pattern, MIB).unwrap();
        let known = lab.enclave.run("dig", &["+short", "web.lab.example"]).ok();
        assert!(known.contains("192.0.2.2"), "{known}");
        thread::sleep(Duration::from_millis(200));
    }

    echo_compared(&idle, &pattern, &pattern, MIB).unwrap();
    drop(idle);
    assert!(
        !daemons.enclave.log().contains("lost"),
        "{}",
        daemons.enclave.log()
    );
    Census::assert_no_more_than(&before, 15, &lab, &mut daemons);
    // It is the clock that jumps which host-netd has: its log goes back in time.
    let log = daemons.host.log();
    let years: Vec<&str> = log.lines().filter_map(|line| line.get(..4)).collect();
    assert!(years.iter().any(|year| *year != years[0]), "{log}");
}
