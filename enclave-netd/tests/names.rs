//! Rules that name hosts, with a host that lies about names.

mod common;

use common::counters::{dropped, settle};
use common::host::{Host, Link};
use common::segments::{ip, segment};
use common::{Daemon, Enclave, PATIENCE, in_enclave};
use netd_proto::packet::{Packet, Transport};
use netd_proto::policy::MAX_LEARNT;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;

const RESOLVER: &str = "100.64.0.1:53";
const RULES: &str = "rules = ['allow tcp *.lab.example:443', 'deny *']";

fn up(enclave: &Enclave) -> (Host, Daemon, Link) {
    let host = Host::listen(enclave);
    let mut daemon = enclave.start_configured(RULES, &[]);
    let link = host.accept();
    daemon.wait_for("ready");
    (host, daemon, link)
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("short"));
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// What says that the question's name has these addresses.
fn answer(question: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    let mut bytes = question.to_vec();
    bytes[2..4].copy_from_slice(&[0x81, 0x80]);
    let count = u16::try_from(addresses.len()).expect("few");
    bytes[6..8].copy_from_slice(&count.to_be_bytes());
    for address in addresses {
        bytes.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(address.octets());
    }
    bytes
}

/// The next question that leaves the enclave, and who asks.
fn asked(link: &mut Link) -> (SocketAddr, Vec<u8>) {
    link.packet(|vnet, bytes| {
        let packet = Packet::parse(bytes).expect("valid");
        let Transport::Udp(udp) = packet.transport() else {
            return None;
        };
        assert!(vnet.is_single(), "several questions in one packet");
        let from = SocketAddr::new(packet.src(), udp.source_port());
        Some((from, udp.payload().to_vec()))
    })
}

fn say(link: &mut Link, to: SocketAddr, message: &[u8]) {
    let from: SocketAddr = RESOLVER.parse().expect("valid");
    let mut bytes = Vec::new();
    ip(from.ip(), to.ip())
        .udp(from.port(), to.port())
        .write(&mut bytes, message)
        .expect("built");
    link.send_packet(&bytes);
}

/// Whether a connection to this address leaves the enclave.
fn leaves(link: &mut Link, address: Ipv4Addr) -> bool {
    settle(link);
    let to = SocketAddr::from((address, 443));
    let connecting = thread::spawn(move || TcpStream::connect_timeout(&to, PATIENCE));
    let error = loop {
        if connecting.is_finished() {
            break connecting.join().expect("no panic").expect_err("no server");
        }
        let syn = settle(link)
            .iter()
            .any(|packet| segment(packet).is_some_and(|s| s.dst == to));
        if syn {
            return true;
        }
    };
    let denied = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
    assert!(denied.contains(&error.kind()), "{error}");
    false
}

#[test]
fn what_was_asked_is_learnt_and_nothing_else() {
    in_enclave(|enclave| {
        let (_host, _daemon, mut link) = up(&enclave);
        let address = |last| Ipv4Addr::new(192, 0, 2, last);
        let program = UdpSocket::bind("0.0.0.0:5000").expect("bound");
        program.connect(RESOLVER).expect("connected");
        // As a libc asks for both families: at once, in datagrams of one size.
        for id in [1, 2] {
            let name = format!("n{id}.lab.example");
            program.send(&question(id, &name)).expect("sent");
        }
        let questions = [asked(&mut link), asked(&mut link)];
        let (program, first) = questions[0].clone();

        let unasked = question(3, "n3.lab.example");
        say(&mut link, program, &answer(&unasked, &[address(3)]));
        assert!(!leaves(&mut link, address(3)), "nobody asked");

        for (last, (_, question)) in (1..).zip(&questions) {
            say(&mut link, program, &answer(question, &[address(last)]));
            assert!(leaves(&mut link, address(last)), "answer {last}");
        }

        say(&mut link, program, &answer(&first, &[address(4)]));
        assert!(!leaves(&mut link, address(4)), "answered already");
    });
}

#[test]
fn a_host_cannot_make_it_learn_without_end() {
    const IN_ONE: usize = 64;
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave);
        let program = UdpSocket::bind("0.0.0.0:5000").expect("bound");
        program.connect(RESOLVER).expect("connected");
        let mut next = u32::from(Ipv4Addr::new(198, 18, 0, 0));
        for id in 0..=u16::try_from(MAX_LEARNT / IN_ONE).expect("few") {
            program
                .send(&question(id, "all.lab.example"))
                .expect("sent");
            let (program, question) = asked(&mut link);
            let addresses: Vec<_> = (next..).take(IN_ONE).map(Ipv4Addr::from).collect();
            say(&mut link, program, &answer(&question, &addresses));
            next += u32::try_from(IN_ONE).expect("few");
        }
        settle(&mut link);
        assert_eq!(dropped(&mut daemon)["in_name_forgotten"], 1);
    });
}
