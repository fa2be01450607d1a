//! Many idle flows: what they cost, and whether another one is slower among them.
//!
//! The tunnel is started anew, so that memory is that of these flows and of nothing before. The
//! round trip of one flow is taken alone, among them, and alone again.

use super::{Values, small};
use crate::bed::{Bed, result_of};
use crate::load::{Flows, Latency};
use crate::subject::{ENCLAVE, HOST, Subject};
use crate::usage::{self, Memory};
use anyhow::{Context, bail, ensure};
use netd_tests::Process;
use std::thread;
use std::time::{Duration, Instant};

/// Opening may take so long.
const OPEN: Duration = Duration::from_secs(60);
/// How often it is looked whether they are open.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// More than this, and two processes a flow are more than this machine is for.
const MOST_BY_FORK: usize = 1000;

/// How many flows, and where their values go.
pub(super) struct Count {
    flows: usize,
    rate: &'static str,
    alone: &'static str,
    among: &'static str,
    ratio: &'static str,
    resident: &'static str,
    proportional: &'static str,
    enclave: &'static str,
}

macro_rules! count {
    ($flows:literal, $name:literal) => {
        Count {
            flows: $flows,
            rate: concat!($name, "_rate"),
            alone: concat!($name, "_alone"),
            among: concat!($name, "_among"),
            ratio: concat!($name, "_ratio"),
            resident: concat!($name, "_rss"),
            proportional: concat!($name, "_pss"),
            enclave: concat!($name, "_near"),
        }
    };
}

pub(super) const THOUSAND: Count = count!(1000, "flows1000");
pub(super) const FIVE_THOUSAND: Count = count!(5000, "flows5000");
pub(super) const FIFTEEN_THOUSAND: Count = count!(15000, "flows15000");

pub(super) fn run(
    bed: &Bed,
    subject: &mut Subject<'_>,
    seconds: u64,
    count: &Count,
) -> anyhow::Result<Values> {
    if subject.is_pairs() && count.flows > MOST_BY_FORK {
        bail!(
            "a pair of socat has two processes a flow: {} would be too many",
            count.flows * 2
        );
    }
    subject.restart()?;
    let values = among_flows(bed, subject, seconds, count);
    // Some tunnels keep flows whose client is gone: these are not to burden what follows.
    subject.restart()?;
    values
}

fn among_flows(
    bed: &Bed,
    subject: &Subject<'_>,
    seconds: u64,
    count: &Count,
) -> anyhow::Result<Values> {
    let p50 = || -> anyhow::Result<f64> {
        subject.settle();
        let Latency { p50, .. } = small::round_trips(bed, subject, seconds as f64)?;
        Ok(p50)
    };
    let first_alone = p50()?;
    subject.settle();
    let before = memory(subject);
    let (flows, mut client) = open(bed, subject, count.flows)?;
    subject.settle();
    let after = memory(subject);
    let among = p50()?;
    client.kill();
    let alone = f64::midpoint(first_alone, p50()?);

    let mut values = vec![
        (count.rate, flows.opened as f64 / flows.seconds),
        (count.alone, alone),
        (count.among, among),
        (count.ratio, among / alone),
    ];
    let each = |field: fn(&Memory) -> f64, name: Option<&str>| {
        let sum = |memory: &[(String, Memory)]| -> f64 {
            let is_meant = |of: &str| name.is_none_or(|name| name == of);
            let meant = memory.iter().filter(|(of, _)| is_meant(of));
            meant.map(|(_, memory)| field(memory)).sum()
        };
        (sum(&after) - sum(&before)) / 1024.0 / flows.opened as f64
    };
    let is_there = |name: &str| after.iter().any(|(of, _)| of == name);
    // Of ours the host's daemon, which keeps the flows; of others all there is.
    let main = is_there(HOST).then_some(HOST);
    if !after.is_empty() {
        values.push((count.resident, each(|memory| memory.resident, main)));
        values.push((count.proportional, each(|memory| memory.proportional, main)));
    }
    if is_there(ENCLAVE) {
        let enclave = each(|memory| memory.proportional, Some(ENCLAVE));
        values.push((count.enclave, enclave));
    }
    Ok(values)
}

/// Opens them, and fails unless all are open.
fn open(bed: &Bed, subject: &Subject<'_>, count: usize) -> anyhow::Result<(Flows, Process)> {
    let (server, number) = (subject.server().to_string(), count.to_string());
    let mut client = bed.start_load(subject.machine(), &["flows", &server, &number]);
    let begin = Instant::now();
    let flows: Flows = loop {
        if let Ok(flows) = result_of(&client.log()) {
            break flows;
        }
        if let Some(status) = client.ended() {
            bail!("the client ended with {status}: {}", client.log().trim());
        }
        ensure!(
            begin.elapsed() < OPEN,
            "{count} flows are not open after {OPEN:?}"
        );
        thread::sleep(LOOK_EVERY);
    };
    if flows.opened < count {
        let error = flows.error.context("no reason")?;
        bail!(
            "only {} of {count} flows could be opened: {error}",
            flows.opened
        );
    }
    Ok((flows, client))
}

/// Of the tunnel's processes and their descendants now, by name.
fn memory(subject: &Subject<'_>) -> Vec<(String, Memory)> {
    let mut all = Vec::new();
    for (name, root) in subject.processes() {
        let tree = usage::tree(&[root]).into_iter();
        let memories = tree.filter_map(|pid| usage::memory(pid).ok());
        all.extend(memories.map(|memory| (name.to_owned(), memory)));
    }
    all
}
