//! Warnings that would come by the thousand.

use crate::limits::WARN_INTERVAL;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Lets one warning through in [`WARN_INTERVAL`], and says how many were left out.
#[derive(Debug, Default)]
pub(crate) struct Sparse(Mutex<(Option<Instant>, u64)>);

impl Sparse {
    pub(crate) fn warn(&self, warn: impl FnOnce(u64)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, left_out) = &mut *state;
        if last.is_some_and(|last| last.elapsed() < WARN_INTERVAL) {
            *left_out += 1;
            return;
        }
        let left_out = std::mem::take(left_out);
        *last = Some(Instant::now());
        drop(state);
        warn(left_out);
    }
}
