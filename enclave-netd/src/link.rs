//! Connects to the parent, as often as it takes.
//!
//! One thread does nothing else: connecting and the handshake may block, the pump never does.
//! The pump asks for a link, and gets it as a message once the handshake is done. In between,
//! tries are spaced by a back-off that doubles up to a bound and is jittered, so that many
//! enclaves do not knock in step when their parent's daemon returns.

use crate::limits::{BACKOFF_MAX, BACKOFF_MIN, BACKOFF_REFUSED, CONNECT_TIMEOUT};
use crate::{privileges, socket};
use netd_proto::address::LinkAddress;
use netd_proto::control::Reason;
use netd_proto::frame::{Decoder, FrameError, Kind, header};
use netd_proto::handshake::{Established, HandshakeError, Hello, SessionId};
use netd_proto::limits::HANDSHAKE_TIMEOUT;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;
use tracing::{debug, warn};

/// A link after its handshake; the stream does not block.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: File,
    /// May hold the first frames already.
    pub(crate) decoder: Decoder,
    pub(crate) established: Established,
}

/// Why there is no link yet.
#[derive(Debug, Error)]
enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("the parent closed the connection during the handshake")]
    Closed,
    #[error("no answer to the hello within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Silent,
    #[error("the connection broke during the handshake: {0}")]
    Io(io::Error),
    #[error("what answers is no host-netd: {0}")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl LinkError {
    /// Whether the parent is there and says no, which only a change on its side mends.
    fn is_refusal(&self) -> bool {
        match self {
            LinkError::Handshake(HandshakeError::Goodbye(goodbye)) => {
                goodbye.reason != Reason::Shutdown
            }
            LinkError::Handshake(_) | LinkError::Frame(_) => true,
            LinkError::Connect(_) | LinkError::Closed | LinkError::Silent | LinkError::Io(_) => {
                false
            }
        }
    }
}

/// Asks the connecting thread for links.
#[derive(Clone, Debug)]
pub(crate) struct Connector(SyncSender<()>);

impl Connector {
    /// Starts the thread. `deliver` takes each link, and answers false when nobody wants it.
    ///
    /// # Errors
    /// The thread could not be started.
    pub(crate) fn start(
        address: LinkAddress,
        hello: Hello,
        mut deliver: impl FnMut(Link) -> bool + Send + 'static,
    ) -> io::Result<Connector> {
        let (requests, wanted) = sync_channel(1);
        thread::Builder::new()
            .name("connector".into())
            .spawn(move || {
                privileges::drop_in_thread(matches!(address, LinkAddress::Unix(_)));
                let mut backoff = Backoff::default();
                while wanted.recv().is_ok() {
                    let link = connect(&address, hello, &mut backoff);
                    if !deliver(link) {
                        return;
                    }
                }
            })?;
        Ok(Connector(requests))
    }

    /// Asks for a link. Asking again before it came changes nothing.
    pub(crate) fn request(&self) {
        // Full means already asked; a dead thread means that the daemon ends.
        let _ = self.0.try_send(());
    }
}

fn connect(address: &LinkAddress, hello: Hello, backoff: &mut Backoff) -> Link {
    let mut told = Told::Nothing;
    loop {
        thread::sleep(backoff.next());
        match try_connect(address, hello) {
            Ok(link) => {
                backoff.connected = Some(Instant::now());
                return link;
            }
            Err(error) => {
                let refused = error.is_refusal();
                told = told.warn(address, &error, refused);
                backoff.failed(refused);
            }
        }
    }
}

/// What the log already says about this outage, so that it is said once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    Absent,
    Refused,
}

impl Told {
    fn warn(self, parent: &LinkAddress, error: &LinkError, refused: bool) -> Told {
        let now = if refused { Told::Refused } else { Told::Absent };
        if now <= self {
            debug!(%parent, %error, "no link");
            return self;
        }
        if refused {
            warn!(%parent, %error, "the parent refuses the link; trying again slowly");
        } else {
            warn!(%parent, %error, "no link to the parent: is host-netd running there? Trying on");
        }
        now
    }
}

fn try_connect(address: &LinkAddress, hello: Hello) -> Result<Link, LinkError> {
    let stream = socket::open(address, CONNECT_TIMEOUT).map_err(LinkError::Connect)?;
    socket::set_timeout(&stream, HANDSHAKE_TIMEOUT).map_err(LinkError::Io)?;
    let shaken = shake_hands(&stream, hello);
    if let Err(LinkError::Handshake(error)) = &shaken
        && let Some(goodbye) = error.reply()
    {
        // The peer learns why if it still listens.
        let _ = send(&stream, Kind::Goodbye, &goodbye.encode());
    }
    let (established, decoder) = shaken?;
    socket::set_nonblocking(&stream, true).map_err(LinkError::Io)?;
    Ok(Link {
        stream,
        decoder,
        established,
    })
}

fn shake_hands(stream: &File, hello: Hello) -> Result<(Established, Decoder), LinkError> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let (payload, state) = hello.open();
    // A parent that refuses before it heard anything has its goodbye on the way already.
    let sent = send(stream, Kind::Hello, &payload);
    let mut decoder = Decoder::new();
    loop {
        if let Some(frame) = decoder.next()? {
            let established = state.receive(frame)?;
            return Ok((established, decoder));
        }
        let mut reader = stream;
        let n = reader.read(decoder.space()).map_err(broken)?;
        if n == 0 {
            return Err(sent.map_or_else(broken, |()| LinkError::Closed));
        }
        decoder.advance(n);
        // A peer that drips single bytes has no longer than one that says nothing.
        if Instant::now() > deadline {
            return Err(LinkError::Silent);
        }
    }
}

fn send(mut stream: &File, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let mut frame = header(kind, payload.len()).to_vec();
    frame.extend(payload);
    stream.write_all(&frame)
}

fn broken(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LinkError::Silent,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => LinkError::Closed,
        _ => LinkError::Io(error),
    }
}

/// A session's name for this run.
pub(crate) fn new_session() -> SessionId {
    let halves = [
        RandomState::new().hash_one(0),
        RandomState::new().hash_one(1),
    ];
    let mut bytes = [0; 16];
    for (to, half) in bytes.chunks_exact_mut(8).zip(halves) {
        to.copy_from_slice(&half.to_ne_bytes());
    }
    SessionId(bytes)
}

/// How long to wait before the next try.
#[derive(Debug, Default)]
struct Backoff {
    wait: Duration,
    connected: Option<Instant>,
}

impl Backoff {
    /// The wait before the next try: none before the very first and after a link that lasted.
    fn next(&mut self) -> Duration {
        match self.connected.take() {
            Some(since) if since.elapsed() >= BACKOFF_MAX => self.wait = Duration::ZERO,
            // The parent takes links and drops them at once: that is a failure as well.
            Some(_) => self.failed(false),
            None => {}
        }
        jittered(self.wait, RandomState::new().hash_one(0))
    }

    fn failed(&mut self, refused: bool) {
        self.wait = match refused {
            true => BACKOFF_REFUSED,
            false if self.wait > BACKOFF_MAX => BACKOFF_MIN,
            false => (self.wait * 2).clamp(BACKOFF_MIN, BACKOFF_MAX),
        };
    }
}

/// From half of `wait` to all of it.
fn jittered(wait: Duration, random: u64) -> Duration {
    let half = wait / 2;
    half + Duration::from_nanos(random % (u64::try_from(half.as_nanos()).unwrap_or(0) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_to_its_bound_and_starts_again() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(), Duration::ZERO);
        let waits: Vec<_> = (0..7)
            .map(|_| {
                backoff.failed(false);
                u32::try_from(backoff.wait.as_millis()).expect("short")
            })
            .collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);

        backoff.failed(true);
        assert_eq!(backoff.wait, BACKOFF_REFUSED);
        backoff.failed(false);
        assert_eq!(backoff.wait, BACKOFF_MIN);

        backoff.connected = Instant::now().checked_sub(BACKOFF_MAX);
        assert_eq!(backoff.next(), Duration::ZERO);
    }

    #[test]
    fn a_parent_that_drops_each_link_is_not_hammered() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.connected = Some(Instant::now());
            backoff.next();
        }
        assert_eq!(backoff.wait, BACKOFF_MAX);
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        let wait = Duration::from_millis(100);
        for random in [0, 1, 49_999_999, 50_000_000, u64::MAX] {
            let jittered = jittered(wait, random);
            assert!(jittered >= wait / 2 && jittered <= wait, "{jittered:?}");
        }
        assert_eq!(jittered(Duration::ZERO, 7), Duration::ZERO);
    }

    #[test]
    fn sessions_differ() {
        assert_ne!(new_session(), new_session());
    }
}
