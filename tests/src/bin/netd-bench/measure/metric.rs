//! The values and what they are called.

use serde::Serialize;

/// Which direction is an improvement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// One kind of value.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Metric {
    /// In JSON and on the command line.
    pub(crate) key: &'static str,
    /// In the report.
    pub(crate) title: &'static str,
    /// What it is counted in.
    pub(crate) unit: &'static str,
    /// Which way is good.
    pub(crate) better: Better,
}

const fn more(key: &'static str, title: &'static str, unit: &'static str) -> Metric {
    let better = Better::Higher;
    Metric {
        key,
        title,
        unit,
        better,
    }
}

const fn less(key: &'static str, title: &'static str, unit: &'static str) -> Metric {
    let better = Better::Lower;
    Metric {
        key,
        title,
        unit,
        better,
    }
}

/// All there are, in the order of the report.
pub(crate) const METRICS: &[Metric] = &[
    more("tcp1_up", "TCP, 1 stream, up", "Gbit/s"),
    more("tcp1_down", "TCP, 1 stream, down", "Gbit/s"),
    more("tcp8_up", "TCP, 8 streams, up", "Gbit/s"),
    more("tcp8_down", "TCP, 8 streams, down", "Gbit/s"),
    more("tcp64_up", "TCP, 64 streams, up", "Gbit/s"),
    more("tcp64_down", "TCP, 64 streams, down", "Gbit/s"),
    more("bidir_up", "TCP both ways at once, up", "Gbit/s"),
    more("bidir_down", "TCP both ways at once, down", "Gbit/s"),
    less("cpu_up", "CPU of the tunnel, 1 stream up", "s/Gbit"),
    less("cpu_down", "CPU of the tunnel, 1 stream down", "s/Gbit"),
    more("delay_up", "TCP, 1 stream, 20 ms, up", "Gbit/s"),
    more("delay_down", "TCP, 1 stream, 20 ms, down", "Gbit/s"),
    more("loss_up", "TCP, 1 stream, 0.1 % loss, up", "Gbit/s"),
    more("loss_down", "TCP, 1 stream, 0.1 % loss, down", "Gbit/s"),
    less("rr_p50", "Round trip, idle, p50", "µs"),
    less("rr_p99", "Round trip, idle, p99", "µs"),
    less("rr_bulk_p50", "Round trip beside 4+4 streams, p50", "µs"),
    less("rr_bulk_p99", "Round trip beside 4+4 streams, p99", "µs"),
    more("rr_bulk_up", "The 4+4 streams meanwhile, up", "Gbit/s"),
    more("rr_bulk_down", "The 4+4 streams meanwhile, down", "Gbit/s"),
    more("crr_1", "Connect-request-close, one after another", "1/s"),
    more("crr_8", "Connect-request-close, 8 at once", "1/s"),
    more("https", "HTTPS download", "MB/s"),
    more("udp64_up", "UDP, 64 B at 200,000/s, up, delivered", "1/s"),
    less("udp64_up_loss", "UDP, 64 B at 200,000/s, up, lost", "%"),
    more(
        "udp64_down",
        "UDP, 64 B at 200,000/s, down, delivered",
        "1/s",
    ),
    less("udp64_down_loss", "UDP, 64 B at 200,000/s, down, lost", "%"),
    more(
        "udp1400_up",
        "UDP, 1,400 B at 200,000/s, up, delivered",
        "1/s",
    ),
    less(
        "udp1400_up_loss",
        "UDP, 1,400 B at 200,000/s, up, lost",
        "%",
    ),
    more(
        "udp1400_down",
        "UDP, 1,400 B at 200,000/s, down, delivered",
        "1/s",
    ),
    less(
        "udp1400_down_loss",
        "UDP, 1,400 B at 200,000/s, down, lost",
        "%",
    ),
    less(
        "udp1400_up_slow_loss",
        "UDP, 1,400 B at 20,000/s, up, lost",
        "%",
    ),
    less(
        "udp1400_down_slow_loss",
        "UDP, 1,400 B at 20,000/s, down, lost",
        "%",
    ),
    less("idle_cpu", "CPU of the idle tunnel", "%"),
    more("flows1000_rate", "1,000 flows: opened", "1/s"),
    less(
        "flows1000_alone",
        "1,000 flows: round trip of one alone, p50",
        "µs",
    ),
    less(
        "flows1000_among",
        "1,000 flows: round trip of one among them, p50",
        "µs",
    ),
    less("flows1000_ratio", "1,000 flows: among / alone", "×"),
    less(
        "flows1000_rss",
        "1,000 flows: resident memory of one",
        "KiB",
    ),
    less(
        "flows1000_pss",
        "1,000 flows: proportional memory of one",
        "KiB",
    ),
    less(
        "flows1000_near",
        "1,000 flows: the same of enclave-netd",
        "KiB",
    ),
    more("flows5000_rate", "5,000 flows: opened", "1/s"),
    less(
        "flows5000_alone",
        "5,000 flows: round trip of one alone, p50",
        "µs",
    ),
    less(
        "flows5000_among",
        "5,000 flows: round trip of one among them, p50",
        "µs",
    ),
    less("flows5000_ratio", "5,000 flows: among / alone", "×"),
    less(
        "flows5000_rss",
        "5,000 flows: resident memory of one",
        "KiB",
    ),
    less(
        "flows5000_pss",
        "5,000 flows: proportional memory of one",
        "KiB",
    ),
    less(
        "flows5000_near",
        "5,000 flows: the same of enclave-netd",
        "KiB",
    ),
    more("flows15000_rate", "15,000 flows: opened", "1/s"),
    less(
        "flows15000_alone",
        "15,000 flows: round trip of one alone, p50",
        "µs",
    ),
    less(
        "flows15000_among",
        "15,000 flows: round trip of one among them, p50",
        "µs",
    ),
    less("flows15000_ratio", "15,000 flows: among / alone", "×"),
    less(
        "flows15000_rss",
        "15,000 flows: resident memory of one",
        "KiB",
    ),
    less(
        "flows15000_pss",
        "15,000 flows: proportional memory of one",
        "KiB",
    ),
    less(
        "flows15000_near",
        "15,000 flows: the same of enclave-netd",
        "KiB",
    ),
    less(
        "peak",
        "Most memory ever resident, the tunnel's processes",
        "MiB",
    ),
    less("peak_host", "Most memory ever resident, host-netd", "MiB"),
];
