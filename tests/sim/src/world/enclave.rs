//! The enclave: its programs' calls, and what its kernel does with packets.

use super::{Connection, Terms, World};
use crate::ledger::{Ledger, Side, Told};
use crate::tcp::{Habits, Seen, Tcp};
use crate::wire::{self, ACK, SYN, Segment};
use netd_proto::handshake::Features;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::Packet;
use std::net::SocketAddr;

impl World {
    pub(crate) fn habits(&mut self, ipv6: bool) -> Habits {
        let Terms { features, mtu, .. } = self.terms;
        let checksum = features.contains(Features::CHECKSUM);
        let tso = if ipv6 { Features::TSO6 } else { Features::TSO4 };
        let tso = checksum && features.contains(tso);
        Habits::new(&mut self.random, mtu, ipv6, checksum, tso)
    }

    /// A program in the enclave connects. Nothing happens if the addresses are in use.
    pub(crate) fn connect(&mut self, local: SocketAddr, remote: SocketAddr) {
        if let Some(&index) = self.sockets.get(&(local, remote))
            && !self.may_be_used_again(index)
        {
            return;
        }
        let habits = self.habits(local.is_ipv6());
        self.connect_as(local, remote, habits);
    }

    /// The same, of a kernel and program that are so.
    pub(crate) fn connect_as(&mut self, local: SocketAddr, remote: SocketAddr, habits: Habits) {
        let ledger = Ledger::new(&mut self.random, local.is_ipv6());
        let identity = (self.random.any() as u32, ledger.stream(Side::Enclave));
        let tcp = Tcp::connect((local, remote), habits, identity, self.now);
        let index = self.connections.len();
        self.note(|_| format!("#{index} {local} connects to {remote}, {habits:?}"));
        self.sockets.insert((local, remote), index);
        self.add(local, remote, Some(tcp), ledger);
    }

    /// Whether the enclave's kernel lets a program use the addresses of a connection again: at once
    /// where it has no socket any more.
    pub(super) fn may_be_used_again(&self, index: usize) -> bool {
        let connection = &self.connections[index];
        match &connection.tcp {
            Some(tcp) if tcp.is_in_time_wait() => connection.flow.is_none(),
            Some(tcp) => tcp.is_gone(),
            None => true,
        }
    }

    pub(super) fn add(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        tcp: Option<Tcp>,
        ledger: Ledger,
    ) -> &mut Connection {
        self.connections.push(Connection {
            local,
            remote,
            tcp,
            ledger,
            host: None,
            flow: None,
            syn: None,
            opened: self.now,
            shaken: false,
        });
        self.connections.last_mut().expect("just pushed")
    }

    /// A program in the enclave writes up to `most` bytes.
    pub(crate) fn enclave_writes(&mut self, index: usize, most: u64) {
        let connection = &mut self.connections[index];
        let Some(tcp) = &mut connection.tcp else {
            return;
        };
        let bytes = tcp.write(most);
        if bytes > 0 {
            connection.ledger.wrote(Side::Enclave, bytes as usize);
            self.note(|_| format!("#{index} enclave writes {bytes}"));
        }
    }

    pub(crate) fn enclave_reads(&mut self, index: usize, most: u64) {
        let Some(tcp) = &mut self.connections[index].tcp else {
            return;
        };
        let bytes = tcp.read(most);
        if bytes > 0 {
            self.note(|_| format!("#{index} enclave reads {bytes}"));
        }
    }

    pub(crate) fn enclave_finishes(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let Some(tcp) = &mut connection.tcp
            && tcp.is_open()
            && !connection.ledger.is_finished(Side::Enclave)
        {
            tcp.finish();
            connection.ledger.finished(Side::Enclave);
            self.note(|_| format!("#{index} enclave ends its half"));
        }
    }

    pub(crate) fn enclave_closes(&mut self, index: usize, by_reset: bool) {
        let connection = &mut self.connections[index];
        let Some(tcp) = &mut connection.tcp else {
            return;
        };
        if tcp.is_gone() || tcp.is_half_open() || connection.ledger.has_left(Side::Enclave) {
            return;
        }
        let cancelled = tcp.is_connecting();
        connection.ledger.left(Side::Enclave);
        let reset = if by_reset {
            tcp.abort(&mut self.up);
            true
        } else {
            tcp.close(&mut self.up)
        };
        if reset || cancelled {
            connection.ledger.cause("the enclave closed its socket");
        }
        self.note(|_| format!("#{index} enclave closes, by reset: {reset}"));
    }

    pub(crate) fn enclave_transmits(&mut self, index: usize, most: usize) {
        let now = self.now;
        if let Some(tcp) = &mut self.connections[index].tcp {
            tcp.transmit(most, &mut self.up, now);
        }
    }

    pub(crate) fn enclave_repeats(&mut self, index: usize) {
        let now = self.now;
        if let Some(tcp) = &mut self.connections[index].tcp {
            tcp.repeat_for_nothing(&mut self.up, now);
        }
    }

    pub(super) fn enclave_receives(&mut self, packet: &Packet<'_>, vnet: &VnetHeader) {
        let segment = Segment::of(packet, vnet).expect("TCP");
        let index = self.sockets.get(&(segment.to, segment.from)).copied();
        let asks = segment.has(SYN) && !segment.has(ACK);
        let index = match index {
            Some(index) if !asks => index,
            Some(index) if !self.enclave_has_forgotten(index) => index,
            _ if asks => return self.enclave_accepts(packet, &segment),
            _ => {
                self.up.extend(wire::reset(packet));
                return;
            }
        };
        let connection = &mut self.connections[index];
        let (Some(tcp), ledger) = (&mut connection.tcp, &mut connection.ledger) else {
            return;
        };
        tcp.receive(&segment, &mut self.up, self.now, &mut |seen| {
            show(ledger, seen);
        });
    }

    pub(super) fn enclave_has_forgotten(&self, index: usize) -> bool {
        (self.connections[index].tcp.as_ref()).is_none_or(Tcp::is_gone)
    }

    /// A SYN for a port of the enclave.
    pub(super) fn enclave_accepts(&mut self, packet: &Packet<'_>, syn: &Segment<'_>) {
        let Some(index) = self.connections.iter().rposition(|connection| {
            let here = connection.local == syn.to && connection.remote == syn.from;
            here && connection.syn == Some(syn.seq) && connection.tcp.is_none()
        }) else {
            self.up.extend(wire::reset(packet));
            return;
        };
        match self.random.below(20) {
            0 => {
                let ledger = &mut self.connections[index].ledger;
                ledger.cause("nobody listens in the enclave");
                ledger.left(Side::Enclave);
                self.up.extend(wire::reset(packet));
            }
            // As a full backlog does.
            1 if !self.fair => self.note(|_| format!("#{index} enclave ignores a SYN")),
            _ => {
                let habits = self.habits(syn.to.is_ipv6());
                let stream = self.connections[index].ledger.stream(Side::Enclave);
                let identity = (self.random.any() as u32, stream);
                let tcp = Tcp::accept(syn, habits, identity, self.now);
                self.note(|_| format!("#{index} enclave accepts, {habits:?}"));
                self.connections[index].tcp = Some(tcp);
                self.sockets.insert((syn.to, syn.from), index);
            }
        }
    }

    /// An ICMP error reached the enclave.
    pub(super) fn enclave_told(&mut self, packet: &Packet<'_>, kind: u8, code: u8) {
        let quoted = &packet.bytes()[packet.transport_offset() + 8..];
        let ipv6 = packet.is_ipv6();
        if quoted[if ipv6 { 6 } else { 9 }] != wire::TCP {
            return self.enclave_gets_error((kind, code), quoted);
        }
        let quoted = Packet::parse(quoted).expect("a SYN is quoted whole");
        let segment = Segment::of(&quoted, &VnetHeader::NONE).expect("TCP");
        let index = self.by_syn(&segment).expect("a SYN of the enclave");
        let connection = &mut self.connections[index];
        let Some(tcp) = &mut connection.tcp else {
            return;
        };
        if tcp.is_connecting() {
            tcp.unreachable();
            connection.ledger.told(Told::Icmp(kind, code));
            give_up(&mut connection.ledger);
        }
    }
}

/// The enclave's program has its answer, and its socket is gone.
pub(super) fn give_up(ledger: &mut Ledger) {
    ledger.left(Side::Enclave);
    ledger.cause("the enclave gave up");
}

/// What the enclave's program sees.
fn show(ledger: &mut Ledger, seen: Seen<'_>) {
    match seen {
        Seen::Connected => ledger.told(Told::Connected),
        Seen::Refused => {
            ledger.told(Told::Refused);
            give_up(ledger);
        }
        Seen::Bytes(bytes) => ledger.reads(Side::Enclave, bytes),
        Seen::End => ledger.sees_end(Side::Enclave),
        Seen::Reset => ledger.sees_reset(Side::Enclave),
        Seen::Unwanted => ledger.cause("bytes for a closed socket in the enclave"),
    }
}
