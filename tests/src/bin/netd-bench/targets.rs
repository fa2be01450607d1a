//! What is aimed at, and whether it was reached.

use crate::results::Results;
use crate::subject::{DIRECT, OURS};

/// A bound on a metric of ours, absolute or as a ratio to another value of the same run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// What is bounded.
    pub(crate) metric: &'static str,
    bound: Bound,
    /// The metric and the subject that it is compared with.
    beside: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

use Bound::{AtLeast, AtMost};

const fn to(metric: &'static str, bound: Bound, subject: &'static str) -> Target {
    let beside = Some((metric, subject));
    Target {
        metric,
        bound,
        beside,
    }
}

const fn to_own(metric: &'static str, bound: Bound, other: &'static str) -> Target {
    let beside = Some((other, OURS));
    Target {
        metric,
        bound,
        beside,
    }
}

const fn absolute(metric: &'static str, bound: Bound) -> Target {
    let beside = None;
    Target {
        metric,
        bound,
        beside,
    }
}

const SLIRP: &str = "slirp4netns";
const PASTA: &str = "pasta";

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    to("tcp1_up", AtLeast(0.33), DIRECT),
    to("tcp1_up", AtLeast(1.5), SLIRP),
    to("tcp1_up", AtLeast(4.0), PASTA),
    to("tcp1_down", AtLeast(0.33), DIRECT),
    to("tcp1_down", AtLeast(1.5), SLIRP),
    to("tcp1_down", AtLeast(0.9), PASTA),
    to("tcp8_up", AtLeast(0.30), DIRECT),
    to_own("tcp8_up", AtLeast(0.9), "tcp1_up"),
    to("tcp8_down", AtLeast(0.30), DIRECT),
    to_own("tcp8_down", AtLeast(0.9), "tcp1_down"),
    absolute("cpu_up", AtMost(0.085)),
    absolute("cpu_down", AtMost(0.085)),
    to("rr_p50", AtMost(1.1), SLIRP),
    absolute("rr_bulk_p50", AtMost(1000.0)),
    to("rr_bulk_p50", AtMost(1.0), SLIRP),
    to("delay_up", AtLeast(0.9), DIRECT),
    to("delay_down", AtLeast(0.9), DIRECT),
    to("loss_up", AtLeast(0.9), DIRECT),
    to("loss_down", AtLeast(0.9), DIRECT),
    to("crr_1", AtLeast(0.95), DIRECT),
    to("https", AtLeast(0.8), DIRECT),
    to("udp1400_up", AtLeast(1.0), PASTA),
    to("udp1400_down", AtLeast(1.0), PASTA),
    to("udp1400_up_loss", AtMost(1.0), PASTA),
    to("udp1400_down_loss", AtMost(1.0), PASTA),
    absolute("idle_cpu", AtMost(0.1)),
    absolute("flows15000_ratio", AtMost(1.05)),
    absolute("flows15000_rss", AtMost(10.0)),
];

impl Target {
    /// What it says.
    pub(crate) fn text(&self) -> String {
        let (sign, bound) = match self.bound {
            AtLeast(bound) => ('≥', bound),
            AtMost(bound) => ('≤', bound),
        };
        match self.beside {
            None => format!("{sign} {bound}"),
            Some((metric, subject)) if metric == self.metric => {
                format!("{sign} {bound} × {subject}")
            }
            Some((metric, _)) => format!("{sign} {bound} × own {metric}"),
        }
    }

    /// Whose values it needs.
    pub(crate) fn subjects(&self) -> [&'static str; 2] {
        [OURS, self.beside.map_or(OURS, |(_, subject)| subject)]
    }

    /// Whether it was reached, if both values are there.
    pub(crate) fn is_reached(&self, results: &Results) -> Option<bool> {
        let value = results.median(self.metric, OURS)?;
        let unit = match self.beside {
            Some((metric, subject)) => results.median(metric, subject)?,
            None => 1.0,
        };
        Some(match self.bound {
            AtLeast(bound) => value >= bound * unit,
            AtMost(bound) => value <= bound * unit,
        })
    }
}
