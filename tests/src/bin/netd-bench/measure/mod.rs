//! What is measured.

mod datagrams;
mod flows;
mod https;
mod metric;
mod rest;
mod small;
mod tcp;

pub(crate) use metric::{METRICS, Metric};

use crate::bed::Bed;
use crate::subject::Subject;
use clap::ValueEnum;

/// One kind of load and the values it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measure {
    /// One TCP stream up, one down, and the processor time they cost
    Tcp1,
    /// 8 streams
    Tcp8,
    /// 64 streams
    Tcp64,
    /// One stream each way at once
    Bidir,
    /// One stream up, one down, 20 ms round trip
    Delay,
    /// One stream up, one down, 1 ms round trip, 0.1 % loss each way
    Loss,
    /// Requests and answers, nothing else going on
    Rr,
    /// Requests and answers beside 4 streams up and 4 down
    RrBulk,
    /// Connect, request, answer, close
    Crr,
    /// 1,000 idle flows: latency of another among them, memory
    Flows1000,
    /// 5,000 idle flows
    Flows5000,
    /// 15,000 idle flows
    Flows15000,
    /// Datagrams a second at 64 and 1,400 bytes, up and down
    Udp,
    /// Download over HTTPS with curl
    Https,
    /// Processor time of an idle tunnel, once
    IdleCpu,
}

/// The longest of the loads that give many values a second, in seconds.
const SHORT: u64 = 2;
/// Far away: ours has to keep a bandwidth-delay product of some megabytes in flight.
const DELAY: tcp::Far = tcp::Far {
    delay: 10.0,
    loss: 0.0,
    keys: ["delay_up", "delay_down"],
};
/// Near, but not without loss.
const LOSS: tcp::Far = tcp::Far {
    delay: 0.5,
    loss: 0.001,
    keys: ["loss_up", "loss_down"],
};

/// Values that one run of a measure gave.
pub(crate) type Values = Vec<(&'static str, f64)>;

impl Measure {
    /// In the order of the report.
    pub(crate) const ALL: &[Measure] = &[
        Measure::Tcp1,
        Measure::Tcp8,
        Measure::Tcp64,
        Measure::Bidir,
        Measure::Delay,
        Measure::Loss,
        Measure::Rr,
        Measure::RrBulk,
        Measure::Crr,
        Measure::Https,
        Measure::Udp,
        Measure::IdleCpu,
        Measure::Flows1000,
        Measure::Flows5000,
        Measure::Flows15000,
    ];

    /// As the command line calls it.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether `--quick` leaves it out unless it is asked for.
    pub(crate) fn is_long(self) -> bool {
        matches!(self, Measure::Flows5000 | Measure::Flows15000)
    }

    /// How often it is run, if others are run so often.
    pub(crate) fn repeats(self, others: usize) -> usize {
        match self {
            Measure::IdleCpu => 1,
            _ => others,
        }
    }

    /// Runs it once.
    pub(crate) fn run(
        self,
        bed: &Bed,
        subject: &mut Subject<'_>,
        seconds: u64,
    ) -> anyhow::Result<Values> {
        // What is counted in thousands a second needs less time than what fluctuates.
        let short = seconds.min(SHORT);
        match self {
            Measure::Tcp1 => tcp::one_stream(bed, subject, seconds),
            Measure::Tcp8 => tcp::streams(bed, subject, seconds, 8, ["tcp8_up", "tcp8_down"]),
            Measure::Tcp64 => tcp::streams(bed, subject, seconds, 64, ["tcp64_up", "tcp64_down"]),
            Measure::Bidir => tcp::both_ways(bed, subject, seconds),
            Measure::Delay => tcp::far(bed, subject, seconds, &DELAY),
            Measure::Loss => tcp::far(bed, subject, seconds, &LOSS),
            Measure::Rr => small::latency(bed, subject, short),
            Measure::RrBulk => small::latency_beside_bulk(bed, subject, seconds),
            Measure::Crr => small::connects(bed, subject, short),
            Measure::Https => https::download(bed, subject, seconds),
            Measure::Udp => datagrams::all(bed, subject, short),
            Measure::IdleCpu => Ok(rest::idle_cpu(subject, seconds)),
            Measure::Flows1000 => flows::run(bed, subject, short, &flows::THOUSAND),
            Measure::Flows5000 => flows::run(bed, subject, short, &flows::FIVE_THOUSAND),
            Measure::Flows15000 => flows::run(bed, subject, short, &flows::FIFTEEN_THOUSAND),
        }
    }
}
