//! Disks that are full and logs that nobody reads: traffic goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{
    Census, Daemons, Family, Lab, Pattern, Process, address, connect, echo_compared, echo_server,
    until, works_again,
};
use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

const MIB: usize = 1024 * 1024;

/// Many short flows and a long one, each compared.
fn traffic(lab: &Lab, echo: SocketAddr) {
    let pattern = Pattern::new(5);
    for _ in 0..50 {
        let stream = connect(&lab.enclave, echo, 5).unwrap();
        echo_compared(&stream, &pattern, &pattern, 1000).unwrap();
    }
    let stream = connect(&lab.enclave, echo, 5).unwrap();
    echo_compared(&stream, &pattern, &pattern, 16 * MIB).unwrap();
}

#[test]
fn a_full_disk_ends_a_capture_and_nothing_else() {
    let lab = Lab::new();
    let disk = lab.parent.dir().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let disk = disk.to_str().unwrap();
    let options = "size=1m,mode=777";
    (lab.parent)
        .run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", disk])
        .ok();
    let pcap = format!("{disk}/x.pcap");
    let mut daemons = lab.up_with(&["--capture", &pcap], "");
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    works_again(&lab.enclave, echo);
    let before = Census::of(&lab, &mut daemons);

    traffic(&lab, echo);

    daemons.host.wait_log("the capture ends here", 5);
    Census::assert_no_more_than(&before, 15, &lab, &mut daemons);
    let log = daemons.host.log();
    let counters = log
        .lines()
        .rfind(|line| line.contains(" counters "))
        .unwrap();
    assert!(
        counters.contains("capture_left_out=") && !counters.contains("capture_left_out=0"),
        "{counters}"
    );
    // The file ends with a whole packet: tcpdump complains of anything else.
    let packets = lab
        .parent
        .run("tcpdump", &["-n", "-r", &pcap, "tcp port 7"])
        .ok();
    assert!(packets.lines().count() > 10, "{packets}");
}

/// What a shell makes standard error of.
const LOGS: [(&str, &str); 3] = [
    ("nobody reads", "2> >(exec sleep 1000)"),
    ("the reader has ended", "2> >(exec true)"),
    ("the disk is full", "2> /dev/full"),
];

/// A daemon with a log in which there is no room from the start, and much to say.
fn with_log(
    spawn: impl Fn(&str, &[&str]) -> Process,
    redirection: &str,
    daemon: &str,
    arguments: &str,
) -> Process {
    // As much as a pipe holds.
    let fill = "head -c 65536 /dev/zero >&2 2>/dev/null";
    let line = format!("exec {redirection}; {fill}; NETD_LOG=trace exec {daemon} {arguments}");
    spawn("bash", &["-c", &line])
}

/// Datagrams that are refused, for each of which host-netd's data loop has a line.
fn refused_datagrams(lab: &Lab) {
    let socket = lab.enclave.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    // To another port each time: those of one flow would cross the link as one packet.
    for port in 1000..21_000 {
        let _ = socket.send_to(b"x", ("169.254.169.254", port));
    }
}

fn ends_in_good_order(daemon: &mut Process, kind: &str) {
    let begin = Instant::now();
    assert!(daemon.terminate().success(), "{kind}: a bad end");
    assert!(
        begin.elapsed().as_secs() < 3,
        "{kind}: {:?}",
        begin.elapsed()
    );
}

#[test]
fn host_netd_goes_on_whatever_becomes_of_its_log() {
    for (kind, redirection) in LOGS {
        let lab = Lab::new();
        let arguments = format!("--listen {}", lab.link_address());
        let spawn =
            |program: &str, arguments: &[&str]| lab.parent.spawn_as_nobody(program, arguments);
        let mut host = with_log(spawn, redirection, &lab.binary("host-netd"), &arguments);
        until(10, "host-netd listens", || {
            lab.link().exists().then_some(())
        });
        let enclave = lab.start_enclave("");
        let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));

        refused_datagrams(&lab);
        traffic(&lab, echo);

        assert_eq!(host.ended(), None, "{kind}");
        ends_in_good_order(&mut host, kind);
        drop(Daemons { enclave, host });
    }
}

#[test]
fn enclave_netd_goes_on_whatever_becomes_of_its_log() {
    for (kind, redirection) in LOGS {
        let lab = Lab::new();
        let host = lab.start_host(&[]);
        let arguments = format!("--parent {}", lab.link_address());
        let spawn = |program: &str, arguments: &[&str]| lab.enclave.spawn(program, arguments);
        let daemon = lab.binary("enclave-netd");
        let mut enclave = with_log(spawn, redirection, &daemon, &arguments);
        let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
        until(10, "the network is up", || {
            connect(&lab.enclave, echo, 1).ok()
        });

        traffic(&lab, echo);

        assert_eq!(enclave.ended(), None, "{kind}");
        ends_in_good_order(&mut enclave, kind);
        drop(Daemons { enclave, host });
    }
}

#[test]
fn a_log_that_is_read_late_tells_what_is_missing() {
    let lab = Lab::new();
    let fifo = lab.parent.dir().join("fifo");
    let path = fifo.to_str().unwrap();
    lab.parent.run("mkfifo", &["-m", "666", path]).ok();
    // The shell holds the reading end open and reads nothing until it is told to.
    let go = lab.parent.dir().join("go");
    let (kept, said) = (lab.parent.dir().join("kept"), go.display());
    let read = format!(
        "exec 3<>{path}; until [[ -e {said} ]]; do sleep 0.1; done; exec cat <&3 >{}",
        kept.display()
    );
    let _reader = lab.parent.spawn("bash", &["-c", &read]);
    let arguments = format!("--listen {}", lab.link_address());
    let spawn = |program: &str, arguments: &[&str]| lab.parent.spawn_as_nobody(program, arguments);
    let redirection = format!("2>{path}");
    let host = with_log(spawn, &redirection, &lab.binary("host-netd"), &arguments);
    until(10, "host-netd listens", || {
        lab.link().exists().then_some(())
    });
    let _daemons = Daemons {
        enclave: lab.start_enclave(""),
        host,
    };
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    refused_datagrams(&lab);
    traffic(&lab, echo);

    std::fs::write(&go, "").unwrap();

    until(10, "the log tells what is missing", || {
        works_again(&lab.enclave, echo);
        let log = std::fs::read_to_string(&kept).unwrap_or_default();
        log.contains("lines of the log are missing here")
            .then_some(())
    });
}
