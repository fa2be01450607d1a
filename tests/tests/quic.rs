//! A real QUIC client and server (ngtcp2's), which find out the path's MTU by themselves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::frame::{Decoder, Kind};
use netd_proto::limits::LINK_READ;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Transport};
use netd_tests::packets::stream_bytes;
use netd_tests::{Direction, Family, Lab, Tap, address, until};
use std::fs;

const PORT: u16 = 4433;
/// What QUIC may always send (RFC 9000, 14).
const LEAST: usize = 1200;

/// The packets that passed a tap in one direction.
fn packets(tap: &Tap, direction: Direction) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut decoder = Decoder::new();
    let mut packets = Vec::new();
    for bytes in tap.passed(direction).chunks(LINK_READ) {
        decoder.space()[..bytes.len()].copy_from_slice(bytes);
        decoder.advance(bytes.len());
        while let Some(frame) = decoder.next().unwrap() {
            if frame.kind == Kind::Packet {
                let (vnet, packet) = VnetHeader::split(frame.payload).unwrap();
                packets.push((vnet, packet.to_vec()));
            }
        }
    }
    packets
}

/// Sizes of the QUIC packets that the client sent.
fn sizes(tap: &Tap) -> Vec<usize> {
    let mut sizes = Vec::new();
    for (vnet, bytes) in packets(tap, Direction::Up) {
        let packet = Packet::parse(&bytes).unwrap();
        if let Transport::Udp(udp) = packet.transport()
            && udp.destination_port() == PORT
        {
            let all = udp.payload();
            let size = vnet.datagram_size().map_or(all.len(), usize::from);
            sizes.extend(all.chunks(size.max(1)).map(<[u8]>::len));
        }
    }
    sizes
}

/// The MTUs that the client was told.
fn told(tap: &Tap) -> Vec<u16> {
    let mut told = Vec::new();
    for (_, bytes) in packets(tap, Direction::Down) {
        let packet = Packet::parse(&bytes).unwrap();
        if let Transport::Icmp {
            kind: 3, code: 4, ..
        }
        | Transport::Icmp {
            kind: 2, code: 0, ..
        } = packet.transport()
        {
            let at = packet.transport_offset() + 6;
            told.push(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        }
    }
    told
}

/// Sends and fetches files of some MB by QUIC, with what `narrow` does to the way. Tells the sizes
/// of the client's packets, and which MTUs it was told.
fn transfer(family: Family, narrow: impl Fn(&Lab)) -> (Vec<usize>, Vec<u16>) {
    let lab = Lab::new();
    let (_daemons, tap) = lab.up_tapped(&[], "");
    narrow(&lab);
    let dir = lab.dir().join("quic");
    fs::create_dir(&dir).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let pki = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/make-pki");
    lab.internet.run(pki, &[&path(""), "web.lab.example"]).ok();
    for (name, megabytes) in [("up", 2), ("down", 3)] {
        let bytes = stream_bytes(0, megabytes * 1_000_000);
        fs::write(dir.join(name), bytes).unwrap();
    }
    fs::create_dir(dir.join("fetched")).unwrap();
    let at = family.of(address::SERVER).to_string();
    let port = PORT.to_string();
    let (key, pem) = (path("server.key"), path("server.pem"));
    let mut server = lab.internet.spawn(
        "gtlsserver",
        &["-q", "-d", &path(""), &at, &port, &key, &pem],
    );
    until(10, "the QUIC server listens", || {
        assert!(server.ended().is_none(), "{}", server.log());
        let sockets = lab.internet.run("ss", &["-Hlun"]).ok();
        sockets.contains(&format!(":{port}")).then_some(())
    });
    let (fetched, up) = (path("fetched"), path("up"));
    let options = [
        "--exit-on-all-streams-close",
        "--no-quic-dump",
        "--no-http-dump",
        "-q",
    ];
    let files = [format!("--download={fetched}"), format!("--data={up}")];
    let url = format!("https://web.lab.example:{port}/down");
    let rest = [&files[0], &files[1], &at, &port, &url].map(String::as_str);
    lab.enclave
        .run("gtlsclient", &[&options[..], &rest].concat())
        .ok();
    let got = fs::read(dir.join("fetched/down")).unwrap();
    assert!(got == fs::read(dir.join("down")).unwrap(), "{family:?}");
    (sizes(&tap), told(&tap))
}

#[test]
fn a_quic_client_finds_the_mtu_of_a_wide_path() {
    for family in Family::BOTH {
        let (sizes, told) = transfer(family, |_| {});
        let large = sizes.iter().filter(|size| **size > 1400).count();
        assert!(large > 500, "{family:?}: {large} of {}", sizes.len());
        assert!(told.is_empty(), "{family:?}: {told:?}");
    }
}

#[test]
fn a_quic_client_is_told_the_mtu_of_a_narrow_path() {
    for family in Family::BOTH {
        let (sizes, told) = transfer(family, |lab| {
            lab.parent
                .run("ip", &["link", "set", "veth0", "mtu", "1300"])
                .ok();
        });
        // It tries, is told, and keeps to what fits.
        assert!(!told.is_empty(), "{family:?}: it was not told");
        assert!(told.iter().all(|mtu| *mtu == 1300), "{family:?}: {told:?}");
        let large = sizes.iter().filter(|size| **size > 1272).count();
        assert!((1..20).contains(&large), "{family:?}: {large} too large");
        let rest = sizes.iter().filter(|size| **size >= LEAST).count();
        assert!(rest > 1000, "{family:?}: {rest}");
    }
}

/// Somewhere on the way what is too large vanishes without a word.
#[test]
fn a_quic_client_finds_the_mtu_of_a_path_that_says_nothing() {
    for family in Family::BOTH {
        let (sizes, told) = transfer(family, |lab| {
            // The parent may send, and the other end of its wire takes no more than this. Of what
            // crosses as many at once it would not look at the size.
            let single = ["-K", "veth0", "gso", "off", "tx-udp-segmentation", "off"];
            lab.parent.run("ethtool", &single).ok();
            lab.internet
                .run("ip", &["link", "set", "veth0", "mtu", "1300"])
                .ok();
        });
        assert!(told.is_empty(), "{family:?}: nobody could tell {told:?}");
        let large = sizes.iter().filter(|size| **size > 1272).count();
        assert!((1..20).contains(&large), "{family:?}: {large} too large");
    }
}
