//! What is counted, and how Prometheus reads it (its text format 0.0.4).

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Up to so many seconds, each; an answer by a tunnel takes milliseconds.
const BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// Why a request was not answered by its site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The request itself.
    Bad,
    /// No rule allows it.
    Refused,
    /// The name was not found.
    Dns,
    /// The site does not accept connections.
    Connect,
    /// The handshake or the certificate.
    Tls,
    /// The exchange broke off.
    Exchange,
    /// No answer in time.
    Time,
    /// As many are under way as may be.
    Full,
}

impl Trouble {
    const ALL: [(Trouble, &str); 8] = [
        (Trouble::Bad, "bad_request"),
        (Trouble::Refused, "refused"),
        (Trouble::Dns, "dns"),
        (Trouble::Connect, "connect"),
        (Trouble::Tls, "tls"),
        (Trouble::Exchange, "exchange"),
        (Trouble::Time, "time"),
        (Trouble::Full, "full"),
    ];

    /// Its name, for the metrics and for people.
    pub(super) fn name(self) -> &'static str {
        Trouble::ALL[self as usize].1
    }
}

/// All counters.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Answers by the first digit of their status.
    statuses: [AtomicU64; 5],
    troubles: [AtomicU64; Trouble::ALL.len()],
    buckets: [AtomicU64; BUCKETS.len()],
    answered: AtomicU64,
    microseconds: AtomicU64,
    pub(super) requests: AtomicI64,
    pub(super) tunnels: AtomicI64,
    pub(super) tunnels_made: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

/// Counts something that is under way, until dropped.
#[derive(Debug)]
pub(super) struct Gauge<'a>(&'a AtomicI64);

impl<'a> Gauge<'a> {
    pub(super) fn of(gauge: &'a AtomicI64) -> Self {
        gauge.fetch_add(1, Relaxed);
        Gauge(gauge)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Metrics {
    /// A request for a site got an answer, from there or from here.
    pub(super) fn answered(&self, status: u16, took: Duration) {
        if let Some(count) = self.statuses.get(usize::from(status / 100).wrapping_sub(1)) {
            count.fetch_add(1, Relaxed);
        }
        self.answered.fetch_add(1, Relaxed);
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Relaxed);
        let bucket = BUCKETS.iter().position(|most| took.as_secs_f64() <= *most);
        if let Some(count) = bucket.and_then(|bucket| self.buckets.get(bucket)) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn trouble(&self, trouble: Trouble) {
        self.troubles[trouble as usize].fetch_add(1, Relaxed);
    }

    /// All of it, as text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text);
        text
    }

    #[allow(clippy::cast_precision_loss, reason = "of seconds")]
    fn write(&self, out: &mut String) -> fmt::Result {
        head(
            out,
            "requests_total",
            "counter",
            "Requests for sites by the status of their answer.",
        )?;
        for (digit, count) in (1..).zip(&self.statuses) {
            let count = count.load(Relaxed);
            writeln!(
                out,
                "sidecar_requests_total{{status=\"{digit}xx\"}} {count}"
            )?;
        }
        head(
            out,
            "troubles_total",
            "counter",
            "Requests that this proxy answered itself, by why.",
        )?;
        for (trouble, name) in Trouble::ALL {
            let count = self.troubles[trouble as usize].load(Relaxed);
            writeln!(out, "sidecar_troubles_total{{why=\"{name}\"}} {count}")?;
        }
        head(
            out,
            "request_seconds",
            "histogram",
            "From a request to its answer's headers.",
        )?;
        let mut below = 0;
        for (most, count) in BUCKETS.iter().zip(&self.buckets) {
            below += count.load(Relaxed);
            writeln!(
                out,
                "sidecar_request_seconds_bucket{{le=\"{most}\"}} {below}"
            )?;
        }
        let (all, sum) = (self.answered.load(Relaxed), self.microseconds.load(Relaxed));
        writeln!(out, "sidecar_request_seconds_bucket{{le=\"+Inf\"}} {all}")?;
        writeln!(out, "sidecar_request_seconds_sum {}", sum as f64 / 1e6)?;
        writeln!(out, "sidecar_request_seconds_count {all}")?;
        for (name, value, help) in [
            (
                "requests_in_flight",
                &self.requests,
                "Requests that wait for their answer.",
            ),
            (
                "tunnels_in_flight",
                &self.tunnels,
                "Tunnels (CONNECT) that are open.",
            ),
        ] {
            head(out, name, "gauge", help)?;
            writeln!(out, "sidecar_{name} {}", value.load(Relaxed))?;
        }
        for (name, value, help) in [
            (
                "tunnels_total",
                &self.tunnels_made,
                "Tunnels that were opened.",
            ),
            (
                "retries_total",
                &self.retries,
                "Attempts after a request's first.",
            ),
            (
                "connections_total",
                &self.connections,
                "Connections made to sites.",
            ),
            (
                "sent_bytes_total",
                &self.sent,
                "Bytes of bodies and tunnels to sites.",
            ),
            (
                "received_bytes_total",
                &self.received,
                "Bytes of bodies and tunnels from sites.",
            ),
        ] {
            head(out, name, "counter", help)?;
            writeln!(out, "sidecar_{name} {}", value.load(Relaxed))?;
        }
        Ok(())
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(
        out,
        "# HELP sidecar_{name} {help}\n# TYPE sidecar_{name} {kind}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_out_as_text() {
        let metrics = Metrics::default();
        metrics.answered(200, Duration::from_millis(7));
        metrics.answered(503, Duration::from_secs(60));
        metrics.answered(0, Duration::ZERO);
        metrics.trouble(Trouble::Full);
        let tunnel = Gauge::of(&metrics.tunnels);
        let text = metrics.text();
        for line in [
            "sidecar_requests_total{status=\"2xx\"} 1",
            "sidecar_requests_total{status=\"5xx\"} 1",
            "sidecar_troubles_total{why=\"full\"} 1",
            "sidecar_request_seconds_bucket{le=\"0.005\"} 1",
            "sidecar_request_seconds_bucket{le=\"0.01\"} 2",
            "sidecar_request_seconds_bucket{le=\"30\"} 2",
            "sidecar_request_seconds_bucket{le=\"+Inf\"} 3",
            "sidecar_request_seconds_sum 60.007",
            "sidecar_tunnels_in_flight 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}:\n{text}");
        }
        drop(tunnel);
        assert!(metrics.text().contains("sidecar_tunnels_in_flight 0"));
    }

    #[test]
    fn troubles_are_in_the_order_of_their_names() {
        for (place, (trouble, _)) in Trouble::ALL.into_iter().enumerate() {
            assert_eq!(trouble as usize, place);
        }
    }
}
