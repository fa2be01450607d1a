//! Many requests summed up.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::exchange::{Exchange, StepError, Times};
use super::milliseconds;
use super::plan::Plan;
use crate::error::{Failure, What};

/// Different errors that are told apart. A message holds addresses, so a server could make many.
const MOST_ERRORS: usize = 32;

/// What the requests so far came to.
#[derive(Debug)]
pub(super) struct Tally {
    each: bool,
    kept: Vec<Exchange>,
    first_error: Option<StepError>,
    errors: BTreeMap<StepError, u64>,
    statuses: BTreeMap<u16, u64>,
    failed: u64,
    bytes: u64,
    times: Vec<Times>,
}

/// What is printed.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    url: String,
    method: &'a str,
    summary: Summary<'a>,
    /// The first request, or each one.
    requests: &'a [Exchange],
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    requests: u64,
    failed: u64,
    concurrency: u32,
    seconds: f64,
    requests_per_second: f64,
    bytes: u64,
    statuses: &'a BTreeMap<u16, u64>,
    errors: Vec<Errors<'a>>,
    /// Of the requests that did not fail.
    milliseconds: Option<Spreads>,
}

#[derive(Debug, Serialize)]
struct Errors<'a> {
    count: u64,
    #[serde(flatten)]
    error: &'a StepError,
}

#[derive(Debug, Serialize)]
struct Spreads {
    dns: Option<Spread>,
    connect: Option<Spread>,
    tls: Option<Spread>,
    first_byte: Option<Spread>,
    total: Option<Spread>,
}

/// How a time was spread: percentiles by the nearest rank.
#[derive(Debug, PartialEq, Serialize)]
struct Spread {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Tally {
    /// Of no request yet. The first is kept, or each.
    pub(super) fn new(each: bool) -> Tally {
        Tally {
            each,
            kept: Vec::new(),
            first_error: None,
            errors: BTreeMap::new(),
            statuses: BTreeMap::new(),
            failed: 0,
            bytes: 0,
            times: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, exchange: Exchange) {
        self.bytes += exchange.bytes;
        if let Some(status) = exchange.status {
            *self.statuses.entry(status).or_default() += 1;
        }
        match &exchange.error {
            None => self.times.push(exchange.times),
            Some(error) => {
                self.failed += 1;
                self.first_error.get_or_insert_with(|| error.clone());
                if self.errors.len() < MOST_ERRORS || self.errors.contains_key(error) {
                    *self.errors.entry(error.clone()).or_default() += 1;
                }
            }
        }
        if self.each || self.kept.is_empty() {
            self.kept.push(exchange);
        }
    }

    pub(super) fn report<'a>(&'a self, plan: &'a Plan, took: Duration) -> Report<'a> {
        let answered = self.times.len() as u64;
        let seconds = (milliseconds(took) * 1000.0).round() / 1e6;
        let of = |time: fn(&Times) -> Option<f64>| spread(self.times.iter().filter_map(time));
        #[allow(clippy::cast_precision_loss, reason = "a million at most")]
        let rate = (answered as f64 / seconds * 10.0).round() / 10.0;
        Report {
            url: plan.url.to_string(),
            method: plan.method.as_str(),
            summary: Summary {
                requests: answered + self.failed,
                failed: self.failed,
                concurrency: plan.concurrency,
                seconds,
                requests_per_second: rate,
                bytes: self.bytes,
                statuses: &self.statuses,
                errors: (self.errors.iter())
                    .map(|(error, count)| Errors {
                        count: *count,
                        error,
                    })
                    .collect(),
                milliseconds: (answered > 0).then(|| Spreads {
                    dns: of(|times| times.dns),
                    connect: of(|times| times.connect),
                    tls: of(|times| times.tls),
                    first_byte: of(|times| times.first_byte),
                    total: of(|times| times.total),
                }),
            },
            requests: &self.kept,
        }
    }

    /// Whether every request did what it should.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        match &self.first_error {
            None => Ok(()),
            Some(StepError { step, message }) => {
                let all = self.times.len() as u64 + self.failed;
                let name = serde_json::to_value(step).unwrap_or_default();
                let name = name.as_str().unwrap_or_default();
                let why = format!(
                    "{} of {all} requests failed; step {name}: {message}",
                    self.failed
                );
                Err(Failure::new(What::from(*step), why))
            }
        }
    }
}

fn spread(times: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    let (min, max) = (*times.first()?, *times.last()?);
    let rank = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times[rank - 1]
    };
    #[allow(clippy::cast_precision_loss, reason = "a million at most")]
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    Some(Spread {
        min,
        mean: (mean * 1000.0).round() / 1000.0,
        p50: rank(50),
        p90: rank(90),
        p99: rank(99),
        max,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::super::exchange::Step;
    use super::*;

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let spread = spread((1..=200).rev().map(f64::from)).unwrap();
        assert_eq!((spread.min, spread.max, spread.mean), (1.0, 200.0, 100.5));
        assert_eq!((spread.p50, spread.p90, spread.p99), (100.0, 180.0, 198.0));
        let alone = super::spread([7.0].into_iter()).unwrap();
        assert_eq!((alone.p50, alone.p99), (7.0, 7.0));
        assert_eq!(super::spread(std::iter::empty()), None);
    }

    #[test]
    fn errors_are_counted_and_bounded_and_the_first_decides() {
        let mut tally = Tally::new(false);
        for number in 0..100 {
            let error = StepError {
                step: if number == 0 { Step::Tls } else { Step::Dns },
                message: format!("{number}"),
            };
            tally.add(Exchange {
                error: Some(error),
                ..Exchange::default()
            });
        }
        assert_eq!(tally.failed, 100);
        assert_eq!(tally.errors.len(), MOST_ERRORS);
        assert_eq!(tally.kept.len(), 1);
        let failure = tally.verdict().unwrap_err();
        assert_eq!(failure.what, What::Tls);
        assert!(failure.why.contains("100 of 100"), "{failure}");
        assert!(failure.why.contains("step tls: 0"), "{failure}");
    }
}
