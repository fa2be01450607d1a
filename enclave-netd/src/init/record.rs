//! The log of this enclave: every line gets its number, goes to the console as far as the
//! configuration wants, is kept in the [`Ring`], and is fed to the carrier.
//!
//! Feeding has a pace, so that a program that writes without end takes no more than a share of the
//! processor and of the link: [`FEED_RATE`]. Lines that the ring had to let go before their turn came
//! are a gap in the numbers, which the parent counts.

use super::channel::{ChannelError, KeeperEnd, Order};
use super::ring::Ring;
use crate::config::LogSettings;
use crate::limits::{FEED_BURST, FEED_RATE};
use netd_log::Log;
use netd_proto::report::{LogLine, Source};
use std::time::{Duration, Instant};

/// The lines, and how far they were fed.
pub(crate) struct Record<'a> {
    ring: Ring,
    settings: LogSettings,
    console: &'a Log,
    /// The number of the next line for the link there is, if its parent takes lines.
    cursor: Option<u64>,
    allowance: Allowance,
    /// The carrier had no room.
    is_congested: bool,
}

impl<'a> Record<'a> {
    pub(crate) fn new(settings: LogSettings, console: &'a Log) -> Record<'a> {
        Record {
            ring: Ring::default(),
            settings,
            console,
            cursor: None,
            allowance: Allowance::new(Instant::now()),
            is_congested: false,
        }
    }

    /// Takes a line of the program or of the carrier.
    pub(crate) fn line(&mut self, source: Source, text: &[u8]) {
        if source == Source::Netd || self.settings.console {
            self.console.pass(text);
        }
        self.ring.push(source, text);
    }

    /// Takes a line of this process, which its log has written already.
    pub(crate) fn own(&mut self, text: &[u8]) {
        self.ring.push(Source::Netd, text.trim_ascii_end());
    }

    /// Counts lines of this process that were lost.
    pub(crate) fn lost(&mut self, lines: u64) {
        self.ring.skip(lines);
    }

    /// The number of the next line.
    pub(crate) fn next_number(&self) -> u64 {
        self.ring.next_number()
    }

    /// Feeds all lines from the oldest on, for a new link.
    pub(crate) fn replay(&mut self, takes_log: bool) {
        self.cursor = (takes_log && self.settings.forward).then_some(0);
    }

    /// Feeds none: there is no link.
    pub(crate) fn pause(&mut self) {
        self.cursor = None;
    }

    /// Whether all lines below `number` were fed, or need not be.
    pub(crate) fn has_fed(&self, number: u64) -> bool {
        self.cursor.is_none_or(|cursor| cursor >= number)
    }

    /// Feeds what may be fed now.
    ///
    /// # Errors
    /// The carrier is gone.
    pub(crate) fn feed(&mut self, to: &mut KeeperEnd, now: Instant) -> Result<(), ChannelError> {
        self.is_congested = false;
        self.allowance.refill(now);
        let Some(cursor) = &mut self.cursor else {
            return Ok(());
        };
        while let Some(line) = self.ring.from(*cursor) {
            if !self.allowance.allows() {
                return Ok(());
            }
            let payload = LogLine::encode(line.source, line.number, &line.text);
            let cost = payload.len();
            if !to.offer(&Order::Line(payload))? {
                self.is_congested = true;
                return Ok(());
            }
            self.allowance.take(cost);
            *cursor = line.number + 1;
        }
        // Lines that were lost need no feeding.
        *cursor = self.ring.next_number();
        Ok(())
    }

    /// Whether feeding waits for the carrier to have room.
    pub(crate) fn is_congested(&self) -> bool {
        self.is_congested
    }

    /// How long feeding has to wait to keep its pace; none where it does not wait for that.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let has_more = self
            .cursor
            .is_some_and(|cursor| self.ring.from(cursor).is_some());
        (has_more && !self.is_congested).then(|| self.allowance.wait())
    }
}

/// How many bytes may be fed: [`FEED_RATE`] a second, and [`FEED_BURST`] after a while of less.
#[derive(Debug)]
struct Allowance {
    bytes: usize,
    at: Instant,
}

/// What is waited for once the allowance is used up, so that the loop does not turn for each line.
const PORTION: usize = 64 * 1024;

impl Allowance {
    fn new(now: Instant) -> Allowance {
        Allowance {
            bytes: FEED_BURST,
            at: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let micros = now.saturating_duration_since(self.at).as_micros();
        let rate = u128::try_from(FEED_RATE).unwrap_or(u128::MAX);
        let gained = usize::try_from(micros * rate / 1_000_000).unwrap_or(usize::MAX);
        // What is too little to count is not forgotten.
        if gained > 0 {
            self.bytes = self.bytes.saturating_add(gained).min(FEED_BURST);
            self.at = now;
        }
    }

    fn allows(&self) -> bool {
        self.bytes > 0
    }

    fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn wait(&self) -> Duration {
        let missing = if self.allows() { 0 } else { PORTION };
        Duration::from_micros(u64::try_from(missing * 1_000_000 / FEED_RATE).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_kept() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut fed = 0;
        for millisecond in 0..1000 {
            allowance.refill(start + Duration::from_millis(millisecond));
            while allowance.allows() {
                allowance.take(100);
                fed += 100;
            }
        }
        let expected = FEED_BURST + FEED_RATE;
        assert!(
            (expected * 99 / 100..expected + 200_000).contains(&fed),
            "{fed} bytes"
        );
        assert!(allowance.wait() > Duration::ZERO);
        allowance.refill(start + Duration::from_secs(3600));
        assert_eq!(allowance.bytes, FEED_BURST);
        assert_eq!(allowance.wait(), Duration::ZERO);
    }
}
