//! The reference model of one connection: what its two programs did, and so what each may see.
//!
//! It knows nothing of packets, windows or rings, only what holds on any network:
//!
//! * A program is told that it is connected only if the real connection stood; otherwise exactly
//!   what became of the dial.
//! * It reads what the other wrote, in order, each byte once, and the end only behind the last byte
//!   and only if the other ended its half. Its own half is not touched by that.
//! * It sees a reset only if there was a cause: the other side's, a time that ran out, a limit.
//!
//! Each rule is asserted when a program sees something. That what was promised comes at all is
//! asserted at the end of a schedule ([`Ledger::assert_complete`]).

use crate::random::Random;
use crate::stream::Stream;
use host_netd::engine::DialError;
use netd_proto::build::IcmpError;

/// The two programs of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// In the enclave.
    Enclave,
    /// On the host's side, as near or far as it may be.
    Outside,
}

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Enclave => Side::Outside,
            Side::Outside => Side::Enclave,
        }
    }
}

/// What became of the real connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dial {
    /// It stood.
    Stands,
    /// It failed, and the enclave was told.
    Failed(DialError),
    /// There was no room for the flow: it was refused.
    Limit,
}

/// What a program that connects is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is connected.
    Connected,
    /// By a reset.
    Refused,
    /// By an ICMP error of this type and code.
    Icmp(u8, u8),
}

/// One side's program.
#[derive(Clone, Debug)]
struct Program {
    stream: Stream,
    wrote: u64,
    finished: bool,
    read: u64,
    saw_end: bool,
    saw_reset: bool,
    /// It closed its socket: what comes after that is not seen by anybody.
    left: bool,
}

impl Program {
    fn new(stream: Stream) -> Program {
        Program {
            stream,
            wrote: 0,
            finished: false,
            read: 0,
            saw_end: false,
            saw_reset: false,
            left: false,
        }
    }
}

/// One connection as its two programs see it.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    ipv6: bool,
    programs: [Program; 2],
    /// The enclave's kernel repeats its SYN, so there may have been several.
    dials: Vec<Dial>,
    told: Option<Told>,
    /// Why resets may be seen.
    cause: Option<&'static str>,
}

impl Ledger {
    /// A connection that was not dialed yet.
    pub(crate) fn new(random: &mut Random, ipv6: bool) -> Ledger {
        let mut program = || Program::new(Stream::new(random));
        Ledger {
            ipv6,
            programs: [program(), program()],
            dials: Vec::new(),
            told: None,
            cause: None,
        }
    }

    fn program(&mut self, side: Side) -> &mut Program {
        &mut self.programs[side as usize]
    }

    /// What the program of that side writes.
    pub(crate) fn stream(&self, side: Side) -> Stream {
        self.programs[side as usize].stream
    }

    /// Bytes it wrote.
    pub(crate) fn written(&self, side: Side) -> u64 {
        self.programs[side as usize].wrote
    }

    /// Bytes it read.
    pub(crate) fn has_read(&self, side: Side) -> u64 {
        self.programs[side as usize].read
    }

    /// A program wrote bytes.
    pub(crate) fn wrote(&mut self, side: Side, bytes: usize) {
        let program = self.program(side);
        assert!(!program.finished, "the bed writes behind an end");
        program.wrote += bytes as u64;
    }

    /// A program ended its half of the connection.
    pub(crate) fn finished(&mut self, side: Side) {
        self.program(side).finished = true;
    }

    /// Whether it did.
    pub(crate) fn is_finished(&self, side: Side) -> bool {
        self.programs[side as usize].finished
    }

    /// A program closed its socket; what is still on its way to it is answered by a reset.
    pub(crate) fn left(&mut self, side: Side) {
        self.program(side).finished = true;
        self.program(side).left = true;
    }

    /// Whether it did.
    pub(crate) fn has_left(&self, side: Side) -> bool {
        self.programs[side as usize].left
    }

    /// From now on resets may be seen.
    pub(crate) fn cause(&mut self, cause: &'static str) {
        self.cause.get_or_insert(cause);
    }

    /// The enclave asks again, and the outside knows nothing of what was before.
    pub(crate) fn dialed_again(&mut self) {
        let stream = self.stream(Side::Outside);
        *self.program(Side::Outside) = Program::new(stream);
    }

    /// What became of the dial.
    pub(crate) fn dialed(&mut self, dial: Dial) {
        self.dials.push(dial);
    }

    /// The enclave's program is told what became of its connect.
    pub(crate) fn told(&mut self, told: Told) {
        assert_eq!(self.told, None, "told {told:?} as well");
        self.told = Some(told);
        let right = self.dials.iter().any(|dial| match dial {
            Dial::Failed(DialError::Silent) => false,
            Dial::Stands => told == Told::Connected,
            Dial::Limit | Dial::Failed(DialError::Refused) => told == Told::Refused,
            Dial::Failed(DialError::Icmp(error)) => told == self.icmp(*error),
        });
        // The outside, or a limit, may reset a connection that the program did not know of yet.
        let reset_at_once = told == Told::Refused && self.cause.is_some();
        assert!(
            right || reset_at_once,
            "the program was told {told:?} of {:?}",
            self.dials
        );
    }

    fn icmp(&self, error: IcmpError) -> Told {
        let (kind, code) = match (error, self.ipv6) {
            (IcmpError::NetUnreachable, false) => (3, 0),
            (IcmpError::NetUnreachable, true) => (1, 0),
            (IcmpError::HostUnreachable, false) => (3, 1),
            (IcmpError::HostUnreachable, true) => (1, 3),
            (IcmpError::Prohibited, false) => (3, 13),
            (IcmpError::Prohibited, true) => (1, 1),
            (other, _) => panic!("the bed does not dial {other:?}"),
        };
        Told::Icmp(kind, code)
    }

    /// Bytes reach a program, or its kernel for it.
    pub(crate) fn reads(&mut self, side: Side, bytes: &[u8]) {
        let other = self.programs[side.other() as usize].clone();
        let program = self.program(side);
        let place = program.read;
        program.read += bytes.len() as u64;
        assert!(!program.saw_end, "{side:?} reads bytes behind the end");
        assert!(
            program.read <= other.wrote,
            "{side:?} reads {} bytes at {place}, and {} were written",
            bytes.len(),
            other.wrote
        );
        assert!(
            other.stream.is(place, bytes),
            "{side:?} reads wrong bytes among {} at {place}",
            bytes.len()
        );
    }

    /// A program sees the end of what the other writes.
    pub(crate) fn sees_end(&mut self, side: Side) {
        let other = self.programs[side.other() as usize].clone();
        let program = self.program(side);
        assert!(!program.saw_end, "{side:?} sees a second end");
        program.saw_end = true;
        assert!(other.finished, "{side:?} sees an end that nobody made");
        assert_eq!(
            program.read, other.wrote,
            "{side:?} sees the end before the last byte"
        );
    }

    /// A program sees a reset.
    pub(crate) fn sees_reset(&mut self, side: Side) {
        self.program(side).saw_reset = true;
        assert!(
            self.cause.is_some(),
            "{side:?} sees a reset without a cause: {self:?}"
        );
    }

    /// Whether the program of that side has nothing more to see.
    pub(crate) fn is_over(&self, side: Side) -> bool {
        let program = &self.programs[side as usize];
        program.left || program.saw_reset || (program.saw_end && program.finished)
    }

    /// Everything had time to arrive and did.
    pub(crate) fn assert_complete(&self) {
        for side in [Side::Enclave, Side::Outside] {
            let (program, other) = (
                &self.programs[side as usize],
                &self.programs[side.other() as usize],
            );
            if program.left || self.cause.is_some() {
                continue;
            }
            assert_eq!(
                program.read, other.wrote,
                "{side:?} did not read everything: {self:?}"
            );
            assert!(
                !other.finished || program.saw_end,
                "{side:?} did not see the end: {self:?}"
            );
        }
    }
}
