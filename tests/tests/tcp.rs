//! TCP out of the enclave, with real kernels on both ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{
    Family, Lab, Pattern, address, connect, echo_compared, echo_server, repeats, serve, until,
};
use nix::libc::{EACCES, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;

#[test]
fn https_by_name_for_programs_that_know_nothing() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let _daemons = lab.up();
    let url = "https://web.lab.example/";

    for family in Family::BOTH {
        let format = "%{http_version} %{remote_ip}\n";
        let options = [
            "-sS",
            family.flag(),
            "--cacert",
            &nginx.ca,
            "--tlsv1.3",
            "-w",
            format,
        ];
        let page = lab
            .enclave
            .run("curl", &[&options[..], &[url]].concat())
            .ok();
        // The server sees the parent, not the enclave.
        let greeting = format!("over HTTP/2.0 to {}", family.of(address::PARENT));
        assert!(page.contains(&greeting), "{page}");
        assert!(
            page.contains(&format!("2 {}", family.of(address::SERVER))),
            "{page}"
        );
    }

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/https_get.py");
    let page = lab.enclave.run("python3", &[script, url, &nginx.ca]).ok();
    assert!(page.starts_with("200 hello from nginx"), "{page}");

    let fetch = "fetch(process.argv[1]).then(async r => console.log(r.status, await r.text()))";
    let line = format!("NODE_EXTRA_CA_CERTS={} node -e '{fetch}' {url}", nginx.ca);
    let page = lab.enclave.shell(&line).ok();
    assert!(page.starts_with("200 hello from nginx"), "{page}");
}

#[test]
fn a_large_download_has_the_right_checksum() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _daemons = lab.up();
    let file = nginx.www.join("big");
    lab.internet
        .shell(&format!("head -c 128M /dev/urandom > {}", file.display()))
        .ok();
    let expected = lab
        .internet
        .shell(&format!("sha256sum < {}", file.display()))
        .ok();

    for url in ["http://192.0.2.2/big", "http://[2001:db8:1::2]/big"] {
        let got = lab
            .enclave
            .shell(&format!("set -o pipefail; curl -sS '{url}' | sha256sum"))
            .ok();
        assert_eq!(got, expected, "{url}");
    }
}

#[test]
fn iperf3_runs_both_ways() {
    let lab = Lab::new();
    let _iperf3 = lab.iperf3();
    let _daemons = lab.up();
    for options in [&["-P", "4"][..], &["-R"][..], &["--bidir"][..]] {
        let base = ["-c", "2001:db8:1::2", "-t", "1"];
        let report = lab
            .enclave
            .run("iperf3", &[&base[..], options].concat())
            .ok();
        assert!(report.contains("receiver"), "{report}");
    }
}

#[test]
fn one_connection_each_way_at_once_is_byte_exact() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    for family in Family::BOTH {
        let (send, expect) = (down.clone(), up.clone());
        let server = serve(
            &lab.internet,
            family.at(address::SERVER, 7000),
            move |stream| {
                echo_compared(&stream, &send, &expect, 16 * MIB + 1).unwrap();
            },
        );
        let stream = connect(&lab.enclave, server, 5).unwrap();
        echo_compared(&stream, &up, &down, 16 * MIB + 1).unwrap();
    }
}

/// 64 MiB each way at once on each of 8 connections, every byte compared. The deadlock that it
/// looks for hit 2 of 27 such runs.
#[test]
fn alone_eight_connections_of_64_mib_each_way_are_byte_exact() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let patterns: Vec<_> = (0..4).map(Pattern::new).collect();
    let length = 64 * MIB;
    let (failed, failures) = channel();
    let servers = Family::BOTH.map(|family| {
        let (theirs, failed) = (patterns.clone(), failed.clone());
        serve(
            &lab.internet,
            family.at(address::SERVER, 7000),
            move |stream| {
                let outcome = echo_compared(&stream, &theirs[0], &theirs[1], length);
                failed.send(outcome).unwrap();
            },
        )
    });
    for round in 0..repeats(20) {
        thread::scope(|scope| {
            for connection in 0..8 {
                let (lab, patterns, server) = (&lab, &patterns, servers[connection % 2]);
                scope.spawn(move || {
                    let stream = connect(&lab.enclave, server, 5).unwrap();
                    echo_compared(&stream, &patterns[1], &patterns[0], length)
                        .unwrap_or_else(|error| panic!("round {round} of {connection}: {error}"));
                });
            }
        });
        for _ in 0..8 {
            let outcome = failures
                .recv_timeout(Duration::from_secs(30))
                .expect("a server ends");
            outcome.unwrap_or_else(|error| panic!("round {round}, at the server: {error}"));
        }
    }
}

#[test]
fn failures_to_connect_are_told_as_they_are() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let fails_with = |pair, what| {
            let begin = Instant::now();
            let error = connect(&lab.enclave, family.at(pair, 81), 10).unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(what),
                "{family:?} {pair:?}: {error}"
            );
            assert!(
                begin.elapsed() < Duration::from_secs(3),
                "{family:?} {pair:?} took long"
            );
        };
        fails_with(address::SERVER, ECONNREFUSED);
        fails_with(address::ABSENT, EHOSTUNREACH);
        fails_with(address::UNROUTED, ENETUNREACH);
        let prohibited = if family == Family::V4 {
            EHOSTUNREACH
        } else {
            EACCES
        };
        fails_with(address::PROHIBITED, prohibited);
    }
}

#[test]
fn a_connection_stands_only_when_the_real_one_does() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let to = family.at(address::SILENT, 7000);
        let error = connect(&lab.enclave, to, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{family:?}: {error}");
    }

    // The same host begins to answer while a program waits.
    let lab = &lab;
    let connected = thread::scope(|scope| {
        let to = Family::V4.at(address::SILENT, 7001);
        let client = scope.spawn(move || connect(&lab.enclave, to, 20));
        until(5, "the SYN is on its way from the parent", || {
            let sockets = lab.parent.run("ss", &["-Htn", "state", "syn-sent"]).ok();
            sockets.contains("198.51.100.1:7001").then_some(())
        });
        assert!(!client.is_finished());
        lab.internet
            .shell("ip route del blackhole 198.51.100.0/25")
            .ok();
        lab.internet
            .shell("ip addr add 198.51.100.1/32 dev lo")
            .ok();
        let listener = lab.internet.inside(|| TcpListener::bind(to)).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(b"late").unwrap();
        let mut stream = client.join().unwrap().unwrap();
        let mut text = [0; 4];
        stream.read_exact(&mut text).unwrap();
        text
    });
    assert_eq!(&connected, b"late");
}

#[test]
fn ten_silent_hosts_do_not_delay_another() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let server = echo_server(&lab.internet, Family::V6.at(address::SERVER, 7));
    let lab = &lab;
    thread::scope(|scope| {
        for port in 0..10 {
            let to = Family::V4.at(address::SILENT, 7000 + port);
            scope.spawn(move || connect(&lab.enclave, to, 8).unwrap_err());
        }
        until(5, "ten connects wait on the parent", || {
            let sockets = lab.parent.run("ss", &["-Htn", "state", "syn-sent"]).ok();
            (sockets.lines().count() >= 10).then_some(())
        });
        let begin = Instant::now();
        let stream = connect(&lab.enclave, server, 5).unwrap();
        let pattern = Pattern::new(8);
        echo_compared(&stream, &pattern, &pattern, MIB).unwrap();
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "{:?}",
            begin.elapsed()
        );
    });
}

/// How long 32 MiB take on a connection of their own.
fn bulk(lab: &Lab, server: std::net::SocketAddr) -> Duration {
    let begin = Instant::now();
    let pattern = Pattern::new(8);
    let stream = connect(&lab.enclave, server, 5).unwrap();
    echo_compared(&stream, &pattern, &pattern, 32 * MIB).unwrap();
    begin.elapsed()
}

#[test]
fn alone_a_reader_that_stops_for_10_s_does_not_slow_another() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let pattern = Pattern::new(9);
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let source = {
        let pattern = pattern.clone();
        serve(
            &lab.internet,
            Family::V4.at(address::SERVER, 7001),
            move |mut stream| {
                pattern.send(&mut stream, 64 * MIB).unwrap();
            },
        )
    };
    let (resume, resumed) = channel::<()>();
    let (seen, outcome) = channel();
    let sink = {
        let (pattern, resumed) = (pattern.clone(), std::sync::Mutex::new(resumed));
        let resumed = std::sync::Arc::new(resumed);
        serve(
            &lab.internet,
            Family::V4.at(address::SERVER, 7002),
            move |mut stream| {
                resumed.lock().unwrap().recv().unwrap();
                seen.send(pattern.compare(&mut stream)).unwrap();
            },
        )
    };
    let before = (0..3).map(|_| bulk(&lab, echo)).min().unwrap();

    // One reader that stops in the enclave, and one at the server.
    let mut slow = connect(&lab.enclave, source, 5).unwrap();
    let mut pushed = connect(&lab.enclave, sink, 5).unwrap();
    let begin = Instant::now();
    let mut during = Vec::new();
    thread::scope(|scope| {
        let pusher = scope.spawn(|| {
            pushed
                .set_write_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            pattern.send(&mut pushed, 64 * MIB).unwrap();
            pushed.shutdown(Shutdown::Write).unwrap();
        });
        while begin.elapsed() < Duration::from_secs(10) {
            during.push(bulk(&lab, echo));
        }
        assert!(
            !pusher.is_finished(),
            "64 MiB fit into the buffers: nothing was held back"
        );
        resume.send(()).unwrap();
    });
    during.sort();
    let median = during[during.len() / 2];
    assert!(
        median < before * 3 / 2 + Duration::from_millis(50),
        "{before:?}, then {during:?}"
    );
    assert_eq!(pattern.compare(&mut slow).unwrap(), 64 * MIB);
    let got = outcome
        .recv_timeout(Duration::from_secs(30))
        .expect("the sink ends");
    assert_eq!(got.unwrap(), 64 * MIB);
}

#[test]
fn connections_one_after_the_other_leave_nothing() {
    let lab = Lab::new();
    let daemons = lab.up();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let files = || {
        let path = format!("/proc/{}/fd", daemons.host.pid());
        std::fs::read_dir(path).unwrap().count()
    };
    let exchange = || {
        let mut stream = connect(&lab.enclave, echo, 5).unwrap();
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping");
    };
    exchange();
    let before = files();
    for _ in 0..500 {
        exchange();
    }
    until(15, "host-netd has closed its sockets", || {
        (files() <= before).then_some(())
    });
}

#[test]
fn many_connections_at_once() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let echo = echo_server(&lab.internet, Family::V6.at(address::SERVER, 7));
    let mut streams: Vec<TcpStream> = (0..300)
        .map(|_| connect(&lab.enclave, echo, 5).unwrap())
        .collect();
    for (number, stream) in (0_u32..).zip(&mut streams) {
        stream.write_all(&number.to_be_bytes()).unwrap();
    }
    for (number, stream) in (0_u32..).zip(&mut streams) {
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u32::from_be_bytes(answer), number);
    }
}
