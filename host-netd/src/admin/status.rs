//! The answer to a question for the status.

use super::protocol::{Enclave, Figures, Gone, Line, Link, Log, Name, Status, Traffic};
use super::time::written;
use crate::engine::drops;
use crate::limits::{STATUS_TEXT, STATUS_WITHIN};
use crate::record::{self, Record, Records, Snapshot};
use std::sync::Arc;
use std::time::Instant;

/// Asks every session for figures, waits for them a while, and tells what is known then.
pub(super) async fn status(records: &Records) -> Status {
    let asked = Instant::now();
    let all = records.all();
    let waiting: Vec<_> = all.iter().map(|record| record.ask_figures()).collect();
    let deadline = tokio::time::Instant::from_std(asked + STATUS_WITHIN);
    let mut late = Vec::new();
    for (record, waits) in all.iter().zip(waiting) {
        let answered = tokio::time::timeout_at(deadline, answer(record, asked));
        late.push(waits && answered.await.is_err());
    }
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        enclaves: (all.iter().zip(late))
            .map(|(record, late)| enclave(record, late))
            .collect(),
    }
}

/// Waits until figures are told that are newer than the question, or there is nobody to tell them.
async fn answer(record: &Record, asked: Instant) {
    loop {
        let changed = record.changed();
        if record.figures_at() >= asked || !record.is_connected() {
            return;
        }
        changed.await;
    }
}

fn enclave(record: &Arc<Record>, late: bool) -> Enclave {
    let Snapshot {
        facts,
        links,
        since,
        uptime,
        gone,
        exit,
        figures,
        figures_at,
        last,
        next,
        lost,
    } = record.snapshot();
    Enclave {
        cid: Name::from(record.peer),
        session: record.session.to_string(),
        connected: gone.is_none(),
        since: written(since),
        uptime: uptime.as_secs(),
        gone: gone.map(|gone| Gone {
            at: written(gone.at),
            why: gone.why,
        }),
        link: Link {
            count: links,
            peer: facts.peer.to_string(),
            features: facts.features.to_string(),
            addresses: vec![facts.addresses.0.to_string(), facts.addresses.1.to_string()],
        },
        figures: Figures {
            age_ms: u64::try_from(figures_at.elapsed().as_millis()).unwrap_or(u64::MAX),
            late,
            ..figures_of(&figures)
        },
        log: Log {
            next,
            lost,
            last: last.map(|last| {
                let mut line = line(&last);
                line.text
                    .truncate(line.text.floor_char_boundary(STATUS_TEXT));
                line
            }),
        },
        exit: exit.map(Into::into),
    }
}

fn figures_of(figures: &record::Figures) -> Figures {
    let record::Figures {
        held,
        to_enclave,
        counters,
        dns_asked,
    } = figures;
    let traffic = |traffic: drops::Traffic| Traffic {
        packets: traffic.packets,
        bytes: traffic.bytes,
    };
    Figures {
        flows: held.flows,
        flows_opened: counters.flows_opened,
        dials: held.dials,
        mappings: held.mappings,
        half_open: held.half_open,
        dns_queries: held.dns_queries,
        dns_asked: *dns_asked,
        ring_memory: held.ring_memory,
        from_enclave: traffic(counters.from_enclave),
        to_enclave: traffic(*to_enclave),
        drops: (counters.met())
            .map(|(name, drops)| (name.to_owned(), drops))
            .collect(),
        ..Figures::default()
    }
}

pub(super) fn line(line: &record::Line) -> Line {
    Line {
        number: line.number,
        source: line.source.name().to_owned(),
        time: written(line.received),
        text: line.text.to_string(),
    }
}
