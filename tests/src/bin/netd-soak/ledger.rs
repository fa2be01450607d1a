//! What was done, what failed, which faults there were, and which failures they excuse.

use crate::datagrams::WAIT;
use crate::stalls::Stalls;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// After a fault has ended, everything works again within this time; and what cannot survive it is
/// told so within the same.
pub(crate) const SERVICE_WITHIN: Duration = Duration::from_secs(2);

/// What carries an operation, and in which direction it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// TCP from the enclave.
    Out,
    /// TCP into the enclave, through a published port.
    In,
    /// UDP or echo: what is lost is lost.
    Datagrams,
    /// A question to the gateway's resolver.
    Names,
}

/// How an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Symptom {
    /// A byte that was never sent, or one that is missing between others.
    WrongBytes,
    /// An end of stream that the other side did not send.
    EarlyEnd,
    /// Nothing for too long.
    Silence,
    /// An error number.
    Errno(i32),
    /// An answer that is not the right one.
    WrongAnswer,
}

impl Symptom {
    pub(crate) fn of(error: &io::Error) -> Symptom {
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::InvalidData, _) => Symptom::WrongBytes,
            (ErrorKind::UnexpectedEof, _) => Symptom::EarlyEnd,
            (ErrorKind::WouldBlock | ErrorKind::TimedOut, _) => Symptom::Silence,
            (_, Some(errno)) => Symptom::Errno(errno),
            _ => Symptom::WrongAnswer,
        }
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Symptom::WrongBytes => f.write_str("wrong bytes"),
            Symptom::EarlyEnd => f.write_str("early end"),
            Symptom::Silence => f.write_str("silence"),
            Symptom::Errno(errno) => write!(f, "{:?}", nix::errno::Errno::from_raw(*errno)),
            Symptom::WrongAnswer => f.write_str("wrong answer"),
        }
    }
}

/// What is done to the daemons and what is around them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The link is cut, and stays away for a moment.
    LinkCut,
    /// The link carries nothing for a moment.
    LinkPause,
    /// The link carries nothing until it is given up.
    LinkFrozen,
    /// `kill -9` of host-netd, and a new one.
    HostKilled,
    /// SIGSTOP for some seconds.
    HostStopped,
    /// SIGSTOP for some seconds.
    EnclaveStopped,
    /// `kill -9` of the server in the internet, and a new one.
    ServerKilled,
    /// resolv.conf names another name server, and the old one dies.
    NamesMoved,
    /// The name server dies, and comes back.
    NamesDead,
}

impl Fault {
    /// What comes in turns throughout.
    pub(crate) const LASTING: [Fault; 8] = [
        Fault::LinkCut,
        Fault::LinkPause,
        Fault::LinkFrozen,
        Fault::HostStopped,
        Fault::EnclaveStopped,
        Fault::ServerKilled,
        Fault::NamesMoved,
        Fault::NamesDead,
    ];

    /// Whether open flows end with it.
    pub(crate) fn ends_flows(self) -> bool {
        use Fault::{HostKilled, LinkCut, LinkFrozen};
        matches!(self, LinkCut | LinkFrozen | HostKilled)
    }

    /// Whether an operation may fail so because of it.
    fn excuses(self, carrier: Carrier, symptom: Symptom) -> bool {
        use Symptom::{EarlyEnd, Errno, Silence, WrongAnswer, WrongBytes};
        match (self, symptom) {
            (_, WrongBytes) => false,
            // A kernel ends the streams of a process that was killed.
            (Fault::HostKilled, EarlyEnd) => carrier == Carrier::In,
            (Fault::ServerKilled, EarlyEnd) => carrier == Carrier::Out,
            (_, EarlyEnd) => false,
            (Fault::LinkCut | Fault::LinkFrozen | Fault::HostKilled, _) => true,
            (Fault::LinkPause | Fault::HostStopped | Fault::EnclaveStopped, Silence) => {
                matches!(carrier, Carrier::Datagrams | Carrier::Names)
            }
            (Fault::ServerKilled, Errno(_)) => {
                matches!(carrier, Carrier::Out | Carrier::Datagrams)
            }
            (Fault::ServerKilled, Silence) => carrier == Carrier::Datagrams,
            (Fault::NamesDead, Silence | WrongAnswer) => carrier == Carrier::Names,
            _ => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::LinkCut => "link cut",
            Fault::LinkPause => "link silent for a moment",
            Fault::LinkFrozen => "link silent until given up",
            Fault::HostKilled => "host-netd kill -9, restarted",
            Fault::HostStopped => "host-netd SIGSTOP, SIGCONT",
            Fault::EnclaveStopped => "enclave-netd SIGSTOP, SIGCONT",
            Fault::ServerKilled => "server kill -9, restarted",
            Fault::NamesMoved => "resolv.conf changed, old name server dies",
            Fault::NamesDead => "name server dies, comes back",
        })
    }
}

/// A fault, from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) fault: Fault,
    pub(crate) begin: Instant,
    pub(crate) end: Instant,
    /// How long after its end everything worked again.
    pub(crate) service: Duration,
}

/// An operation that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) what: &'static str,
    carrier: Carrier,
    pub(crate) symptom: Symptom,
    text: String,
    begin: Instant,
    end: Instant,
}

/// What was done of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    pub(crate) bytes: u64,
    pub(crate) excused: u64,
    pub(crate) failed: u64,
}

/// Takes note of operations.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    done: BTreeMap<&'static str, Tally>,
    /// Those that were done in a second or more, to see which outlasted a fault.
    long: Vec<(Instant, Instant)>,
    failures: Vec<Failure>,
}

/// What is to be told of all operations.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) tallies: BTreeMap<&'static str, Tally>,
    /// Excused failures by symptom.
    pub(crate) excused: BTreeMap<(Symptom, Fault), u64>,
    /// One line for each failure that nothing excuses.
    pub(crate) violations: Vec<String>,
    /// Operations that a fault which ends no flow has not ended.
    pub(crate) outlasted: BTreeMap<Fault, u64>,
}

impl Ledger {
    fn lock(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.0.lock().expect("nobody panics with it")
    }

    /// Runs an operation, notes how it went, and tells whether it was done.
    pub(crate) fn note(
        &self,
        what: &'static str,
        carrier: Carrier,
        bytes: usize,
        operation: impl FnOnce() -> io::Result<()>,
    ) -> bool {
        let begin = Instant::now();
        let outcome = operation();
        let end = Instant::now();
        let mut notes = self.lock();
        let tally = notes.done.entry(what).or_default();
        match outcome {
            Ok(()) => {
                tally.done += 1;
                tally.bytes += bytes as u64;
                if end - begin >= Duration::from_secs(1) {
                    notes.long.push((begin, end));
                }
                true
            }
            Err(error) => {
                notes.failures.push(Failure {
                    what,
                    carrier,
                    symptom: Symptom::of(&error),
                    text: error.to_string(),
                    begin,
                    end,
                });
                false
            }
        }
    }

    /// Holds every failure against the faults.
    pub(crate) fn judge(&self, start: Instant, windows: &[Window], stalls: &Stalls) -> Judgement {
        let notes = self.lock();
        let mut judgement = Judgement {
            tallies: notes.done.clone(),
            ..Judgement::default()
        };
        for failure in &notes.failures {
            // The last try may have begun while it still was to fail.
            let last_try = match failure.carrier {
                Carrier::Datagrams | Carrier::Names => WAIT,
                Carrier::Out | Carrier::In => Duration::ZERO,
            };
            let grace = SERVICE_WITHIN + last_try + stalls.before(failure.end);
            let overlaps =
                |window: &&Window| failure.end >= window.begin && failure.end <= window.end + grace;
            let excuse = windows
                .iter()
                .filter(overlaps)
                .find(|window| window.fault.excuses(failure.carrier, failure.symptom));
            let tally = judgement.tallies.entry(failure.what).or_default();
            match excuse {
                Some(window) => {
                    tally.excused += 1;
                    let key = (failure.symptom, window.fault);
                    *judgement.excused.entry(key).or_default() += 1;
                }
                None => {
                    tally.failed += 1;
                    judgement
                        .violations
                        .push(failure.tell(start, nearest(windows, failure.end)));
                }
            }
        }
        for window in windows.iter().filter(|window| !window.fault.ends_flows()) {
            let through = notes.long.iter();
            let through = through.filter(|(begin, end)| *begin < window.begin && *end > window.end);
            let count = through.count() as u64;
            *judgement.outlasted.entry(window.fault).or_default() += count;
        }
        judgement
    }
}

/// The fault that began last before a moment.
fn nearest(windows: &[Window], at: Instant) -> Option<&Window> {
    windows.iter().rev().find(|window| window.begin <= at)
}

impl Failure {
    fn tell(&self, start: Instant, nearest: Option<&Window>) -> String {
        let at = |moment: Instant| moment.saturating_duration_since(start).as_secs_f64();
        let fault = nearest.map_or_else(
            || "no fault before it".to_owned(),
            |window| {
                let (begin, end) = (at(window.begin), at(window.end));
                format!("the last fault: {}, {begin:.1}-{end:.1} s", window.fault)
            },
        );
        let (begin, end) = (at(self.begin), at(self.end));
        let Failure {
            what,
            text,
            symptom,
            ..
        } = self;
        format!("{what}, {begin:.1}-{end:.1} s: {symptom}: {text}; {fault}")
    }
}
