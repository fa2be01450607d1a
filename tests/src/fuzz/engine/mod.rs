//! The engine, between an enclave that sends whatever it likes and a host on which anything
//! happens.
//!
//! An input is a list of operations; [`World::step`] does one. The world plays the data loop: it
//! does what effects ask for, gives flows their turn and forgets those that ended. After each
//! operation it looks at what the engine owes it:
//!
//! * every packet for the enclave is whole, addressed to it, has right checksums and offers no
//!   offload that was not agreed on;
//! * every flow that the engine has is known to its caller, so none can leak, and there are no more
//!   than the limit says;
//! * memory, the link's queue and the work of one turn or deadline are bounded;
//! * bytes of a TCP stream arrive as they were sent, both ways, whatever is repeated, overlaps or
//!   comes too early.

mod checks;
mod enclave;
mod host;
mod peer;

use super::{Input, own_hello};
use checks::{is_sound, may_leave};
use host_netd::engine::{
    DatagramKind, DialTarget, Effect, Egress, Engine, FlowId, Limits, Outgoing, Standing,
};
use host_netd::limits::{MAX_DIALS, QUANTUM};
use host_netd::local::LocalAddresses;
use netd_proto::frame::{ANSWER_RESERVE, Decoder, HEADER, Kind};
use netd_proto::handshake::Features;
use netd_proto::limits::{LINK_QUEUE, MAX_PACKET_FRAME};
use netd_proto::packet::FlowKey;
use netd_proto::policy::Policy;
use peer::{Peer, enclave, gateway};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Operations of one input: more makes a run slow and finds no more.
const STEPS: usize = 300;

/// Turns that one flow can need to send all it has: a full ring in the smallest segments.
const TURNS: usize = 4096;

/// How often deadlines of one flow can follow each other without time passing.
const DEADLINES: usize = 16;

/// An input drives an engine; see the module's text.
pub fn engine(input: &[u8]) {
    let mut input = Input::new(input);
    let mut world = World::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
        world.check();
    }
    world.end();
}

/// A flow as the engine's caller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Dialing,
    Tcp,
    Datagram { kind: DatagramKind, ipv6: bool },
}

struct World {
    engine: Engine,
    now: Instant,
    features: Features,
    limits: Limits,
    flows: BTreeMap<FlowId, Known>,
    peers: Vec<Peer>,
    /// Bytes in the link's queue that were looked at.
    seen: usize,
    /// The link takes nothing.
    stuck: bool,
    /// Flows that wait for the link.
    stalled: Vec<FlowId>,
    decoder: Decoder,
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        let choice = input.byte();
        let features = Features(u32::from(choice & 15));
        let flows = input.pick(&[4, 1, 16]);
        let limits = Limits {
            flows,
            all_flows: flows,
            // One flow's burst must fit between "short" and the most that may be in use.
            ring_memory: input.pick(&[2048, 1024, 8192]) * 1024,
            ..Limits::DEFAULT
        };
        let rules: &[&str] = match choice >> 4 & 3 {
            0 | 1 => &[],
            2 => &["allow tcp a.example", "deny 192.0.2.2", "allow 127.0.0.1"],
            _ => &["allow udp *:53", "deny tcp *:80", "allow 169.254.169.254"],
        };
        let rules = rules.iter().map(|rule| rule.parse().expect("a rule"));
        let now = Instant::now();
        let engine = Engine::new(
            own_hello(),
            features,
            Policy::new(rules.collect()),
            Arc::new(LocalAddresses::default()),
            limits,
            now,
        );
        let mut world = World {
            // An input is to do the same each time.
            engine: engine.with_fixed_seed(1),
            now,
            features,
            limits,
            flows: BTreeMap::new(),
            peers: peer::peers(),
            seen: 0,
            stuck: false,
            stalled: Vec::new(),
            decoder: Decoder::new(),
        };
        if choice & 0x40 != 0 {
            let like = world.peers[usize::from(choice >> 7)].ends.0.ip();
            if let Some(id) = world.engine.publish_udp(5353, like) {
                world.know_datagram(id, DatagramKind::Udp, like);
                world.limits.flows += 1;
            }
        }
        world
    }

    fn know_datagram(&mut self, id: FlowId, kind: DatagramKind, like: IpAddr) {
        let ipv6 = like.is_ipv6();
        let known = self.flows.insert(id, Known::Datagram { kind, ipv6 });
        assert_eq!(known, None, "a new flow has the name of another");
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 24 {
            0..=5 => self.segment(input),
            6 => self.datagram(input),
            7 => self.other_packet(input),
            8 => {
                let n = usize::from(input.byte());
                let frame = input.take(n).to_vec();
                self.packet(&frame);
            }
            9 | 10 => self.connected(input),
            11 => self.dial_failed(input),
            12 => self.accept(input),
            13 | 14 => self.give(input),
            15 | 16 => self.take(input),
            17 => self.end_half(input),
            18 => self.receive(input),
            19 => self.datagram_error(input),
            20 => self.link(input),
            21 => self.pass(input),
            22 => self.dns(input),
            _ => self.drop_flow(input),
        }
    }

    /// The link, the flows that wait for it, and deadlines have their turn.
    fn check(&mut self) {
        self.look();
        if !self.stuck {
            self.drain();
        }
        self.expire();
        assert_eq!(
            self.engine.flow_count(),
            self.flows.len(),
            "the engine has flows that its caller does not know"
        );
        assert!(self.flows.len() <= self.limits.flows);
        assert!(self.engine.ring_memory() <= self.limits.most_ring_memory());
    }

    /// The enclave and the host are gone: nothing is left behind.
    fn end(&mut self) {
        for id in std::mem::take(&mut self.flows).into_keys() {
            self.engine.remove(id);
        }
        assert_eq!(self.engine.flow_count(), 0);
        assert_eq!(self.engine.ring_memory(), 0, "memory is counted twice");
        let later = self.now + Duration::from_secs(1 << 20);
        assert!(self.engine.expired(later).is_none(), "a flow that is gone");
        assert_eq!(self.engine.next_timeout(), None);
    }

    /// Does what the engine asks for; a flow that is to have its turn.
    fn does(&mut self, effect: Effect<'_>, key: Option<FlowKey>) -> Option<FlowId> {
        match effect {
            Effect::None => {}
            Effect::Turn(id) => {
                assert_eq!(self.flows.get(&id), Some(&Known::Tcp));
                return Some(id);
            }
            Effect::Dial(id, target) => {
                let known = self.flows.insert(id, Known::Dialing);
                assert_eq!(known, None, "a new flow has the name of another");
                let asked = key.expect("of a packet").dst;
                match target {
                    DialTarget::Dns => {
                        assert_eq!(asked, SocketAddr::new(gateway(asked.ip()), 53));
                    }
                    DialTarget::Host(to) => may_leave(to, asked),
                }
                let dialing = self.flows.values().filter(|k| **k == Known::Dialing);
                assert!(dialing.count() <= MAX_DIALS);
            }
            Effect::Redial { gone, id, target } => {
                self.does(Effect::Gone(gone), None);
                return self.does(Effect::Dial(id, target), key);
            }
            Effect::Gone(id) => {
                let known = self.flows.remove(&id);
                assert!(known.is_some(), "a flow that is not known is gone");
                assert!(self.engine.tcp(id).is_none());
            }
            Effect::Datagram(out) => self.leaves(&out, key),
            Effect::Dns {
                client,
                gateway: asked,
                query,
                segment,
            } => {
                assert_eq!(asked, SocketAddr::new(gateway(asked.ip()), 53));
                assert_eq!(client.ip(), enclave(asked.ip()));
                assert!(segment.is_none_or(|size| size > 0 && usize::from(size) < query.len()));
            }
        }
        None
    }

    fn leaves(&mut self, out: &Outgoing<'_>, key: Option<FlowKey>) {
        if out.is_new {
            self.know_datagram(out.flow, out.kind, out.to.ip());
        }
        let known = Known::Datagram {
            kind: out.kind,
            ipv6: out.to.is_ipv6(),
        };
        assert_eq!(self.flows.get(&out.flow), Some(&known));
        may_leave(out.to, key.map_or(out.to, |key| key.dst));
        assert!(out.hop_limit > 0);
        let segment = out.segment.map(usize::from);
        assert!(segment.is_none_or(|size| size > 0 && size < out.payload.len()));
    }

    /// Gives a TCP flow its turn, and forgets it when it ended.
    fn turn(&mut self, id: FlowId) {
        for turns in 0.. {
            assert!(turns < TURNS, "a flow sends without end");
            let egress = self.engine.egress(id, QUANTUM, self.now);
            self.look();
            match egress {
                Egress::Done => break,
                Egress::More => {}
                Egress::LinkFull if self.stuck => {
                    self.stalled.push(id);
                    return;
                }
                Egress::LinkFull => {}
            }
            if !self.stuck {
                self.empty_queue();
            }
        }
        let standing = self.engine.tcp(id).map(|flow| flow.standing());
        if matches!(standing, Some(Standing::Finished | Standing::Reset)) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: FlowId) {
        self.flows.remove(&id);
        self.engine.remove(id);
        for peer in &mut self.peers {
            peer.flow = peer.flow.filter(|flow| *flow != id);
        }
    }

    /// Looks at what the engine queued since the last look.
    fn look(&mut self) {
        let queue = self.engine.queue();
        assert!(queue.len() <= LINK_QUEUE + HEADER + MAX_PACKET_FRAME + ANSWER_RESERVE);
        let fresh = &queue.pending()[self.seen..];
        self.seen = queue.len();
        let mut rest = fresh;
        while !rest.is_empty() {
            let n = rest.len().min(LINK_QUEUE);
            self.decoder.space()[..n].copy_from_slice(&rest[..n]);
            self.decoder.advance(n);
            rest = &rest[n..];
            while let Some(frame) = self.decoder.next().expect("own frames") {
                assert_eq!(frame.kind, Kind::Packet);
                let packet = is_sound(frame.payload, self.features);
                let ends = packet.flow_key().map(|key| (key.dst, key.src));
                let peer = ends.and_then(|ends| self.peers.iter_mut().find(|p| p.ends == ends));
                if let Some(peer) = peer {
                    peer.receives(&packet);
                }
            }
        }
    }

    fn empty_queue(&mut self) {
        self.engine.queue().clear();
        self.seen = 0;
    }

    fn drain(&mut self) {
        self.empty_queue();
        for id in std::mem::take(&mut self.stalled) {
            self.turn(id);
        }
    }

    fn expire(&mut self) {
        let most = DEADLINES * (self.limits.flows + 1);
        for met in 0.. {
            assert!(met < most, "deadlines follow each other without end");
            if let Some(effect) = self.engine.expired(self.now) {
                if let Some(id) = self.does(effect, None) {
                    self.turn(id);
                }
                continue;
            }
            if self.engine.next_timeout().is_none_or(|at| at > self.now) {
                return;
            }
        }
    }

    fn link(&mut self, input: &mut Input<'_>) {
        match input.byte() & 3 {
            0 => self.stuck = true,
            1 => self.stuck = false,
            _ => {
                // Takes a part.
                let queue = self.engine.queue();
                let n = usize::from(input.word()).min(queue.len());
                queue.consume(n);
                self.seen -= n;
                if self.engine.queue().has_room() {
                    for id in std::mem::take(&mut self.stalled) {
                        self.turn(id);
                    }
                }
            }
        }
    }

    fn pass(&mut self, input: &mut Input<'_>) {
        let ms = input.pick(&[1, 10, 200, 1000, 5000, 30_000, 125_000, 600_000, 7_200_000]);
        self.now += Duration::from_millis(ms);
    }
}
