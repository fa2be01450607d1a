//! The data loop: what host-netd's `io/data.rs` and `io/work.rs` do, in steps.

use super::enclave::give_up;
use super::{Role, Slot, World, enclave_of};
use crate::host::{Host, Turn};
use crate::ledger::{Dial, Ledger, Side};
use crate::tcp::Tcp;
use crate::wire::{ACK, SYN, Segment};
use host_netd::engine::drops::DropReason;
use host_netd::engine::{DialError, DialTarget, Effect, FlowId};
use netd_proto::frame::HEADER;
use netd_proto::offload::VnetHeader;
use std::net::SocketAddr;

impl World {
    pub(crate) fn place(&mut self, id: FlowId, role: Role) {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, || None);
        }
        self.slots[id.index()] = Some(Slot {
            id,
            role,
            queued: false,
        });
    }

    pub(super) fn slot(&mut self, id: FlowId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.index())?.as_mut();
        slot.filter(|slot| slot.id == id)
    }

    pub(crate) fn enqueue(&mut self, id: FlowId) {
        if let Some(slot) = self.slot(id)
            && !slot.queued
        {
            slot.queued = true;
            self.fresh.push_back(id);
        }
    }

    pub(super) fn act(&mut self, effect: Effect<'_>, segment: Option<&Segment<'_>>) {
        match effect {
            Effect::None => {}
            Effect::Turn(id) => self.enqueue(id),
            Effect::Dial(id, target) => {
                let syn = segment.expect("only a SYN is dialed");
                self.dial(id, target, syn);
            }
            Effect::Redial { gone, id, target } => {
                self.gone(gone, false);
                self.act(Effect::Dial(id, target), segment);
            }
            Effect::Gone(id) => self.gone(id, segment.is_none()),
            other => panic!("nobody asked for {other:?}"),
        }
    }

    /// A flow is no more; `late` where its time had come.
    fn gone(&mut self, id: FlowId, late: bool) {
        let slot = self.slots[id.index()].take().expect("a flow of ours");
        match slot.role {
            Role::Dialing(index) => {
                let connection = &mut self.connections[index];
                connection.flow = None;
                assert!(
                    late || connection.ledger.has_left(Side::Enclave),
                    "a dial is given up that the enclave waits for"
                );
            }
            Role::Datagram(index) => self.forget_datagrams(index),
            Role::Stream(index) => {
                let connection = &mut self.connections[index];
                connection.flow = None;
                let host = connection.host.as_mut().expect("a stream has a socket");
                host.reset_on_close(&mut connection.ledger);
            }
        }
    }

    pub(super) fn dial(&mut self, id: FlowId, target: DialTarget, syn: &Segment<'_>) {
        let expected = match syn.to.port() {
            53 => DialTarget::Dns,
            _ => DialTarget::Host(syn.to),
        };
        assert_eq!(target, expected, "dialed for {syn:?}");
        let index = self.by_syn(syn).expect("a SYN of the enclave");
        let connection = &mut self.connections[index];
        let waits = (connection.tcp.as_ref()).is_some_and(Tcp::is_connecting);
        let index = if waits && connection.flow.is_none() {
            connection.ledger.dialed_again();
            index
        } else {
            self.add_stray(syn)
        };
        self.connections[index].flow = Some(id);
        self.connections[index].opened = self.now;
        self.place(id, Role::Dialing(index));
    }

    /// A repeated SYN whose program has its answer by now: the enclave's kernel will reset what
    /// comes of it.
    pub(super) fn add_stray(&mut self, syn: &Segment<'_>) -> usize {
        let index = self.connections.len();
        self.note(|_| format!("#{index} comes of a repeated SYN"));
        let mut ledger = Ledger::new(&mut self.random, syn.from.is_ipv6());
        give_up(&mut ledger);
        self.add(syn.from, syn.to, None, ledger);
        index
    }

    /// Whether a connection waits for its dial to be answered.
    pub(crate) fn is_dialing(&mut self, index: usize) -> bool {
        let Some(id) = self.connections[index].flow else {
            return false;
        };
        let role = self.slot(id).map(|slot| slot.role);
        role == Some(Role::Dialing(index))
    }

    /// What became of a dial, unless the link is full: then it is told later.
    pub(crate) fn answer(&mut self, index: usize, answer: Result<(), DialError>) {
        if !self.engine.queue().has_room() || !self.is_dialing(index) {
            return;
        }
        self.note(|_| format!("#{index} dialed: {answer:?}"));
        let connection = &mut self.connections[index];
        let id = connection.flow.expect("it is dialing");
        match answer {
            Ok(()) => {
                connection.ledger.dialed(Dial::Stands);
                connection.host = Some(Host::new(&mut self.random));
                connection.opened = self.now;
                connection.shaken = false;
                assert!(self.engine.connected(id, self.now), "a dial is refused");
                self.place(id, Role::Stream(index));
                self.enqueue(id);
            }
            Err(error) => {
                connection.ledger.dialed(Dial::Failed(error));
                connection.flow = None;
                self.engine.dial_failed(id, error);
                self.slots[id.index()] = None;
            }
        }
    }

    /// A client of a published port was accepted.
    pub(crate) fn accept(&mut self, client: SocketAddr, port: u16) {
        if !self.engine.queue().has_room() {
            return;
        }
        let local = SocketAddr::new(enclave_of(client), port);
        let usage = self.engine.usage();
        let limits = self.terms.limits;
        let taken = (self.connections.iter()).any(|connection| {
            (connection.local, connection.remote) == (local, client) && connection.flow.is_some()
        });
        match self.engine.accept(client, port, self.now) {
            Ok(id) => {
                assert!(!taken, "two flows of {local} and {client}");
                let index = self.connections.len();
                self.note(|_| format!("#{index} {client} connects to {local}"));
                let ledger = Ledger::new(&mut self.random, local.is_ipv6());
                let host = Host::new(&mut self.random);
                let connection = self.add(local, client, None, ledger);
                connection.ledger.dialed(Dial::Stands);
                connection.host = Some(host);
                connection.flow = Some(id);
                self.place(id, Role::Stream(index));
                self.enqueue(id);
            }
            Err(reason) => {
                let right = match reason {
                    DropReason::FlowLimit => usage.flows >= limits.flows,
                    DropReason::MemoryLimit => usage.ring_memory >= limits.ring_memory,
                    DropReason::InboundCollision => taken,
                    _ => false,
                };
                assert!(right, "a client is refused for {reason:?} at {usage:?}");
            }
        }
    }

    /// The data loop hears what the host's kernel has to tell of a connection.
    pub(crate) fn poll_host(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let (Some(host), Some(id)) = (&mut connection.host, connection.flow)
            && host.poll()
        {
            self.enqueue(id);
        }
    }

    /// The next flow's turn: one that something happened to, or one that had more to do.
    pub(crate) fn serve(&mut self, fresh: bool) -> bool {
        let next = if fresh {
            self.fresh.pop_front()
        } else {
            self.again.pop_front()
        };
        let Some(id) = next else { return false };
        self.turn(id);
        true
    }

    pub(super) fn turn(&mut self, id: FlowId) {
        let Some(slot) = self.slot(id) else { return };
        slot.queued = false;
        let role = slot.role;
        self.moved += 1;
        let turn = match role {
            Role::Dialing(_) => return,
            Role::Datagram(index) => match self.receive_datagrams(index) {
                true if self.engine.queue().has_room() => Turn::Again,
                true => Turn::LinkFull,
                false => Turn::Idle,
            },
            Role::Stream(index) => self.stream_turn(id, index),
        };
        self.note(|_| format!("{role:?} turn: {turn:?}"));
        match turn {
            Turn::Idle => return,
            Turn::Again => self.again.push_back(id),
            Turn::LinkFull => self.stalled.push(id),
            Turn::Ended => {
                if let Role::Stream(index) = role {
                    self.connections[index].flow = None;
                }
                self.engine.remove(id);
                self.slots[id.index()] = None;
                return;
            }
        }
        if let Some(slot) = self.slot(id) {
            slot.queued = true;
        }
    }

    pub(super) fn stream_turn(&mut self, id: FlowId, index: usize) -> Turn {
        let connection = &mut self.connections[index];
        let host = connection.host.as_mut().expect("a stream has a socket");
        let queued = self.engine.queue().len();
        let turn = host.turn(&mut self.engine, id, &mut connection.ledger, self.now);
        if connection.tcp.is_none() && connection.syn.is_none() {
            connection.syn = first_syn(&self.engine.queue().pending()[queued..]);
        }
        turn
    }
}

/// The sequence number of the SYN that the first of these frames carries.
fn first_syn(frames: &[u8]) -> Option<u32> {
    let packet = frames.get(HEADER + VnetHeader::LEN..)?;
    let tcp = &packet[if packet[0] >> 4 == 6 { 40 } else { 20 }..];
    let sequence = u32::from_be_bytes(*tcp[4..].first_chunk()?);
    (tcp[13] & (SYN | ACK) == SYN).then_some(sequence)
}
