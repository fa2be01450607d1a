//! The log of both daemons, written to standard error.
//!
//! # Theory of operation
//! What reads the log may stop reading, end, or have a full disk. Whoever writes to it then waits,
//! or gets an error, and with `eprintln!` a panic: none of this may happen to a thread that moves
//! packets. So lines go into a bounded queue, and a thread of their own writes them. What the queue
//! does not hold, or standard error does not take, is left out and counted; the log tells how many
//! lines are missing as soon as it can.
//!
//! A log may have a second reader, the [`Tee`], which is told each line at once and must not wait
//! either. What others wrote is passed on by [`Log::pass`]: it finds the queue full first, so that it
//! never displaces the daemon's own lines.
//!
//! Until [`Log::detach`] lines only wait: a daemon sets itself up in one thread, because privileges
//! belong to threads and new ones inherit them. A daemon that ends before writes them at its end.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that may wait to be written: a burst at the start of many flows. What is passed on may use
/// half of them.
const WAITING_BYTES: usize = 512 * 1024;

/// What a line costs beside its text.
const LINE: usize = 128;

/// Lines that may wait to be written. The bound on bytes is met first.
const WAITING: usize = WAITING_BYTES / LINE;

/// How often the log tells of lines that are missing: telling must not become the log.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How long the end of a daemon waits for lines to be written.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often the end of a daemon looks for room in the queue.
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

/// Takes each line that the daemon logs, with its line end. It must not wait, and must not log.
pub type Tee = Box<dyn Fn(&[u8]) + Send + Sync>;

struct Shared {
    queue: SyncSender<Message>,
    /// What the lines in the queue cost.
    waiting: AtomicUsize,
    lost: AtomicU64,
    tee: Option<Tee>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// The log; what waits is written when it is dropped.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    /// Until there is a thread that has it.
    messages: Mutex<Option<Receiver<Message>>>,
}

/// Where `tracing` writes to.
#[derive(Clone, Debug)]
struct Lines(Arc<Shared>);

impl Log {
    /// Begins to log what passes the filter; `with_target` tells which module each line is from.
    pub fn start(filter: EnvFilter, with_target: bool) -> Log {
        Log::start_with(filter, with_target, None)
    }

    /// The same, with a second reader.
    pub fn start_teed(filter: EnvFilter, with_target: bool, tee: Tee) -> Log {
        Log::start_with(filter, with_target, Some(tee))
    }

    fn start_with(filter: EnvFilter, with_target: bool, tee: Option<Tee>) -> Log {
        // The second reader is no terminal.
        let ansi = tee.is_none() && stderr().is_terminal();
        let (shared, messages) = Shared::new(WAITING, tee);
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(with_target)
            .with_ansi(ansi)
            .with_writer(Lines(Arc::clone(&shared)))
            .init();
        Log {
            shared,
            messages: Mutex::new(Some(messages)),
        }
    }

    /// From now on a thread of its own writes. To be called once the daemon has set itself up. The
    /// thread does what is to be done by `first`, such as to give up privileges.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn detach(&self, first: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        if let Some(messages) = self.take() {
            thread::Builder::new().name("log".into()).spawn(move || {
                first();
                write_all(&messages, &shared, stderr);
            })?;
        }
        Ok(())
    }

    fn take(&self) -> Option<Receiver<Message>> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.take()
    }

    /// Writes a line that is no event.
    pub fn say(&self, line: &str) {
        self.shared.log(format!("{line}\n").as_bytes());
    }

    /// Writes a line of somebody else's, without its line end, if there is room to spare. The second
    /// reader is not told.
    pub fn pass(&self, line: &[u8]) {
        self.shared.put([line, b"\n"].concat(), WAITING_BYTES / 2);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(messages) = self.take() {
            for message in messages.try_iter() {
                if let Message::Line(line) = message {
                    // Not even a line about it could be written.
                    let _ = stderr().write_all(&line);
                }
            }
            return;
        }
        let (written, all_written) = sync_channel(1);
        let deadline = Instant::now() + LAST_WORDS;
        let mut flush = Message::Flush(written);
        while let Err(TrySendError::Full(back)) = self.shared.queue.try_send(flush) {
            if Instant::now() >= deadline {
                return;
            }
            flush = back;
            thread::sleep(LOOK_EVERY);
        }
        let _ = all_written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

impl Shared {
    fn new(waiting: usize, tee: Option<Tee>) -> (Arc<Shared>, Receiver<Message>) {
        let (queue, messages) = sync_channel(waiting);
        let shared = Shared {
            queue,
            waiting: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            tee,
        };
        (Arc::new(shared), messages)
    }

    fn log(&self, line: &[u8]) {
        if let Some(tee) = &self.tee {
            tee(line);
        }
        self.put(line.to_vec(), WAITING_BYTES);
    }

    /// Queues a line if no more than `bound` bytes wait with it.
    fn put(&self, line: Vec<u8>, bound: usize) {
        let cost = LINE + line.len();
        let has_room = self.waiting.fetch_add(cost, Ordering::Relaxed) + cost <= bound;
        if !has_room || self.queue.try_send(Message::Line(line)).is_err() {
            self.waiting.fetch_sub(cost, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

impl Write for Lines {
    /// Takes one line, and never fails: `tracing` would tell that to standard error.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.log(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines for as long as the process lives.
fn write_all<W: Write>(messages: &Receiver<Message>, shared: &Shared, out: impl Fn() -> W) {
    let mut told: Option<Instant> = None;
    loop {
        let is_missing = shared.lost.load(Ordering::Relaxed) > 0;
        // What is missing is told also when no line follows.
        let message = match told.filter(|_| is_missing) {
            Some(at) => messages.recv_timeout(TELL_EVERY.saturating_sub(at.elapsed())),
            None => messages.recv().map_err(RecvTimeoutError::from),
        };
        match message {
            Ok(Message::Line(line)) => {
                let written = out().write_all(&line);
                shared
                    .waiting
                    .fetch_sub(LINE + line.len(), Ordering::Relaxed);
                if written.is_err() {
                    shared.lost.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            }
            Ok(Message::Flush(written)) => {
                // Who asked may have lost patience.
                let _ = written.send(());
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // What tells of it must find room itself.
        let has_room = shared.waiting.load(Ordering::Relaxed) <= WAITING_BYTES / 2;
        if !has_room || told.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            continue;
        }
        let lost = shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            told = Some(Instant::now());
            tracing::warn!(
                lost,
                "lines of the log are missing here: its reader or its disk did not keep up"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Takes a line, or refuses it.
    struct Reader<'a>(&'a Mutex<(bool, Vec<u8>)>);

    impl Write for Reader<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut reader = self.0.lock().expect("no panic");
            if !reader.0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            reader.1.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_loses_lines_and_never_waits() {
        let (shared, messages) = Shared::new(2, None);
        (0..5).for_each(|_| shared.log(b"line\n"));
        assert_eq!(shared.lost.load(Ordering::Relaxed), 3);
        assert_eq!(messages.try_iter().count(), 2);
    }

    #[test]
    fn what_is_passed_on_leaves_room_for_own_lines() {
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let tee: Tee = Box::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let (shared, messages) = Shared::new(WAITING, Some(tee));
        let log = Log {
            shared: Arc::clone(&shared),
            messages: Mutex::new(None),
        };
        (0..WAITING).for_each(|_| log.pass(&[b'x'; 1023]));
        let passed = WAITING_BYTES / 2 / (1024 + LINE);
        let lost = u64::try_from(WAITING - passed).expect("few");
        assert_eq!(shared.lost.load(Ordering::Relaxed), lost);
        log.say("own");
        assert_eq!(shared.lost.load(Ordering::Relaxed), lost, "it had room");
        assert_eq!(told.load(Ordering::Relaxed), 1, "own lines only");
        assert_eq!(messages.try_iter().count(), passed + 1);
        std::mem::forget(log);
    }

    #[test]
    fn what_is_refused_is_counted_and_later_lines_are_written() {
        let (shared, _) = Shared::new(1, None);
        shared.waiting.store(1000, Ordering::Relaxed);
        let reader = Mutex::new((false, Vec::new()));
        let pass = |line: &[u8]| {
            let (queue, messages) = sync_channel(1);
            queue.send(Message::Line(line.to_vec())).expect("room");
            drop(queue);
            write_all(&messages, &shared, || Reader(&reader));
        };
        pass(b"lost\n");
        assert_eq!(shared.lost.load(Ordering::Relaxed), 1);
        reader.lock().expect("no panic").0 = true;
        pass(b"there\n");
        assert_eq!(reader.lock().expect("no panic").1, b"there\n");
        assert_eq!(shared.lost.load(Ordering::Relaxed), 0, "it was told");
    }
}
