//! An HTTPS client that tells of each request how it went: the tool for "does it work from in
//! there?".
//!
//! Every request makes a connection of its own unless `--reuse` is given, so that a report covers
//! the whole way: name, connection, handshake, first byte, last byte (`exchange`). Many requests
//! are summed up (`report`). Redirects are reported, not followed.

mod certificate;
mod exchange;
mod plan;
mod report;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::{Failure, What};
use crate::net::tls::{Oldest, Roots};
use exchange::{Exchange, Step};
use plan::Plan;
use report::Tally;

/// The most requests of one run: what is kept of each for the percentiles is 48 bytes.
const MOST_REQUESTS: i64 = 1_000_000;
/// The most at once: each has a file, and programs usually get 1,024.
const MOST_AT_ONCE: i64 = 1_000;

/// Arguments of `fetch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to fetch; https:// or http://
    url: String,
    /// How many requests to make
    #[arg(long, short = 'n', default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=MOST_REQUESTS))]
    count: u32,
    /// How many of them at once
    #[arg(long, short = 'c', default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=MOST_AT_ONCE))]
    concurrency: u32,
    /// Keep connections open from one request to the next
    #[arg(long)]
    reuse: bool,
    /// Report each request, not the first and the sum alone
    #[arg(long)]
    each: bool,
    /// The method; POST by default if there is --data
    #[arg(long, short = 'X')]
    method: Option<String>,
    /// A header, "Name: value"; may be given many times
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    headers: Vec<String>,
    /// A body, or @FILE
    #[arg(long, short)]
    data: Option<String>,
    /// The versions of HTTP to offer
    #[arg(long, value_enum, default_value_t = plan::Http::Any)]
    http: plan::Http,
    /// The oldest version of TLS to speak
    #[arg(long, value_enum, default_value_t = Oldest::Tls12)]
    tls: Oldest,
    /// Whom to trust: built-in, system or a PEM file. By default built-in, or system if
    /// `SSL_CERT_FILE` or `SSL_CERT_DIR` is set
    #[arg(long)]
    roots: Option<Roots>,
    /// How long one request may take, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// The status that every answer must have; any will do otherwise
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(100..=599))]
    expect: Option<u16>,
}

/// Makes the requests and prints the report.
///
/// # Errors
/// What the arguments lack, or the step that failed first.
pub async fn run(args: Args) -> Result<(), Failure> {
    let plan = Arc::new(Plan::new(&args)?);
    let begin = Instant::now();
    let tally = work(Arc::clone(&plan), &args).await;
    let report = tally.report(&plan, begin.elapsed());
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &report)
        .map_err(std::io::Error::from)
        .and_then(|()| writeln!(out))
        .map_err(|error| Failure::new(What::Other, format!("cannot write the report: {error}")))?;
    tally.verdict()
}

/// Makes all the requests, `concurrency` of them at once.
async fn work(plan: Arc<Plan>, args: &Args) -> Tally {
    let (count, at_once) = (args.count as usize, args.concurrency as usize);
    // A worker waits when its results are not taken: bounded, whatever the count.
    let (results, mut done) = mpsc::channel::<Exchange>(at_once);
    let begun = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..at_once.min(count) {
        let (plan, begun, results) = (Arc::clone(&plan), Arc::clone(&begun), results.clone());
        let reuse = args.reuse;
        workers.spawn(async move {
            let mut kept = None;
            while begun.fetch_add(1, Ordering::Relaxed) < count {
                let result = exchange::run(&plan, &mut kept).await;
                if !reuse {
                    kept = None;
                }
                if results.send(result).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(results);
    let mut tally = Tally::new(args.each);
    while let Some(exchange) = done.recv().await {
        tally.add(exchange);
    }
    tally
}

/// A length of time in milliseconds, to the microsecond.
#[allow(clippy::cast_precision_loss, reason = "microseconds of hours fit")]
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

impl From<Step> for What {
    fn from(step: Step) -> Self {
        match step {
            Step::Tls => What::Tls,
            Step::Status => What::Request,
            _ => What::Network,
        }
    }
}
