//! What is known of each enclave, also after it is gone.
//!
//! # Theory of operation
//! A `Record` is about one run of an enclave: the peer and the session id, which its links have in
//! common. A link that comes again goes on with it; another run of the same peer begins another
//! record. Records of enclaves that are gone are kept as long as there is room; of the peer that has
//! the most of them the oldest makes room, so that one that starts over and over pushes out its own.
//!
//! The session's thread is the only writer, by its [`Writer`]: lines of the log as they come, and
//! figures when somebody has asked for them. Readers are tokio's side. Neither holds a lock for
//! longer than it takes to move a line, to copy some pointers or a few counters, so a reader never
//! keeps the data loop waiting, nor a flood of lines a reader. Lines are read by number: whoever
//! reads too slowly finds that numbers are missing, and holds nothing meanwhile.
//!
//! Nothing of what an enclave writes goes to host-netd's own log: it may be secret, and there may be
//! much of it.
//!
//! When a link is lost the enclave may be back in a moment, so its run counts as ended only when that
//! is certain (it told how its program ended or said goodbye, or another run took its place) or when
//! it has not come back within [`RETURN_WITHIN`].

mod figures;
mod log;

pub use figures::{Figures, Held};
pub(crate) use log::Line;

use crate::io::Handle;
use crate::limits::{PAST_RECORDS, RETURN_WITHIN};
use crate::listen::Peer;
use log::Ring;
use netd_proto::frame::Kind;
use netd_proto::handshake::{Features, SessionId};
use netd_proto::report::{Exit, LogLine, ReportError};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// What a link is from.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Who is at the other end.
    pub peer: Peer,
    /// Which run of the enclave.
    pub session: SessionId,
    /// What both sides can do.
    pub features: Features,
    /// The enclave's addresses.
    pub addresses: (Ipv4Addr, Ipv6Addr),
}

/// All records.
#[derive(Debug, Default)]
pub struct Records {
    /// The one whose last link is the newest comes last.
    list: Mutex<Vec<Arc<Record>>>,
}

/// One run of an enclave.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) peer: Peer,
    pub(crate) session: SessionId,
    state: Mutex<State>,
    ring: Mutex<Ring>,
    changed: Notify,
    /// Apart from the former: lines may come by the hundred thousand.
    grown: Notify,
}

#[derive(Debug)]
struct State {
    links: u64,
    facts: Facts,
    since: (SystemTime, Instant),
    /// While there is a link.
    handle: Option<Handle>,
    gone: Option<Gone>,
    /// Another run of the same enclave has begun.
    superseded: bool,
    exit: Option<Exit>,
    /// Of former links.
    before: Figures,
    /// Of all links.
    figures: Figures,
    figures_at: Instant,
}

/// When a link ended, and why.
#[derive(Clone, Debug)]
pub(crate) struct Gone {
    pub(crate) at: SystemTime,
    instant: Instant,
    pub(crate) why: String,
    /// The enclave said so.
    told: bool,
}

/// Whether a run has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    Connected,
    /// Its link is lost; it counts as ended at this time.
    MayReturn(Instant),
    /// It has, in these words.
    Ended(String),
}

/// What is known of a run at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) facts: Facts,
    pub(crate) links: u64,
    pub(crate) since: SystemTime,
    pub(crate) uptime: Duration,
    pub(crate) gone: Option<Gone>,
    pub(crate) exit: Option<Exit>,
    pub(crate) figures: Figures,
    pub(crate) figures_at: Instant,
    pub(crate) last: Option<Arc<Line>>,
    pub(crate) next: u64,
    pub(crate) lost: u64,
}

impl Records {
    /// No enclave yet.
    pub fn new() -> Arc<Records> {
        Arc::default()
    }

    /// A link stands. Its thread writes by what this returns.
    pub fn begin(&self, facts: Facts) -> Writer {
        let mut list = lock(&self.list);
        let known = (list.iter())
            .position(|record| record.peer == facts.peer && record.session == facts.session);
        let record = match known {
            Some(index) => list.remove(index),
            None => Arc::new(Record::new(facts)),
        };
        if facts.peer != Peer::Unix {
            for other in list.iter().filter(|other| other.peer == facts.peer) {
                lock(&other.state).superseded = true;
                other.changed.notify_waiters();
            }
        }
        let link = record.begin(facts);
        list.push(Arc::clone(&record));
        make_room(&mut list);
        Writer {
            record,
            link,
            takes_log: facts.features.contains(Features::LOG),
            ended: false,
        }
    }

    /// All of them, the newest first.
    pub(crate) fn all(&self) -> Vec<Arc<Record>> {
        lock(&self.list).iter().rev().map(Arc::clone).collect()
    }
}

/// Lets go of records beyond those that are kept.
fn make_room(list: &mut Vec<Arc<Record>>) {
    loop {
        let past: Vec<_> = (list.iter().enumerate())
            .filter(|(_, record)| lock(&record.state).gone.is_some())
            .map(|(index, record)| (index, record.peer))
            .collect();
        if past.len() <= PAST_RECORDS {
            return;
        }
        let of_peer = |peer| past.iter().filter(|(_, other)| *other == peer).count();
        // Of equals the oldest: the maximum that comes last is found, and the list reversed.
        if let Some((index, _)) = past.iter().rev().max_by_key(|(_, peer)| of_peer(*peer)) {
            list.remove(*index);
        }
    }
}

impl Record {
    fn new(facts: Facts) -> Record {
        let now = Instant::now();
        Record {
            peer: facts.peer,
            session: facts.session,
            state: Mutex::new(State {
                links: 0,
                facts,
                since: (SystemTime::now(), now),
                handle: None,
                gone: None,
                superseded: false,
                exit: None,
                before: Figures::default(),
                figures: Figures::default(),
                figures_at: now,
            }),
            ring: Mutex::default(),
            changed: Notify::new(),
            grown: Notify::new(),
        }
    }

    fn begin(&self, facts: Facts) -> u64 {
        let mut state = lock(&self.state);
        state.links += 1;
        state.facts = facts;
        state.gone = None;
        state.superseded = false;
        state.before = state.figures.clone().ended();
        state.figures = state.before.clone();
        state.figures_at = Instant::now();
        let link = state.links;
        drop(state);
        self.changed.notify_waiters();
        link
    }

    /// Is woken by the next change from now on, of the figures or the state.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Is woken by the next line from now on.
    pub(crate) fn grown(&self) -> Notified<'_> {
        self.grown.notified()
    }

    /// Asks the session's thread for figures. False if there is none.
    pub(crate) fn ask_figures(&self) -> bool {
        let state = lock(&self.state);
        if let Some(handle) = &state.handle {
            handle.ask_figures();
        }
        state.handle.is_some()
    }

    /// Whether there is a link.
    pub(crate) fn is_connected(&self) -> bool {
        lock(&self.state).gone.is_none()
    }

    /// When the figures were told.
    pub(crate) fn figures_at(&self) -> Instant {
        lock(&self.state).figures_at
    }

    /// The first lines from this number on, so many bytes of them or a line more.
    pub(crate) fn lines(&self, from: u64, bytes: usize) -> Vec<Arc<Line>> {
        lock(&self.ring).from(from, bytes)
    }

    /// How the program ended.
    pub(crate) fn exit(&self) -> Option<Exit> {
        lock(&self.state).exit
    }

    /// Whether the run has ended.
    pub(crate) fn course(&self, now: Instant) -> Course {
        let state = lock(&self.state);
        let Some(gone) = &state.gone else {
            return Course::Connected;
        };
        let back_by = gone.instant + RETURN_WITHIN;
        if let Some(exit) = state.exit {
            Course::Ended(exit.to_string())
        } else if gone.told || state.superseded || back_by <= now {
            Course::Ended(gone.why.clone())
        } else {
            Course::MayReturn(back_by)
        }
    }

    /// All that is known.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let (last, next, lost) = {
            let ring = lock(&self.ring);
            (ring.last(), ring.next(), ring.lost())
        };
        let state = lock(&self.state);
        let until = state.gone.as_ref().map_or_else(Instant::now, |g| g.instant);
        Snapshot {
            facts: state.facts,
            links: state.links,
            since: state.since.0,
            uptime: until.saturating_duration_since(state.since.1),
            gone: state.gone.clone(),
            exit: state.exit,
            figures: state.figures.clone(),
            figures_at: state.figures_at,
            last,
            next,
            lost,
        }
    }
}

/// A link's end of its record.
#[derive(Debug)]
pub struct Writer {
    record: Arc<Record>,
    /// Which link of the run; a newer one has the last word.
    link: u64,
    takes_log: bool,
    ended: bool,
}

impl Writer {
    /// Whether frames of this kind are for the record.
    pub(crate) fn takes(&self, kind: Kind) -> bool {
        self.takes_log && matches!(kind, Kind::Log | Kind::Exit)
    }

    /// Takes such a frame.
    ///
    /// # Errors
    /// Its payload is none.
    pub(crate) fn take(&self, kind: Kind, payload: &[u8]) -> Result<(), ReportError> {
        if kind == Kind::Exit {
            self.exit(Exit::decode(payload)?);
            return Ok(());
        }
        let line = LogLine::decode(payload)?;
        if lock(&self.record.ring).push(line, SystemTime::now()) {
            self.record.grown.notify_waiters();
        }
        Ok(())
    }

    /// A program ends once: what is told later is ignored.
    fn exit(&self, exit: Exit) {
        let mut state = lock(&self.record.state);
        if state.exit.is_none() {
            state.exit = Some(exit);
            drop(state);
            tracing::info!("the enclave's program has ended: {exit}");
            self.record.changed.notify_waiters();
        }
    }

    /// From now on this is the way to the link's thread.
    pub(crate) fn attach(&self, handle: Handle) {
        self.write(|state| state.handle = Some(handle));
    }

    /// Tells figures of this link.
    pub(crate) fn tell(&self, figures: Figures) {
        self.write(|state| {
            state.figures = figures.after(&state.before);
            state.figures_at = Instant::now();
        });
    }

    /// The link has ended; `told` if the enclave said so itself.
    pub(crate) fn end(&mut self, why: &str, told: bool) {
        self.ended = true;
        let gone = Gone {
            at: SystemTime::now(),
            instant: Instant::now(),
            why: why.to_owned(),
            told,
        };
        self.write(|state| {
            state.handle = None;
            state.figures = std::mem::take(&mut state.figures).ended();
            state.gone = Some(gone);
        });
    }

    fn write(&self, write: impl FnOnce(&mut State)) {
        let mut state = lock(&self.record.state);
        if state.links == self.link {
            write(&mut state);
            drop(state);
            self.record.changed.notify_waiters();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.ended {
            self.end("the session ended by a fault: see host-netd's log", false);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netd_proto::address::Cid;

    fn facts(cid: u32, session: u8) -> Facts {
        Facts {
            peer: Peer::Enclave(Cid(cid)),
            session: SessionId([session; 16]),
            features: Features::ALL,
            addresses: (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        }
    }

    fn flows_opened(writer: &Writer, flows: u64) {
        let mut figures = Figures::default();
        figures.counters.flows_opened = flows;
        figures.held.flows = 1;
        writer.tell(figures);
    }

    #[test]
    fn a_link_that_comes_again_goes_on_with_its_record() {
        let records = Records::new();
        let mut first = records.begin(facts(16, 1));
        flows_opened(&first, 5);
        first
            .take(
                Kind::Log,
                &LogLine::encode(netd_proto::report::Source::Netd, 0, b"x"),
            )
            .expect("valid");
        let record = Arc::clone(&first.record);
        first.end("the link broke", false);
        assert!(matches!(
            record.course(Instant::now()),
            Course::MayReturn(_)
        ));
        let late = Instant::now() + RETURN_WITHIN;
        assert_eq!(record.course(late), Course::Ended("the link broke".into()));

        let second = records.begin(facts(16, 1));
        flows_opened(&second, 7);
        // A thread that ends late has nothing to say any more.
        flows_opened(&first, 100);
        first.end("late", true);

        assert_eq!(records.all().len(), 1);
        assert_eq!(record.course(late), Course::Connected);
        let seen = record.snapshot();
        assert_eq!((seen.links, seen.next), (2, 1));
        assert_eq!(seen.figures.counters.flows_opened, 12);
        drop(second);
        let seen = record.snapshot();
        assert!(seen.gone.is_some_and(|gone| gone.why.contains("fault")));
        assert_eq!(seen.figures.held.flows, 0);
    }

    #[test]
    fn another_run_ends_the_one_before() {
        let records = Records::new();
        let mut first = records.begin(facts(16, 1));
        let _second = records.begin(facts(16, 2));
        first.end("replaced", false);
        assert_eq!(
            first.record.course(Instant::now()),
            Course::Ended("replaced".into())
        );
        let sessions: Vec<_> = records.all().iter().map(|r| r.session.0[0]).collect();
        assert_eq!(sessions, [2, 1], "the newest first");
    }

    #[test]
    fn one_that_starts_over_and_over_pushes_out_its_own() {
        let records = Records::new();
        drop(records.begin(facts(17, 1)));
        let _live = records.begin(facts(18, 1));
        for session in 0..100 {
            drop(records.begin(facts(16, session)));
        }
        let all = records.all();
        assert_eq!(
            all.len(),
            PAST_RECORDS + 2,
            "with the live one and the last"
        );
        let cid = |cid| {
            all.iter()
                .filter(move |r| r.peer == Peer::Enclave(Cid(cid)))
        };
        assert_eq!((cid(17).count(), cid(18).count()), (1, 1));
        let newest: Vec<_> = cid(16).map(|r| r.session.0[0]).collect();
        assert_eq!(newest[..2], [99, 98]);
    }

    #[test]
    fn reports_are_for_the_record_only_if_they_were_agreed_on() {
        let records = Records::new();
        let mute = records.begin(Facts {
            features: Features::CHECKSUM,
            ..facts(16, 1)
        });
        assert!(!mute.takes(Kind::Log) && !mute.takes(Kind::Exit));
        let writer = records.begin(facts(17, 1));
        assert!(writer.takes(Kind::Log) && writer.takes(Kind::Exit) && !writer.takes(Kind::Ping));
        assert!(writer.take(Kind::Log, &[9; 12]).is_err());
        assert!(writer.take(Kind::Exit, &[0]).is_err());
    }
}
