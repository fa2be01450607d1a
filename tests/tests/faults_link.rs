//! Links that are cut amid a handshake or a frame.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{
    Census, Daemons, Direction, Family, Lab, Pattern, Tap, address, connect, echo_compared,
    echo_server, works_again,
};
use nix::libc::{ECONNRESET, EPIPE};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

const MIB: usize = 1024 * 1024;

/// The first frame that passed in a direction.
fn first_frame(tap: &Tap, direction: Direction) -> Vec<u8> {
    let passed = tap.passed(direction);
    let length = u32::from_be_bytes([0, passed[1], passed[2], passed[3]]);
    passed[..4 + usize::try_from(length).unwrap()].to_vec()
}

/// The hello and the welcome of a handshake that was.
fn handshake(lab: &Lab) -> [Vec<u8>; 2] {
    let (daemons, tap) = lab.up_tapped(&[], "");
    let frames = [Direction::Up, Direction::Down].map(|direction| first_frame(&tap, direction));
    drop(daemons);
    frames
}

/// Says no more, and waits for host-netd to end the link as well.
fn ends(mut link: UnixStream) {
    link.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    link.shutdown(Shutdown::Write).unwrap();
    std::io::copy(&mut link, &mut std::io::sink()).expect("the link ends within 2 s");
}

#[test]
fn a_hello_that_ends_at_any_byte_leaves_nothing_behind() {
    let lab = Lab::new();
    let [hello, welcome] = handshake(&lab);
    let mut daemons = lab.up();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let mut open = connect(&lab.enclave, echo, 5).unwrap();
    let before = Census::of(&lab, &mut daemons);
    let frame = [&[1, 0, 0, 50][..], &[0; 50]].concat();

    for cut in 0..=hello.len() {
        let mut link = UnixStream::connect(lab.link()).unwrap();
        link.write_all(&hello[..cut]).unwrap();
        ends(link);
    }
    // Past the handshake: a frame that ends at any byte.
    for cut in 0..frame.len() {
        let mut link = UnixStream::connect(lab.link()).unwrap();
        link.write_all(&hello).unwrap();
        link.read_exact(&mut vec![0; welcome.len()]).unwrap();
        link.write_all(&frame[..cut]).unwrap();
        ends(link);
    }

    works_again(&lab.enclave, echo);
    open.write_all(b"still").unwrap();
    open.read_exact(&mut [0; 5]).unwrap();
    Census::assert_no_more_than(&before, 10, &lab, &mut daemons);
}

#[test]
fn a_welcome_that_ends_at_any_byte_is_asked_for_again() {
    let lab = Lab::new();
    let [_, welcome] = handshake(&lab);
    let host = lab.start_host(&[]);
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let path = lab.dir().join("link/cut.sock");
    let tap = Tap::new(&path, &lab.link());
    let mut daemons = Daemons {
        enclave: lab.spawn_enclave(&path, "", &[]),
        host,
    };
    daemons.enclave.wait_log("ready", 10);
    let before = Census::of(&lab, &mut daemons);

    for cut in 0..welcome.len() {
        let links = tap.connections();
        daemons.enclave.kill();
        tap.cut_after(Direction::Down, cut);
        daemons.enclave = lab.spawn_enclave(&path, "", &[]);
        // The first try waits for nothing, the second for 50 ms.
        daemons.enclave.wait_log("ready", 2);
        assert_eq!(tap.connections(), links + 2, "cut after {cut} bytes");
        works_again(&lab.enclave, echo);
    }

    Census::assert_no_more_than(&before, 10, &lab, &mut daemons);
}

#[test]
fn alone_a_link_that_is_cut_anywhere_in_bulk_corrupts_nothing() {
    let lab = Lab::new();
    let (mut daemons, tap) = lab.up_tapped(&[], "");
    tap.stop_recording();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let pattern = Pattern::new(9);
    works_again(&lab.enclave, echo);
    let before = Census::of(&lab, &mut daemons);

    for round in 0..12 {
        let streams = [0; 3].map(|_| connect(&lab.enclave, echo, 5).unwrap());
        let direction = [Direction::Up, Direction::Down][round % 2];
        // Amid a header, a virtio-net header, a packet: no two rounds alike.
        tap.cut_after(direction, MIB * (1 + round) + 7919 * round);
        thread::scope(|scope| {
            for stream in &streams {
                let pattern = &pattern;
                scope.spawn(move || {
                    let error = echo_compared(stream, pattern, pattern, 1024 * MIB).unwrap_err();
                    assert_ne!(error.kind(), ErrorKind::InvalidData, "{error}");
                    let errno = error.raw_os_error();
                    assert!(matches!(errno, Some(ECONNRESET | EPIPE)), "{error}");
                });
            }
        });
        works_again(&lab.enclave, echo);
        assert_eq!(tap.connections(), round + 2, "one link a round");
    }

    Census::assert_no_more_than(&before, 10, &lab, &mut daemons);
}

#[test]
fn clients_of_a_published_port_are_reset_when_the_link_is_cut() {
    let lab = Lab::new();
    let config = r#"publish = ["7000/tcp"]"#;
    let (mut daemons, tap) = lab.up_tapped(&["--publish", "7000"], config);
    tap.stop_recording();
    echo_server(&lab.enclave, Family::V4.at(address::ENCLAVE, 7000));
    let published = Family::V4.at(address::PARENT, 7000);
    works_again(&lab.internet, published);
    let before = Census::of(&lab, &mut daemons);

    for round in 1..=5 {
        let mut served = connect(&lab.internet, published, 5).unwrap();
        served.write_all(b"x").unwrap();
        served.read_exact(&mut [0]).unwrap();
        tap.freeze();
        // The parent's kernel has taken it, the enclave not yet.
        let mut waiting = connect(&lab.internet, published, 5).unwrap();
        waiting.write_all(b"x").unwrap();

        tap.cut();
        tap.thaw();
        daemons.host.wait_log_times("session ended", round, 5);
        tap.mend();

        for (which, stream) in [("served", &mut served), ("waiting", &mut waiting)] {
            stream
                .set_read_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            let told = stream.read(&mut [0]).map_err(|error| error.raw_os_error());
            assert_eq!(told, Err(Some(ECONNRESET)), "{which}");
        }
        works_again(&lab.internet, published);
    }

    Census::assert_no_more_than(&before, 10, &lab, &mut daemons);
}
