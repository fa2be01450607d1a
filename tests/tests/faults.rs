//! Links that break, daemons that are killed, limits that are reached.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{
    Daemons, Direction, Family, Lab, Pattern, address, connect, echo_compared, echo_server, serve,
    until, works_again,
};
use nix::libc::ECONNRESET;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;

/// The interface's index and addresses, as the kernel tells them.
fn interface(lab: &Lab) -> String {
    lab.enclave
        .run("ip", &["-o", "addr", "show", "dev", "netd0"])
        .ok()
}

/// Servers that an outage is seen by.
struct Bystanders {
    source: SocketAddr,
    echo: SocketAddr,
}

impl Bystanders {
    fn new(lab: &Lab) -> Bystanders {
        let pattern = Pattern::new(3);
        let source = serve(
            &lab.internet,
            Family::V4.at(address::SERVER, 7000),
            move |mut to| {
                let _ = pattern.send(&mut to, 4096 * MIB);
            },
        );
        let echo = echo_server(&lab.internet, Family::V6.at(address::SERVER, 7));
        Bystanders { source, echo }
    }
}

/// Breaks the link amid a transfer and beside an idle connection, and looks at what programs see.
fn outage(lab: &Lab, at: &Bystanders, enclave_address: &str, break_it: impl FnOnce()) {
    let mut busy = connect(&lab.enclave, at.source, 5).unwrap();
    let mut idle = connect(&lab.enclave, at.echo, 5).unwrap();
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut [0]).unwrap();
    busy.read_exact(&mut vec![0; 10 * MIB]).unwrap();
    let mut pushing = connect(&lab.enclave, at.echo, 5).unwrap();
    pushing.write_all(&vec![1; 100_000]).unwrap();

    break_it();
    let broken = Instant::now();
    for (what, stream) in [
        ("busy", &mut busy),
        ("idle", &mut idle),
        ("pushing", &mut pushing),
    ] {
        let mut buffer = vec![0; MIB];
        let error = loop {
            match stream.read(&mut buffer) {
                Ok(0) => panic!("{what}: an end of stream that the server did not send"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(ECONNRESET), "{what}: {error}");
        let took = broken.elapsed();
        assert!(
            took < Duration::from_secs(2),
            "{what}: reset after {took:?}"
        );
    }
    assert_eq!(interface(lab), enclave_address, "the interface changed");
}

#[test]
fn alone_a_cut_link_resets_what_was_open_and_new_requests_work() {
    let lab = Lab::new();
    let (_daemons, tap) = lab.up_tapped(&[], "");
    tap.stop_recording();
    let at = Bystanders::new(&lab);
    let before = interface(&lab);
    for _ in 0..3 {
        outage(&lab, &at, &before, || tap.cut());
        tap.mend();
        works_again(&lab.enclave, at.echo);
    }
}

#[test]
fn alone_host_netd_killed_resets_what_was_open_and_new_requests_work() {
    let lab = Lab::new();
    let mut daemons = lab.up();
    let at = Bystanders::new(&lab);
    let before = interface(&lab);
    for by_force in [true, false] {
        let host = &mut daemons.host;
        outage(&lab, &at, &before, || {
            if by_force {
                host.kill();
            } else {
                assert!(host.terminate().success(), "host-netd ends in good order");
            }
        });
        // The socket file that kill -9 leaves is taken over.
        assert_eq!(lab.link().exists(), by_force);
        daemons.host = lab.start_host(&[]);
        works_again(&lab.enclave, at.echo);
    }
}

#[test]
fn while_the_link_is_down_programs_are_told_at_once() {
    let lab = Lab::new();
    let (_daemons, tap) = lab.up_tapped(&[], "");
    tap.cut();
    let at = Instant::now();
    until(5, "a connect fails at once", || {
        let begin = Instant::now();
        let failed = connect(&lab.enclave, Family::V4.at(address::SERVER, 7), 3).is_err();
        (failed && begin.elapsed() < Duration::from_millis(500)).then_some(())
    });
    assert!(at.elapsed() < Duration::from_secs(4));
    let socket = lab.enclave.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    // Without it Linux keeps from UDP what may pass (ip(7), IP_RECVERR).
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
    socket.connect("192.0.2.2:9000").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    socket.send(b"x").unwrap();
    let error = socket.recv(&mut [0; 4]).unwrap_err();
    assert!(
        error
            .raw_os_error()
            .is_some_and(|errno| errno != nix::libc::EAGAIN),
        "{error}"
    );
}

#[test]
fn a_link_that_goes_silent_is_given_up() {
    let lab = Lab::new();
    let (mut daemons, tap) = lab.up_tapped(&[], "");
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let mut open = connect(&lab.enclave, echo, 5).unwrap();
    tap.freeze();
    daemons.enclave.wait_log("link to the parent lost", 25);
    open.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let error = open.read(&mut [0]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(ECONNRESET));
    tap.thaw();
    works_again(&lab.enclave, echo);
    daemons.host.wait_log("session ended", 25);
}

#[test]
fn an_idle_link_stays() {
    let lab = Lab::new();
    let (daemons, tap) = lab.up_tapped(&[], "");
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let mut open = connect(&lab.enclave, echo, 5).unwrap();
    // Longer than a silent link lives: pings keep it.
    std::thread::sleep(Duration::from_secs(18));
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).unwrap();
    assert_eq!(tap.connections(), 1, "{}", daemons.enclave.log());
}

#[test]
fn garbage_on_the_link_ends_that_link_only() {
    let lab = Lab::new();
    let (mut daemons, tap) = lab.up_tapped(&[], "");
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    // A frame of an unknown kind, and one that is too long.
    let garbage = [[99, 0, 0, 1].as_slice(), &[2, 255, 255, 255]];
    for (round, (direction, bytes)) in [Direction::Up, Direction::Down]
        .into_iter()
        .zip(garbage)
        .enumerate()
    {
        tap.inject(direction, bytes);
        daemons
            .enclave
            .wait_log_times("link to the parent lost", round + 1, 10);
        daemons.host.wait_log_times("session ended", round + 1, 10);
        works_again(&lab.enclave, echo);
    }
    assert_eq!(tap.connections(), 3);
}

#[test]
fn packets_that_nobody_makes_are_counted_and_nothing_ends() {
    let lab = Lab::new();
    let (mut daemons, tap) = lab.up_tapped(&[], "");
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let frame = |packet: &[u8]| {
        let length = u32::try_from(10 + packet.len()).unwrap().to_be_bytes();
        [&[1, length[1], length[2], length[3]], &[0; 10][..], packet].concat()
    };
    for packet in [&[][..], &[0x45; 20], &[0x60; 40], &[0xff; 100]] {
        tap.inject(Direction::Up, &frame(packet));
        tap.inject(Direction::Down, &frame(packet));
    }
    works_again(&lab.enclave, echo);
    assert_eq!(tap.connections(), 1, "{}", daemons.enclave.log());
    daemons.host.signal(nix::sys::signal::Signal::SIGUSR1);
    daemons.host.wait_log("malformed=", 5);
}

#[test]
fn the_enclave_waits_for_a_parent_that_comes_later() {
    let lab = Lab::new();
    let mut enclave = lab.spawn_enclave(&lab.link(), "", &[]);
    enclave.wait_log("no link to the parent", 10);
    assert!(!enclave.log().contains("ready"), "{}", enclave.log());
    let host = lab.start_host(&[]);
    enclave.wait_log("ready", 3);
    drop(Daemons { enclave, host });
}

#[test]
fn enclave_netd_killed_starts_anew() {
    let lab = Lab::new();
    let resolv_conf = lab.enclave.resolv_conf();
    let mut daemons = lab.up();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let _open = connect(&lab.enclave, echo, 5).unwrap();
    daemons.enclave.kill();
    daemons.host.wait_log("session ended", 5);
    assert!(!lab.enclave.proc_net("dev").contains("netd0"));
    daemons.enclave = lab.start_enclave("");
    works_again(&lab.enclave, echo);
    assert!(daemons.enclave.terminate().success());
    assert_eq!(lab.enclave.resolv_conf(), resolv_conf);
}

#[test]
fn out_of_files_is_told_to_programs_and_to_the_operator() {
    let lab = Lab::new();
    let link = lab.link_address();
    let limited = [
        "--nofile=300:300",
        &lab.binary("host-netd"),
        "--listen",
        &link,
    ];
    let mut host = lab.parent.spawn_as_nobody("prlimit", &limited);
    host.wait_log("listening", 10);
    let mut daemons = Daemons {
        enclave: lab.start_enclave(""),
        host,
    };
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let pattern = Pattern::new(1);

    let mut open: Vec<TcpStream> = Vec::new();
    let refused = loop {
        assert!(open.len() < 300, "more flows than files");
        let begin = Instant::now();
        match connect(&lab.enclave, echo, 5) {
            Ok(stream) => open.push(stream),
            Err(error) => break (error, begin.elapsed()),
        }
    };
    let (error, took) = refused;
    assert!(
        error.raw_os_error().is_some(),
        "told by the network: {error}"
    );
    assert!(took < Duration::from_secs(1), "{took:?}");
    daemons.host.wait_log("WARN", 2);
    // Those that stand go on, and room made is room to be had.
    echo_compared(&open[0], &pattern, &pattern, MIB).unwrap();
    open.clear();
    until(15, "new flows are taken", || {
        connect(&lab.enclave, echo, 1).ok()
    });
}
