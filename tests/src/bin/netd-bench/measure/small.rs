//! Small exchanges: latency, and connections a second.

use super::{Values, tcp};
use crate::bed::Bed;
use crate::load::{Connects, Latency, port};
use crate::subject::Subject;
use anyhow::Context;
use std::thread;
use std::time::Duration;

/// How much earlier the bulk streams start, and how much later they end.
const LEAD: Duration = Duration::from_millis(700);

/// Round trips on an idle tunnel.
pub(super) fn latency(bed: &Bed, subject: &Subject<'_>, seconds: u64) -> anyhow::Result<Values> {
    let Latency { p50, p99, .. } = round_trips(bed, subject, seconds as f64)?;
    Ok(vec![("rr_p50", p50), ("rr_p99", p99)])
}

/// Round trips beside bulk streams in both directions.
pub(super) fn latency_beside_bulk(
    bed: &Bed,
    subject: &Subject<'_>,
    seconds: u64,
) -> anyhow::Result<Values> {
    let long = seconds + 2;
    let bulk = |port, way: &'static [&str]| move || tcp::iperf(bed, subject, long, port, way);
    let (latency, up, down) = thread::scope(|scope| {
        let up = scope.spawn(bulk(port::IPERF, &["-P", "4"]));
        let down = scope.spawn(bulk(port::IPERF_SECOND, &["-P", "4", "-R"]));
        // Slow start takes its time; nothing tells when it is over.
        thread::sleep(LEAD);
        let latency = round_trips(bed, subject, seconds as f64);
        (latency, up.join(), down.join())
    });
    let rate = |bulk: thread::Result<anyhow::Result<tcp::Carried>>| -> anyhow::Result<f64> {
        let carried = bulk.ok().context("the bed failed")?;
        Ok(carried.context("the streams beside")?.rate)
    };
    let Latency { p50, p99, .. } = latency?;
    Ok(vec![
        ("rr_bulk_p50", p50),
        ("rr_bulk_p99", p99),
        ("rr_bulk_up", rate(up)?),
        ("rr_bulk_down", rate(down)?),
    ])
}

/// Round trips over one connection.
pub(super) fn round_trips(
    bed: &Bed,
    subject: &Subject<'_>,
    seconds: f64,
) -> anyhow::Result<Latency> {
    let (server, time) = (subject.at(port::ECHO).to_string(), seconds.to_string());
    bed.load(subject.machine(), 60, &["latency", &server, &time])
}

/// Connections a second, one after another and 8 at once.
pub(super) fn connects(bed: &Bed, subject: &Subject<'_>, seconds: u64) -> anyhow::Result<Values> {
    let (server, time) = (subject.server().to_string(), seconds.to_string());
    let rate = |loops| -> anyhow::Result<f64> {
        let load = ["connects", &server, &time, loops];
        let done: Connects = bed.load(subject.machine(), seconds, &load)?;
        Ok(done.count as f64 / done.seconds)
    };
    Ok(vec![("crr_1", rate("1")?), ("crr_8", rate("8")?)])
}
