//! Answers kept for as long as their TTLs allow.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::limits;
use super::name::Name;
use super::response::Response;
use super::upstream::Ask;
use super::wire;

/// What an answer depends on: the question, and the bits of the query that may change the answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: Name,
    rtype: u16,
    class: u16,
    recursion: bool,
    checking_disabled: bool,
    dnssec_ok: bool,
}

impl Key {
    pub(super) fn of(ask: &Ask) -> Option<Key> {
        Some(Key {
            name: ask.question.lower()?,
            rtype: ask.question.rtype.into(),
            class: ask.question.class.into(),
            recursion: ask.recursion,
            checking_disabled: ask.checking_disabled,
            dnssec_ok: ask.dnssec_ok,
        })
    }
}

struct Entry {
    response: Arc<Response>,
    received: Instant,
    place: Place,
}

/// Order of leaving: the time of expiry, made unique.
type Place = (Instant, u64);

/// Bounded in entries and in the size of each. What expires first makes room.
#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Arc<Key>, Entry>,
    by_expiry: BTreeMap<Place, Arc<Key>>,
    sequence: u64,
}

impl Cache {
    /// The kept answer, its TTLs lessened by the time it was kept. It is no longer authoritative.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Response> {
        let entry = self.entries.get(key).filter(|entry| now < entry.place.0)?;
        let kept = now.saturating_duration_since(entry.received).as_secs();
        let mut response = Response::clone(&entry.response);
        response
            .message
            .count_down(u32::try_from(kept).unwrap_or(u32::MAX));
        let flags = response.message.flags() & !wire::AA;
        response.message.set_header(0, flags);
        Some(response)
    }

    pub(super) fn insert(&mut self, key: Key, response: &Response, now: Instant) {
        let size = response.message.as_bytes().len() + response.extended_errors.len();
        let Some(lifetime) = response.lifetime(key.rtype.into()) else {
            return;
        };
        if size > limits::CACHE_ENTRY_BYTES {
            return;
        }
        let key = Arc::new(key);
        if let Some(former) = self.entries.remove(&key) {
            self.by_expiry.remove(&former.place);
        }
        while let Some(first) = self.by_expiry.first_entry()
            && (first.key().0 <= now || self.entries.len() >= limits::CACHE_ENTRIES)
        {
            self.entries.remove(&first.remove());
        }
        self.sequence += 1;
        let place = (now + lifetime, self.sequence);
        self.by_expiry.insert(place, Arc::clone(&key));
        self.entries.insert(
            key,
            Entry {
                response: Arc::new(response.clone()),
                received: now,
                place,
            },
        );
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.entries.len(), self.by_expiry.len());
        self.entries.len()
    }
}
