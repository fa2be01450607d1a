//! What the fuzz targets check, as plain functions: libFuzzer calls them with inputs it makes up
//! (`tests/fuzz`), the test `corpus` with the inputs that are kept. Each panics on a defect.

use netd_proto::build::{IcmpError, MAX_ICMP_ERROR, icmp_error, tcp_reset};
use netd_proto::control::Control;
use netd_proto::frame::{Decoder, FrameError, Kind, header};
use netd_proto::handshake::{AwaitHello, Features, Hello};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Protocol, Transport};
use netd_proto::policy::{Policy, Rule};
use std::net::IpAddr;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target with the name of its corpus.
pub const TARGETS: [(&str, Target); 4] = [
    ("frame", frame),
    ("handshake", handshake),
    ("packet", packet),
    ("policy", policy),
];

/// The first byte says into how long pieces the stream falls, the rest is the stream: the frames
/// are the same as in one piece, and they make the same stream again.
pub fn frame(input: &[u8]) {
    let Some((&piece, stream)) = input.split_first() else {
        return;
    };
    let (whole, end) = decode(stream, usize::MAX);
    let (pieces, end_of_pieces) = decode(stream, usize::from(piece) + 1);
    assert_eq!(whole, pieces);
    assert_eq!(end, end_of_pieces);
    let again: Vec<u8> = (whole.iter())
        .flat_map(|(kind, payload)| [&header(*kind, payload.len())[..], payload].concat())
        .collect();
    assert!(stream.starts_with(&again));
    for (kind, payload) in &whole {
        let _ = Control::decode(*kind, payload);
    }
}

type Frames = Vec<(Kind, Vec<u8>)>;

fn decode(stream: &[u8], piece: usize) -> (Frames, Option<FrameError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let mut rest = stream;
    loop {
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push((frame.kind, frame.payload.to_vec())),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        if rest.is_empty() {
            return (frames, None);
        }
        let space = decoder.space();
        let n = rest.len().min(piece).min(space.len());
        assert!(n > 0, "the decoder has no room and no frame");
        space[..n].copy_from_slice(&rest[..n]);
        decoder.advance(n);
        rest = &rest[n..];
    }
}

/// The first byte picks the side, the rest is what the other side says: whoever accepts agrees on
/// what both said, and no reply is longer than a frame may be.
pub fn handshake(input: &[u8]) {
    let Some((&side, payload)) = input.split_first() else {
        return;
    };
    let kind = if side & 2 == 0 {
        Kind::Hello
    } else {
        Kind::Goodbye
    };
    let hello = match AwaitHello.receive(netd_proto::frame::Frame { kind, payload }) {
        Ok(offer) => offer,
        Err(error) => {
            if let Some(goodbye) = error.reply() {
                header(Kind::Goodbye, goodbye.encode().len());
            }
            return;
        }
    };
    agree(hello.hello, side);
    let (_, awaiting) = hello.hello.open();
    // The rest of the input may as well be a welcome.
    let kind = if side & 4 == 0 {
        Kind::Welcome
    } else {
        Kind::Goodbye
    };
    let _ = awaiting.receive(netd_proto::frame::Frame { kind, payload });
}

/// A valid hello is accepted, and both sides come to the same.
fn agree(hello: Hello, features: u8) {
    let (bytes, awaiting) = hello.open();
    let frame = netd_proto::frame::Frame {
        kind: Kind::Hello,
        payload: &bytes,
    };
    let offer = AwaitHello
        .receive(frame)
        .expect("what open() makes is valid");
    assert_eq!(offer.hello, hello);
    let (welcome, host) = offer.accept(Features(u32::from(features)).and(Features::ALL));
    let frame = netd_proto::frame::Frame {
        kind: Kind::Welcome,
        payload: &welcome,
    };
    let enclave = awaiting
        .receive(frame)
        .expect("what accept() makes is valid");
    assert_eq!(enclave.features, host.features);
    assert_eq!((enclave.session, enclave.lane), (host.session, host.lane));
}

/// A virtio-net header and a packet, as they come in a frame: what is accepted stays within its
/// bytes, and what is answered to it is a valid packet of the opposite direction.
pub fn packet(input: &[u8]) {
    let Some((vnet, bytes)) = VnetHeader::split(input) else {
        return;
    };
    assert_eq!(vnet.encode(), input[..VnetHeader::LEN]);
    let Ok(packet) = Packet::parse(bytes) else {
        return;
    };
    let _ = vnet.check(&packet, Features::ALL);
    assert!(packet.bytes().len() <= bytes.len());
    assert!(packet.transport_offset() <= packet.bytes().len());
    if let Some(key) = packet.flow_key() {
        assert_eq!(key.reversed().reversed(), key);
        assert_eq!((key.src.ip(), key.dst.ip()), (packet.src(), packet.dst()));
    }
    let mut out = vec![0; MAX_ICMP_ERROR];
    let errors = [
        IcmpError::Prohibited,
        IcmpError::PacketTooBig { mtu: 1280 },
        IcmpError::TimeExceeded,
    ];
    for error in errors {
        let length = icmp_error(&mut out, packet.dst(), packet.src(), error, packet.bytes());
        let answer = Packet::parse(&out[..length]).expect("our own ICMP error is a packet");
        assert_eq!((answer.src(), answer.dst()), (packet.dst(), packet.src()));
        assert!(matches!(answer.transport(), Transport::Icmp { .. }));
    }
    if let Some(length) = tcp_reset(&mut out, &packet) {
        let reset = Packet::parse(&out[..length]).expect("our own reset is a packet");
        assert_eq!(
            reset.flow_key(),
            packet.flow_key().map(|key| key.reversed())
        );
        assert!(reset.transport_checksum_is_right());
    }
}

/// Lines of rules: whatever is a rule decides without a fault, also on names that DNS tells.
pub fn policy(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let rules: Vec<Rule> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let mut policy = Policy::new(rules);
    let addresses: [IpAddr; 4] =
        ["10.1.2.3", "192.0.2.1", "2001:db8::1", "::"].map(|a| a.parse().expect("an address"));
    for (now, word) in (0..).zip(text.split_whitespace()) {
        policy.learn(word, &addresses[..2], now, now + 2);
        for address in addresses {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                let first = policy.decide(protocol, address, 443, now);
                assert_eq!(first, policy.decide(protocol, address, 443, now));
                assert!(first.is_none() || !policy.rules().is_empty());
            }
        }
    }
}
