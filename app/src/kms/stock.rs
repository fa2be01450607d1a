//! Key pairs made ahead, for services that make call after call.
//!
//! # Theory of operation
//! An RSA pair takes a tenth of a second of a processor, which is most of what an attested call costs.
//! So one thread makes pairs ahead and lays them on a shelf of bounded length. A call takes one, and
//! makes one by itself when the shelf is empty: nothing ever waits for the thread. The shelf is filled
//! again at the lowest priority, from time that no call wants, so that making pairs cannot hold up the
//! calls it is for. Under a load that leaves no time over, calls cost what they would without it.
//!
//! # What it changes for secrets
//! A pair still opens one answer: a call takes it by value and it is wiped with the call. The document
//! is still made for the call. What changes is that the next calls' pairs lie in memory before their
//! calls. Whoever reads the enclave's memory sees the secrets themselves, so that adds nothing; answers
//! of the past stay closed, since their pairs are gone.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::recipient::Recipient;
use crate::limits;
use crate::nsm::Place;

/// The lowest priority there is.
const NICEST: i32 = 19;

/// Key pairs for the calls of one program, in whatever regions. Its thread ends with its last clone.
#[derive(Debug, Clone)]
pub struct Stock {
    /// None outside an enclave, where nothing is sealed.
    shelf: Option<Arc<Mutex<Receiver<Recipient>>>>,
}

impl Stock {
    /// Begins to make pairs, if this is an enclave.
    #[must_use]
    pub fn of(place: &Place) -> Stock {
        let Place::Enclave(_) = place else {
            return Stock { shelf: None };
        };
        let (full, shelf) = sync_channel(limits::KEY_PAIRS);
        let thread = thread::Builder::new().name("key pairs".into());
        if let Err(error) = thread.spawn(move || fill(&full, || Recipient::generate().ok())) {
            tracing::warn!(%error, "no thread for key pairs: each call makes its own");
        }
        Stock {
            shelf: Some(Arc::new(Mutex::new(shelf))),
        }
    }

    /// A pair that nobody else gets, if one is ready.
    pub(super) fn take(&self) -> Option<Recipient> {
        let shelf = self.shelf.as_ref()?;
        // Whoever panicked with it was not within the channel.
        let shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.try_recv().ok()
    }
}

/// Makes one after the other, waits while the shelf is full, and ends when nobody is left to take.
fn fill<T>(shelf: &SyncSender<T>, make: impl Fn() -> Option<T>) {
    // None is this thread: Linux has a priority for each.
    if let Err(error) = rustix::process::setpriority_process(None, NICEST) {
        tracing::debug!(%error, "key pairs are made at the usual priority");
    }
    while let Some(pair) = make() {
        if shelf.send(pair).is_err() {
            return;
        }
    }
    tracing::warn!("cannot make an RSA key pair ahead: from now on each call makes its own");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;
    use crate::nsm::{Error, Nsm, Request, Response};
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    /// A secure module that nobody asks.
    #[derive(Debug)]
    struct Unasked;

    impl Nsm for Unasked {
        fn ask(&self, _: &Request) -> Result<Response, Error> {
            unreachable!()
        }
    }

    fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "not in time");
            thread::yield_now();
        }
    }

    #[test]
    fn each_pair_is_given_once_also_to_clones() {
        let stock = Stock::of(&Place::Enclave(Arc::new(Unasked)));
        let other = stock.clone();
        let keys: HashSet<Vec<u8>> = (0..6)
            .map(|turn| until(|| [&stock, &other][turn % 2].take()))
            .map(|pair| pair.public_key().to_vec())
            .collect();
        assert_eq!(keys.len(), 6);
    }

    #[test]
    fn outside_an_enclave_there_are_none() {
        let stock = Stock::of(&Place::Outside);
        assert!(stock.shelf.is_none() && stock.take().is_none());
    }

    #[test]
    fn no_more_are_made_than_fit_and_none_for_nobody() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let (full, shelf) = sync_channel(4);
        let thread = thread::spawn(move || {
            fill(&full, || Some(count.fetch_add(1, Ordering::SeqCst)));
        });
        // Four lie there and one is in the thread's hand; for each that is taken one is made.
        let reached = |number| until(|| (made.load(Ordering::SeqCst) >= number).then_some(()));
        reached(5);
        for turn in 0..3 {
            assert_eq!(shelf.recv().unwrap(), turn);
            reached(6 + turn);
        }
        assert_eq!(made.load(Ordering::SeqCst), 8);
        drop(shelf);
        thread.join().unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 8);
    }

    #[test]
    fn who_cannot_make_any_ends() {
        let (full, shelf) = sync_channel::<()>(1);
        fill(&full, || None);
        drop(full);
        assert!(shelf.recv().is_err());
    }
}
