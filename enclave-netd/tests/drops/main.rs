//! Every reason for which a packet is dropped: what a hostile host sends does not reach the
//! kernel, and what a program may not send does not reach the host.

#![expect(unsafe_code, reason = "packets as only a packet socket sends them")]
#![allow(unreachable_pub, reason = "the tables are modules of this test")]

#[path = "../common/mod.rs"]
mod common;
mod entering;
mod leaving;
mod packets;

use common::counters::{dropped, entered, settle};
use common::host::{Host, Link};
use common::segments::segment;
use common::{Daemon, Enclave, eventually, in_enclave, run};
use entering::{Hostile, hostile};
use leaving::unwelcome;
use netd_proto::frame::Kind;
use netd_proto::handshake::Features;
use netd_proto::offload::VnetHeader;
use netd_proto::run::mark_super_datagram;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use packets::{PEER, UDP, US, address, framed, tcp, udp};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

const CONFIG: &str = "publish = ['3000/tcp', '5353/udp']";

fn up(enclave: &Enclave, config: &str, features: Features) -> (Host, Daemon, Link) {
    let host = Host::listen(enclave);
    let mut daemon = enclave.start_configured(config, &[]);
    let link = host.accept_with(features);
    daemon.wait_for("ready");
    (host, daemon, link)
}

#[test]
fn nothing_hostile_reaches_the_kernel() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, CONFIG, Features::ALL);
        // So that there is something to count, and to be sure that what enters is seen.
        link.send(Kind::Packet, &[]);
        for family in [0, 1] {
            let before = entered();
            link.send_packet(&tcp(PEER[family], US[family]));
            let reset = link.packet(|_, packet| segment(packet));
            assert_eq!(reset.flags, "R", "the kernel's answer");
            assert_eq!(entered()[0], before[0] + 1);
        }

        for Hostile {
            what,
            reason,
            frame,
        } in hostile(0).into_iter().chain(hostile(1))
        {
            let (before, mut expected) = (entered(), dropped(&mut daemon));
            *expected.entry(reason.to_owned()).or_default() += 1;

            link.send(Kind::Packet, &frame);
            let answers = settle(&mut link);

            assert_eq!(dropped(&mut daemon), expected, "{what}");
            assert_eq!(entered(), before, "{what}: it reached the kernel");
            let resets = usize::from(reason == "in_tcp_closed");
            assert_eq!(answers.len(), resets, "{what}: {answers:?}");
        }
    });
}

#[test]
fn what_was_not_agreed_on_does_not_enter() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, CONFIG, Features::default());
        for family in [0, 1] {
            let header = [20, 40][family];
            let gso_type = [1, 4][family];
            let checksum = VnetHeader::tcp(family == 1, header, 20, None);
            let segments = VnetHeader {
                gso_type,
                gso_size: 1000,
                ..checksum
            };
            let mut datagrams = framed(
                VnetHeader::NONE,
                &udp(PEER[family], US[family], UDP, &[7; 3000]),
            );
            mark_super_datagram(family == 1, 1400, &mut datagrams);
            let segment = tcp(PEER[family], US[family]);
            for frame in [
                framed(checksum, &segment),
                framed(segments, &segment),
                datagrams,
            ] {
                let before = entered();
                link.send(Kind::Packet, &frame);
                assert!(settle(&mut link).is_empty());
                assert_eq!(entered(), before);
            }
        }
        assert_eq!(dropped(&mut daemon), [("in_offload".to_owned(), 6)].into());
    });
}

#[test]
fn what_the_kernel_does_not_take_is_counted() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, CONFIG, Features::ALL);
        run("ip", &["link", "set", "netd0", "down"]);
        link.send_packet(&tcp(PEER[0], US[0]));
        link.send_packet(&tcp(PEER[1], US[1]));
        settle(&mut link);
        assert_eq!(
            dropped(&mut daemon),
            [("in_tun_refused".to_owned(), 2)].into()
        );
    });
}

/// Sends bytes out of the tun as a program with CAP_NET_RAW may: no kernel looks at them.
fn send_raw(family: usize, bytes: &[u8]) {
    let raw = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::empty(),
        None,
    );
    let raw = raw.expect("root makes packet sockets");
    let index = nix::net::if_::if_nametoindex("netd0").expect("it is there");
    // SAFETY: plain numbers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).expect("small");
    let protocol = [libc::ETH_P_IP, libc::ETH_P_IPV6][family];
    to.sll_protocol = u16::try_from(protocol).expect("small").to_be();
    to.sll_ifindex = index.cast_signed();
    let length = libc::socklen_t::try_from(size_of_val(&to)).expect("small");
    let (data, to) = (bytes.as_ptr().cast(), (&raw const to).cast());
    // SAFETY: the lengths are those of the bytes and of the address, which outlive the call.
    let sent = unsafe { libc::sendto(raw.as_raw_fd(), data, bytes.len(), 0, to, length) };
    assert_eq!(Errno::result(sent), Ok(bytes.len().cast_signed()));
}

#[test]
fn nothing_unwelcome_reaches_the_host() {
    in_enclave(|enclave| {
        let rules = "rules = ['deny 198.51.100.0/24', 'deny 2001:db8:1::/48']";
        let (_host, mut daemon, mut link) = up(&enclave, rules, Features::ALL);
        for family in [0, 1] {
            // What is right leaves, and something is counted.
            send_raw(family, &udp(US[family], PEER[family], 1, b"right"));
            link.packet(|_, packet| packet.ends_with(b"right").then_some(()));
            link.send(Kind::Packet, &[]);
            settle(&mut link);
            for (reason, packet) in unwelcome(family) {
                let mut expected = dropped(&mut daemon);
                *expected.entry(reason.to_owned()).or_default() += 1;

                send_raw(family, &packet);

                eventually(reason, || dropped(&mut daemon) == expected);
                let left = settle(&mut link);
                assert!(left.is_empty(), "{reason}: {left:?}");
            }
        }
    });
}

#[test]
fn what_leaves_without_a_link_is_counted() {
    in_enclave(|enclave| {
        let (host, mut daemon, link) = up(&enclave, "", Features::ALL);
        drop((host, link));
        daemon.wait_for("link to the parent lost");
        for (any, peer) in [("0.0.0.0:0", PEER[0]), ("[::]:0", PEER[1])] {
            let socket = UdpSocket::bind(any).expect("bound");
            socket.send_to(b"text", address(peer, 1)).expect("sent");
        }
        // Nothing else leaves by itself; the pump may look at the tun after the signal.
        eventually("both are counted", || {
            daemon.signal(Signal::SIGUSR1);
            daemon
                .wait_for("dropped since the start")
                .contains("out_no_link=2")
        });
    });
}
