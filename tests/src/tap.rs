//! A tap on the link: relays between the daemons, keeps every byte, and can cut or freeze it.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// What has passed is kept up to this size in each direction.
const KEPT: usize = 64 * 1024 * 1024;
/// More bytes than ever pass.
const UNCUT: i64 = i64::MAX;

/// A direction of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From enclave-netd to host-netd.
    Up,
    /// From host-netd to enclave-netd.
    Down,
}

#[derive(Debug)]
struct Shared {
    passed: [Mutex<Vec<u8>>; 2],
    /// Bytes that may still pass before the link is cut.
    left: [AtomicI64; 2],
    recording: AtomicBool,
    connections: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    cut: bool,
    frozen: bool,
    streams: Vec<UnixStream>,
}

/// The tap.
#[derive(Debug)]
pub struct Tap {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl Tap {
    /// Listens on `path` and joins every connection to host-netd at `host`.
    pub fn new(path: &Path, host: &Path) -> Tap {
        let shared = Arc::new(Shared {
            passed: Default::default(),
            left: [UNCUT, UNCUT].map(AtomicI64::new),
            recording: AtomicBool::new(true),
            connections: AtomicUsize::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let listener = UnixListener::bind(path).expect("the tap's path is free");
        let (ours, host) = (Arc::clone(&shared), host.to_owned());
        thread::spawn(move || {
            for enclave in listener.incoming().flatten() {
                ours.join(enclave, &host);
            }
        });
        Tap {
            shared,
            path: path.to_owned(),
        }
    }

    /// What has passed in a direction.
    pub fn passed(&self, direction: Direction) -> Vec<u8> {
        self.shared.passed[direction as usize]
            .lock()
            .unwrap()
            .clone()
    }

    /// Whether these bytes have passed, in either direction.
    pub fn saw(&self, what: &[u8]) -> bool {
        let saw = |direction| contains(&self.passed(direction), what);
        saw(Direction::Up) || saw(Direction::Down)
    }

    /// Keeps nothing from now on, as is meet for bulk.
    pub fn stop_recording(&self) {
        self.shared.recording.store(false, Ordering::Relaxed);
    }

    /// Cuts the link, and every new one until [`Tap::mend`].
    pub fn cut(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.cut = true;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
    }

    /// Cuts the link, or the next one, once, when so many more bytes have passed in a direction.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        let bytes = i64::try_from(bytes).expect("less than ever pass");
        self.shared.left[direction as usize].store(bytes, Ordering::Relaxed);
    }

    /// Lets new links through.
    pub fn mend(&self) {
        self.shared.state.lock().unwrap().cut = false;
    }

    /// Lets nothing through, and says nothing of it.
    pub fn freeze(&self) {
        self.shared.state.lock().unwrap().frozen = true;
    }

    /// Lets what waited go on.
    pub fn thaw(&self) {
        self.shared.state.lock().unwrap().frozen = false;
        self.shared.changed.notify_all();
    }

    /// How many links were joined so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Sends bytes to one of the daemons as if the other had, between whatever passes.
    ///
    /// # Panics
    /// When there is no link.
    pub fn inject(&self, direction: Direction, bytes: &[u8]) {
        let state = self.shared.state.lock().unwrap();
        let pair = state.streams.len().checked_sub(2).expect("there is a link");
        let index = match direction {
            Direction::Up => pair + 1,
            Direction::Down => pair,
        };
        let _ = (&state.streams[index]).write_all(bytes);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.thaw();
        self.cut();
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn join(self: &Arc<Self>, enclave: UnixStream, host: &Path) {
        let mut state = self.state.lock().unwrap();
        if state.cut {
            return;
        }
        let Ok(host) = UnixStream::connect(host) else {
            return;
        };
        self.connections.fetch_add(1, Ordering::Relaxed);
        state.streams.push(enclave.try_clone().unwrap());
        state.streams.push(host.try_clone().unwrap());
        let ways = [
            (Direction::Up, &enclave, &host),
            (Direction::Down, &host, &enclave),
        ];
        for (direction, from, to) in ways {
            let shared = Arc::clone(self);
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || shared.relay(direction, from, to));
        }
    }

    fn relay(&self, direction: Direction, mut from: UnixStream, mut to: UnixStream) {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let mut n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let mut state = self.state.lock().unwrap();
            while state.frozen {
                state = self.changed.wait(state).unwrap();
            }
            drop(state);
            let is_last = self.is_cut_amid(direction, &mut n);
            if self.recording.load(Ordering::Relaxed) {
                let mut passed = self.passed[direction as usize].lock().unwrap();
                assert!(passed.len() + n <= KEPT, "stop_recording() before bulk");
                passed.extend_from_slice(&buffer[..n]);
            }
            if to.write_all(&buffer[..n]).is_err() || is_last {
                break;
            }
        }
        // The link knows no half-close: when one way ends, so does the other.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Whether the link is to be cut amid the next `n` bytes, which become those before the cut.
    fn is_cut_amid(&self, direction: Direction, n: &mut usize) -> bool {
        let left = &self.left[direction as usize];
        let asked = i64::try_from(*n).expect("a buffer is small");
        let allowed = left.fetch_sub(asked, Ordering::Relaxed);
        let is_cut = allowed < asked;
        if is_cut {
            left.store(UNCUT, Ordering::Relaxed);
            *n = usize::try_from(allowed).unwrap_or(0);
        }
        is_cut
    }
}

/// Whether a needle is in the hay.
pub(crate) fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}
