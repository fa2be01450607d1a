//! Values as they come, and their medians.

use serde::Serialize;

/// One value of one metric over one subject.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) metric: &'static str,
    pub(crate) subject: String,
    pub(crate) repeat: usize,
    pub(crate) value: f64,
}

/// What could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Gap {
    pub(crate) measure: String,
    pub(crate) subject: String,
    pub(crate) why: String,
}

/// All of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    pub(crate) samples: Vec<Sample>,
    pub(crate) gaps: Vec<Gap>,
    /// Loads that were run, and those during which other programs were busy.
    pub(crate) runs: usize,
    pub(crate) disturbed: usize,
}

impl Results {
    /// The median of a metric over a subject, if it has any value.
    pub(crate) fn median(&self, metric: &str, subject: &str) -> Option<f64> {
        let of = |sample: &&Sample| sample.metric == metric && sample.subject == subject;
        let values = self.samples.iter().filter(of).map(|sample| sample.value);
        median(values.collect())
    }

    /// Whether a measure is known not to work over a subject.
    pub(crate) fn is_gap(&self, measure: &str, subject: &str) -> bool {
        let mut gaps = self.gaps.iter();
        gaps.any(|gap| gap.measure == measure && gap.subject == subject)
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}
