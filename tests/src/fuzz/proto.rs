//! Targets for what the daemons share: frames, the handshake, packets, rules.

use netd_proto::build::{IcmpError, MAX_ICMP_ERROR, icmp_error, tcp_reset};
use netd_proto::control::Control;
use netd_proto::frame::{Decoder, Frame, FrameError, Kind, header};
use netd_proto::handshake::{
    AwaitHello, Features, HandshakeError, Hello, Lane, Network4, Network6, SessionId,
};
use netd_proto::limits::{MAX_CONTROL_FRAME, MAX_GOODBYE_TEXT};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Protocol, Transport};
use netd_proto::policy::{Policy, Rule};
use netd_proto::report::{Exit, LogLine};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
        match Control::decode(*kind, payload) {
            Ok(Control::Goodbye(goodbye)) => {
                is_one_log_line(&goodbye.text);
                let again = Control::decode(*kind, &goodbye.encode());
                assert_eq!(again, Ok(Control::Goodbye(goodbye)));
            }
            Ok(Control::Ping(number) | Control::Pong(number)) => {
                assert_eq!(number.to_be_bytes(), payload[..]);
            }
            Err(_) => {}
        }
        report(*kind, payload);
    }
}

/// A line is one line and stays the same when it is told again; so is an exit.
fn report(kind: Kind, payload: &[u8]) {
    if kind == Kind::Log
        && let Ok(line) = LogLine::decode(payload)
    {
        assert!(!line.text.contains(|c: char| c.is_control() && c != '\t'));
        let again = LogLine::encode(line.source, line.number, line.text.as_bytes());
        let read = LogLine::decode(&again).expect("own lines are valid");
        // What was no UTF-8 is longer now, and may be cut.
        assert!(
            line.text
                .starts_with(read.text.trim_end_matches('\u{FFFD}'))
        );
        assert_eq!((read.source, read.number), (line.source, line.number));
    }
    if kind == Kind::Exit
        && let Ok(exit) = Exit::decode(payload)
    {
        assert_eq!(exit.encode(), payload[..]);
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

/// The first byte picks who is attacked and the frame's kind, the rest is what the other side says:
/// whoever accepts agrees on no more than both said, and every refusal fits a frame.
pub fn handshake(input: &[u8]) {
    let Some((&choice, payload)) = input.split_first() else {
        return;
    };
    let frame = |kind| Frame {
        kind: if choice & 2 == 0 { kind } else { Kind::Goodbye },
        payload,
    };
    let outcome = if choice & 1 == 0 {
        let outcome = AwaitHello.receive(frame(Kind::Hello));
        outcome.map(|offer| agree(offer.hello, choice))
    } else {
        let (_, awaiting) = own_hello().open();
        let outcome = awaiting.receive(frame(Kind::Welcome));
        outcome.map(|established| {
            assert!(own_hello().features.contains(established.features));
            assert_eq!(established.session, own_hello().session);
            assert_eq!(established.lane, own_hello().lane);
        })
    };
    if let Err(error) = outcome {
        refuse(&error);
    }
}

/// A refusal tells the peer why in one goodbye, unless the peer said goodbye itself.
fn refuse(error: &HandshakeError) {
    match (error, error.reply()) {
        (HandshakeError::Goodbye(goodbye), None) => is_one_log_line(&goodbye.text),
        (_, Some(goodbye)) => {
            is_one_log_line(&goodbye.text);
            let payload = goodbye.encode();
            assert!(payload.len() <= MAX_CONTROL_FRAME);
            let read = Control::decode(Kind::Goodbye, &payload);
            assert_eq!(read, Ok(Control::Goodbye(goodbye)));
        }
        (error, None) => panic!("the peer is not told: {error}"),
    }
}

fn is_one_log_line(text: &str) {
    assert!(text.len() <= MAX_GOODBYE_TEXT);
    assert!(!text.contains(char::is_control));
}

/// What an enclave with everything at its default says.
pub fn own_hello() -> Hello {
    let v4 = |last| Ipv4Addr::new(100, 64, 0, last);
    let v6 = |last| Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, last);
    Hello {
        features: Features::ALL,
        session: SessionId([7; 16]),
        lane: Lane(0),
        lanes: 1,
        mtu: 1500,
        v4: Network4 {
            enclave: v4(2),
            gateway: v4(1),
            parent_loopback: v4(3),
        },
        v6: Network6 {
            enclave: v6(2),
            gateway: v6(1),
            parent_loopback: v6(3),
        },
    }
}

/// A valid hello is accepted, and both sides come to the same.
fn agree(hello: Hello, features: u8) {
    let (bytes, awaiting) = hello.open();
    let frame = Frame {
        kind: Kind::Hello,
        payload: &bytes,
    };
    let offer = AwaitHello
        .receive(frame)
        .expect("what open() makes is valid");
    assert_eq!(offer.hello, hello);
    let (welcome, host) = offer.accept(Features(u32::from(features)).and(Features::ALL));
    let frame = Frame {
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
