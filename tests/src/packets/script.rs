//! One TCP connection, segment by segment.

use super::line::{Line, Window, stream_bytes};
use super::{PATIENCE, Seen, Wire};
use etherparse::{PacketBuilder, TcpHeader, TcpOptionElement};
use netd_proto::packet::{FlowKey, Packet, Protocol, Transport};
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Window that is offered where a line does not say.
const WINDOW: u16 = 64_000;

/// One TCP connection of the enclave.
#[derive(Debug)]
pub struct Script<'w> {
    wire: &'w Wire,
    flow: FlowKey,
    /// Sequence number of our SYN.
    ours: u32,
    /// Sequence number of its SYN.
    theirs: Cell<Option<u32>>,
    /// What was last acknowledged, counted from its SYN.
    acked: Cell<u32>,
    /// What went both ways, for a message.
    story: RefCell<Vec<String>>,
}

impl<'w> Script<'w> {
    pub(super) fn new(wire: &'w Wire, from: SocketAddr, to: SocketAddr) -> Script<'w> {
        let flow = FlowKey {
            protocol: Protocol::Tcp,
            src: from,
            dst: to,
        };
        Script {
            wire,
            flow,
            // The numbers wrap around within the first bytes.
            ours: u32::MAX - 5,
            theirs: Cell::new(None),
            acked: Cell::new(0),
            story: RefCell::default(),
        }
    }

    /// Another connection between the same ports, with another sequence number.
    pub fn another(&self) -> Script<'w> {
        let mut other = Script::new(self.wire, self.flow.src, self.flow.dst);
        other.ours = self.ours.wrapping_add(0x1234_5678);
        other
    }

    /// The enclave's end.
    pub fn local(&self) -> SocketAddr {
        self.flow.src
    }

    /// Sends a segment.
    ///
    /// # Panics
    /// When the line is none.
    pub fn send(&self, line: &str) {
        self.wire.send(&self.packet(line));
    }

    /// A segment as [`send`](Self::send) sends it.
    pub fn packet(&self, line: &str) -> Vec<u8> {
        let line: Line = line.parse().unwrap_or_else(|error| panic!("{error}"));
        self.story.borrow_mut().push(format!("> {line}"));
        let seq = self.ours.wrapping_add(line.from);
        let window = match line.window {
            Some(Window::Is(window)) => window,
            _ => WINDOW,
        };
        let (from, to) = (self.flow.src, self.flow.dst);
        let mut header = TcpHeader::new(from.port(), to.port(), seq, window);
        let has = |flag| line.flags.contains(flag);
        (header.syn, header.fin, header.rst) = (has('S'), has('F'), has('R'));
        (header.ack, header.psh, header.urg) = (has('A'), has('P'), has('U'));
        if let Some(ack) = line.ack {
            let theirs = self.theirs.get().unwrap_or(0);
            header.acknowledgment_number = theirs.wrapping_add(ack);
            self.acked.set(ack);
        }
        header.urgent_pointer = line.urgent.unwrap_or(0);
        let options: Vec<_> = [
            line.mss.map(TcpOptionElement::MaximumSegmentSize),
            line.scale.map(TcpOptionElement::WindowScale),
        ]
        .into_iter()
        .flatten()
        .collect();
        header.set_options(&options).expect("few options");
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            }
            _ => panic!("{from} and {to} are of two families"),
        };
        let mut packet = Vec::new();
        // A SYN takes a place before its data.
        let syn = u32::from(has('S'));
        builder
            .tcp_header(header)
            .write(&mut packet, &stream_bytes(line.from + syn, line.to + syn))
            .expect("written to memory");
        packet
    }

    /// The connection's next packet is this segment.
    ///
    /// # Panics
    /// When it is another, or none comes in time.
    #[track_caller]
    pub fn expect(&self, line: &str) -> Line {
        self.expect_within(line, Duration::from_secs(PATIENCE))
    }

    /// The same, within some time.
    #[track_caller]
    pub fn expect_within(&self, line: &str, patience: Duration) -> Line {
        let wanted: Line = line.parse().unwrap_or_else(|error| panic!("{error}"));
        loop {
            let Some(seen) = self.wire.next_of(self.flow, patience) else {
                self.fail(&format!("expected: {wanted}\n nothing within {patience:?}"))
            };
            match self.line(&seen) {
                Some(came) if wanted.fits(&came) => return came,
                Some(came) if self.is_question(&came) => {}
                Some(came) => self.fail(&format!("expected: {wanted}\n     came: {came}")),
                None => self.fail(&format!("expected: {wanted}\n     came: {:?}", seen.icmp)),
            }
        }
    }

    /// Whether it only asks for an acknowledgement: a byte that was acknowledged before.
    fn is_question(&self, came: &Line) -> bool {
        came.flags == "A" && came.to == came.from + 1 && came.to <= self.acked.get()
    }

    /// This segment comes; acknowledgements without anything else may come before it.
    #[track_caller]
    pub fn expect_after_acks(&self, line: &str) -> Line {
        let wanted: Line = line.parse().unwrap_or_else(|error| panic!("{error}"));
        loop {
            let came = self.next_line(&wanted.to_string());
            if wanted.fits(&came) {
                return came;
            }
            if came.flags != "A" || came.from != came.to {
                self.fail(&format!("expected: {wanted}\n     came: {came}"));
            }
        }
    }

    /// These bytes come, in order and each as the stream has it, in whatever segments. Tells the
    /// last one.
    #[track_caller]
    pub fn expect_bytes(&self, from: u32, to: u32) -> Line {
        let mut next = from;
        loop {
            let came = self.next_line(&format!("bytes {next}:{to}"));
            if came.from == came.to && came.flags == "A" {
                continue;
            }
            let plain = came.flags.trim_end_matches('P') == "A";
            if !plain || came.from != next || came.to > to {
                self.fail(&format!("expected: bytes {next}:{to}\n     came: {came}"));
            }
            next = came.to;
            if next == to {
                return came;
            }
        }
    }

    /// The same, and the end of the stream behind them, whether in a segment of its own or not.
    #[track_caller]
    pub fn expect_bytes_and_end(&self, from: u32, to: u32) -> Line {
        let mut next = from;
        loop {
            let came = self.next_line(&format!("bytes {next}:{to} and the end"));
            if came.from == came.to && came.flags == "A" {
                continue;
            }
            let ends = came.flags.contains('F');
            let is_next = came.from == next && came.to <= to && !came.flags.contains('R');
            if !is_next || (ends && came.to != to) {
                self.fail(&format!(
                    "expected: bytes {next}:{to} and the end\n     came: {came}"
                ));
            }
            next = came.to;
            if ends {
                return came;
            }
        }
    }

    /// The connection's next packet is an ICMP error about it, of this type and code. Tells its
    /// second word.
    #[track_caller]
    pub fn expect_icmp(&self, kind: u8, code: u8) -> u32 {
        match self.wire.next_of(self.flow, Duration::from_secs(PATIENCE)) {
            None => self.fail(&format!("expected: ICMP {kind}/{code}\n nothing came")),
            Some(seen) => match seen.icmp {
                Some((k, c, rest)) if (k, c) == (kind, code) => rest,
                other => {
                    let came = self.line(&seen);
                    self.fail(&format!(
                        "expected: ICMP {kind}/{code}\n     came: {other:?} {came:?}"
                    ))
                }
            },
        }
    }

    /// Nothing comes for some time, but questions for an acknowledgement that is owed.
    #[track_caller]
    pub fn silent_for(&self, time: Duration) {
        let end = Instant::now() + time;
        let left = || end.saturating_duration_since(Instant::now());
        while let Some(seen) = self.wire.next_of(self.flow, left()) {
            let came = self.line(&seen);
            if came.as_ref().is_some_and(|came| self.is_question(came)) {
                continue;
            }
            let came = came.map(|line| line.to_string());
            self.fail(&format!(
                "expected: silence for {time:?}\n     came: {}",
                came.unwrap_or_else(|| format!("ICMP {:?}", seen.icmp))
            ));
        }
    }

    /// The handshake, as a kernel does it.
    #[track_caller]
    pub fn open(&self) -> &Self {
        self.send("S 0 mss 1460");
        self.expect("SA 0 ack 1");
        self.send("A 1 ack 1");
        self
    }

    /// The connection's next segment, whatever it is.
    #[track_caller]
    pub fn next(&self) -> Line {
        self.next_line("any segment")
    }

    /// The connection's next segment, if one comes in time.
    #[track_caller]
    pub fn next_within(&self, time: Duration) -> Option<Line> {
        loop {
            let line = self.line(&self.wire.next_of(self.flow, time)?)?;
            if !self.is_question(&line) {
                return Some(line);
            }
        }
    }

    #[track_caller]
    fn next_line(&self, wanted: &str) -> Line {
        let patience = Duration::from_secs(PATIENCE);
        loop {
            let Some(seen) = self.wire.next_of(self.flow, patience) else {
                self.fail(&format!("expected: {wanted}\n nothing within {patience:?}"))
            };
            match self.line(&seen) {
                Some(line) if self.is_question(&line) => {}
                Some(line) => return line,
                None => self.fail(&format!("expected: {wanted}\n     came: {:?}", seen.icmp)),
            }
        }
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        let story = self.story.borrow().join("\n");
        panic!("{}\n{what}\nbefore that:\n{story}", self.flow)
    }

    /// What came, and into the story with it. Compares the payload.
    #[track_caller]
    fn line(&self, seen: &Seen) -> Option<Line> {
        let packet = Packet::parse(&seen.bytes).expect("parsed before");
        let Transport::Tcp(tcp) = packet.transport() else {
            self.story
                .borrow_mut()
                .push(format!("< ICMP {:?}", seen.icmp));
            return None;
        };
        if tcp.syn() {
            self.theirs.set(Some(tcp.sequence_number()));
        }
        let theirs = self.theirs.get().unwrap_or(0);
        let flags = [
            (tcp.syn(), 'S'),
            (tcp.fin(), 'F'),
            (tcp.rst(), 'R'),
            (tcp.ack(), 'A'),
            (tcp.psh(), 'P'),
            (tcp.urg(), 'U'),
        ];
        let from = tcp.sequence_number().wrapping_sub(theirs);
        let length = u32::try_from(tcp.payload().len()).expect("short");
        let (mut mss, mut scale) = (None, None);
        for option in tcp.options_iterator().flatten() {
            match option {
                TcpOptionElement::MaximumSegmentSize(size) => mss = Some(size),
                TcpOptionElement::WindowScale(shift) => scale = Some(shift),
                _ => {}
            }
        }
        let line = Line {
            flags: flags.iter().filter(|f| f.0).map(|f| f.1).collect(),
            from,
            to: from.wrapping_add(length),
            ack: (tcp.ack()).then(|| tcp.acknowledgment_number().wrapping_sub(self.ours)),
            window: Some(Window::Is(tcp.window_size())),
            mss,
            scale,
            urgent: tcp.urg().then(|| tcp.urgent_pointer()),
        };
        self.story.borrow_mut().push(format!("< {line}"));
        // A keep-alive probe carries a byte that is none of the stream's.
        let is_probe = length == 1 && tcp.payload() == [0];
        if tcp.payload() != stream_bytes(line.from, line.to) && !is_probe {
            self.fail(&format!("the bytes of {line} are not those of the stream"));
        }
        Some(line)
    }
}
