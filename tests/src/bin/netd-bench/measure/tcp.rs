//! Bulk transfers: iperf3, counted at the receiver.

use super::Values;
use crate::bed::{Bed, finish};
use crate::load::port;
use crate::subject::Subject;
use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// How long an iperf3 server may take to end after its client, in seconds.
const SERVER_END: u64 = 2;

/// Slow start is not counted, in seconds: it takes some 12 round trips.
const FAR_WARM_UP: u64 = 1;

/// A way with delay and loss.
pub(super) struct Far {
    /// Each way, in milliseconds.
    pub(super) delay: f64,
    /// Each way, as a part of 1.
    pub(super) loss: f64,
    /// The metrics up and down.
    pub(super) keys: [&'static str; 2],
}

/// What one run carried.
pub(super) struct Carried {
    /// Gbit/s at the receiver: in the direction that was asked for, or up if it was both.
    pub(super) rate: f64,
    /// Gbit/s down, if it was both.
    pub(super) back: Option<f64>,
    /// Gbit in all.
    gigabits: f64,
}

/// One stream up, one down, with the processor time of the tunnel.
pub(super) fn one_stream(bed: &Bed, subject: &Subject<'_>, seconds: u64) -> anyhow::Result<Values> {
    let mut values = Vec::new();
    let ways = [
        (&[][..], "tcp1_up", "cpu_up"),
        (&["-R"], "tcp1_down", "cpu_down"),
    ];
    for (way, rate, cpu) in ways {
        let before = subject.cpu_seconds();
        let carried = iperf(bed, subject, seconds, port::IPERF, way)?;
        values.push((rate, carried.rate));
        if !subject.pids().is_empty() {
            values.push((cpu, (subject.cpu_seconds() - before) / carried.gigabits));
        }
    }
    Ok(values)
}

/// Several streams up, then down.
pub(super) fn streams(
    bed: &Bed,
    subject: &Subject<'_>,
    seconds: u64,
    streams: usize,
    [up, down]: [&'static str; 2],
) -> anyhow::Result<Values> {
    let streams = streams.to_string();
    let parallel = ["-P", &streams];
    let reverse = ["-P", &streams, "-R"];
    Ok(vec![
        (
            up,
            iperf(bed, subject, seconds, port::IPERF, &parallel)?.rate,
        ),
        (
            down,
            iperf(bed, subject, seconds, port::IPERF, &reverse)?.rate,
        ),
    ])
}

/// One stream each way at once.
pub(super) fn both_ways(bed: &Bed, subject: &Subject<'_>, seconds: u64) -> anyhow::Result<Values> {
    let carried = iperf(bed, subject, seconds, port::IPERF, &["--bidir"])?;
    let down = carried.back.context("iperf3 told of one direction only")?;
    Ok(vec![("bidir_up", carried.rate), ("bidir_down", down)])
}

/// One stream up, then down, over the way with delay and loss.
pub(super) fn far(
    bed: &Bed,
    subject: &Subject<'_>,
    seconds: u64,
    Far { delay, loss, keys }: &Far,
) -> anyhow::Result<Values> {
    let omit = FAR_WARM_UP.to_string();
    let options = ["-O", &omit];
    let mut values = Vec::new();
    for (way, key) in [&options[..], &[&options[..], &["-R"]].concat()]
        .into_iter()
        .zip(keys)
    {
        let wire = bed.wan.wire(bed, *delay, *loss);
        let carried = iperf(bed, subject, seconds, port::FAR_IPERF, way);
        let relayed = wire.end()?;
        values.push((*key, carried?.rate));
        ensure!(
            relayed.overflowed * 1000 <= relayed.carried,
            "the relay dropped {} of {} frames: this machine is too slow for it",
            relayed.overflowed,
            relayed.carried
        );
    }
    Ok(values)
}

/// Runs iperf3 with a fresh server.
pub(super) fn iperf(
    bed: &Bed,
    subject: &Subject<'_>,
    seconds: u64,
    port: u16,
    options: &[&str],
) -> anyhow::Result<Carried> {
    let to = match port {
        port::FAR_IPERF => subject.far_server(),
        _ => subject.server(),
    };
    let to = to.to_string();
    let mut server = bed.iperf_server(port);
    let (port, time) = (port.to_string(), seconds.to_string());
    let fixed = ["--json", "-c", &to, "-p", &port, "-t", &time];
    let output = finish(
        subject.machine(),
        seconds + FAR_WARM_UP,
        "iperf3",
        &[&fixed[..], options].concat(),
    );
    // It ends with its client; dropping it ends it if it does not.
    server.ended_within(SERVER_END);
    let report: Value = serde_json::from_str(&output?).context("iperf3 wrote no JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &report["end"];
    let number = |sum: &str, field: &str| end[sum][field].as_f64();
    let rate = number("sum_received", "bits_per_second").context("iperf3 told no rate")?;
    ensure!(rate > 0.0, "iperf3: no byte arrived");
    Ok(Carried {
        rate: rate / 1e9,
        back: number("sum_received_bidir_reverse", "bits_per_second").map(|rate| rate / 1e9),
        gigabits: number("sum_received", "bytes").context("iperf3 told no bytes")? * 8.0 / 1e9,
    })
}
