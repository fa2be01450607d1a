//! The log lines of the keeper's own process, on their way into its ring.
//!
//! A line may come from any thread at any time, also from the thread that has the ring while it
//! handles another line: so lines go through a bounded queue, and the loop takes them when it is its
//! turn. None waits; what finds the queue full is counted.

use super::record::Record;
use crate::limits::OWN_LINES;
use anyhow::{Context, Result};
use netd_log::Tee;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

/// The queue's end in the loop.
pub(crate) struct OwnLines {
    lines: Receiver<Vec<u8>>,
    lost: Arc<AtomicU64>,
    wake: Arc<EventFd>,
}

impl OwnLines {
    /// A queue, and what puts lines into it.
    ///
    /// # Errors
    /// The kernel has no room for another descriptor.
    pub(crate) fn new() -> Result<(OwnLines, Tee)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags).context("cannot make an eventfd")?;
        let (queue, lines) = sync_channel(OWN_LINES);
        let own = OwnLines {
            lines,
            lost: Arc::default(),
            wake: Arc::new(wake),
        };
        let (lost, wake) = (Arc::clone(&own.lost), Arc::clone(&own.wake));
        let tee = Box::new(move |line: &[u8]| {
            if queue.try_send(line.to_vec()).is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
            // Only a counter near its end refuses, and then it wakes anyway.
            let _ = wake.write(1);
        });
        Ok((own, tee))
    }

    /// Takes what there is.
    pub(crate) fn take(&self, record: &mut Record<'_>) {
        let _ = self.wake.read();
        for line in self.lines.try_iter() {
            record.own(&line);
        }
        record.lost(self.lost.swap(0, Ordering::Relaxed));
    }
}

impl AsFd for OwnLines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
