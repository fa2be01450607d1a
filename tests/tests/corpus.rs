//! Replays the kept inputs of the fuzz targets, on a stable compiler and without any privilege.

use netd_proto::build::{EchoHeader, echo, echo_headroom, quote_udp};
use netd_proto::control::{Goodbye, Reason};
use netd_proto::frame::{Kind, header};
use netd_proto::handshake::{Features, Hello, Lane, Network4, Network6, SessionId};
use netd_proto::offload::VnetHeader;
use netd_tests::fuzz::TARGETS;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

#[test]
fn every_kept_input_is_handled() {
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus(name)).expect("each target has a corpus") {
            let path = entry.expect("readable").path();
            let input = fs::read(&path).expect("readable");
            // Shows which one when it panics.
            eprintln!("{}", path.display());
            target(&input);
            inputs += 1;
            // Truncated and damaged forms of it are inputs as well.
            for cut in [1, 2, 3, 5, 8, 13, 21, 34] {
                target(&input[..input.len().saturating_sub(cut)]);
                let mut damaged = input.clone();
                if let Some(byte) = damaged.get_mut(cut) {
                    *byte ^= 0x55;
                }
                target(&damaged);
            }
        }
        assert!(inputs >= 3, "the corpus of {name} has {inputs} inputs");
    }
}

/// Writes the seeds: `cargo test -p netd-tests --test corpus -- --ignored`.
#[test]
#[ignore = "writes files of the repository"]
fn write_seeds() {
    let seed = |target: &str, name: &str, bytes: &[u8]| {
        let dir = corpus(target);
        fs::create_dir_all(&dir).expect("can be made");
        fs::write(dir.join(name), bytes).expect("can be written");
    };
    let framed = |kind, payload: &[u8]| [&header(kind, payload.len())[..], payload].concat();
    let (hello, _) = hello().open();
    let goodbye = Goodbye::new(Reason::Shutdown, "until then").encode();
    let ping = 7_u64.to_be_bytes();

    let link = [
        framed(Kind::Hello, &hello),
        framed(Kind::Ping, &ping),
        framed(Kind::Packet, &packet_with_header(&udp4())),
        framed(Kind::Pong, &ping),
        framed(Kind::Goodbye, &goodbye),
    ]
    .concat();
    seed("frame", "link-bytewise", &[&[0], &link[..]].concat());
    seed("frame", "link-in-17", &[&[16], &link[..]].concat());
    seed("frame", "unknown-kind", &[3, 9, 0, 0, 1, 0]);
    seed("frame", "too-long", &[3, 2, 0xff, 0xff, 0xff, 0]);
    seed("frame", "unfinished", &[1, 1, 0, 0, 9, 1, 2]);

    seed("handshake", "hello", &[&[0], &hello[..]].concat());
    seed("handshake", "goodbye", &[&[2], &goodbye[..]].concat());
    let mut other = hello.clone();
    other[5] ^= 0xff;
    seed("handshake", "another-version", &[&[0], &other[..]].concat());
    seed("handshake", "short", &[&[0], &hello[..20]].concat());

    for (name, bytes) in [
        ("udp4", udp4()),
        ("udp6", udp6()),
        ("ping4", ping4()),
        ("tcp4", tcp4()),
        ("tcp6", tcp6()),
    ] {
        seed("packet", name, &packet_with_header(&bytes));
    }
    let segments = VnetHeader::tcp(false, 20, 20, Some(5));
    seed(
        "packet",
        "tcp4-segments",
        &[&segments.encode()[..], &tcp4()].concat(),
    );

    seed(
        "policy",
        "words",
        b"allow tcp kms.us-east-1.amazonaws.com:443\nallow udp *:123\n",
    );
    seed(
        "policy",
        "nets",
        b"deny 10.0.0.0/8\nallow [2001:db8::/32]:80-90\nallow icmp *\n",
    );
    seed(
        "policy",
        "names",
        b"allow *.lab.example\ndeny web.lab.example web.lab.example\n",
    );
}

fn hello() -> Hello {
    Hello {
        features: Features::ALL,
        session: SessionId([7; 16]),
        lane: Lane(0),
        lanes: 1,
        mtu: 1500,
        v4: Network4 {
            enclave: "100.64.0.2".parse().expect("an address"),
            gateway: "100.64.0.1".parse().expect("an address"),
            parent_loopback: "100.64.0.3".parse().expect("an address"),
        },
        v6: Network6 {
            enclave: "fd00:6e65:7464::2".parse().expect("an address"),
            gateway: "fd00:6e65:7464::1".parse().expect("an address"),
            parent_loopback: "fd00:6e65:7464::3".parse().expect("an address"),
        },
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn packet_with_header(packet: &[u8]) -> Vec<u8> {
    [&VnetHeader::NONE.encode()[..], packet].concat()
}

fn udp4() -> Vec<u8> {
    quote_udp(at("100.64.0.2:4000"), at("192.0.2.53:53"), b"question", 8)
}

fn udp6() -> Vec<u8> {
    quote_udp(
        at("[fd00:6e65:7464::2]:4000"),
        at("[2001:db8::1]:53"),
        b"question",
        8,
    )
}

fn ping4() -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (at("100.64.0.2:0").ip(), at("192.0.2.2:0").ip());
    let headroom = echo_headroom(false);
    let mut out = vec![0; headroom + 4];
    let header = EchoHeader {
        request: true,
        identifier: 1,
        sequence: 2,
    };
    let length = echo(&mut out, from, to, 64, header, 4);
    out.truncate(length);
    out
}

fn tcp4() -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 50, 0, 1, 0x40, 0, 64, 6, 0, 0, 100, 64, 0, 2, 192, 0, 2, 2,
    ];
    let sum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(tcp(internet_sum(&packet[12..20])));
    packet
}

fn tcp6() -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 30, 6, 64];
    for address in ["fd00:6e65:7464::2", "2001:db8::1"] {
        let address: std::net::Ipv6Addr = address.parse().expect("an address");
        packet.extend(address.octets());
    }
    let addresses = internet_sum(&packet[8..40]);
    packet.extend(tcp(addresses));
    packet
}

/// A segment with ten bytes, behind a pseudo-header whose addresses have that sum.
fn tcp(addresses: u32) -> Vec<u8> {
    let mut segment = vec![
        0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0xff, 0xff,
    ];
    segment.extend([0; 4]);
    segment.extend(b"GET / HTTP");
    let length = u32::try_from(segment.len()).expect("short");
    let sum = !fold(addresses + 6 + length + internet_sum(&segment));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn internet_sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum()
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    !fold(internet_sum(bytes))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}
