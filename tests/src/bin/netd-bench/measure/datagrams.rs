//! Datagrams: how many arrive of those that are offered.
//!
//! The sender runs before all else, so that every subject is offered the same; what is left of the
//! processors is the tunnel's and the receiver's.

use super::Values;
use crate::bed::{Bed, SERVER, result_of};
use crate::load::{Datagrams, WAITING, port};
use crate::subject::Subject;
use anyhow::{Context, bail};
use std::net::SocketAddr;

/// How long a side may take to start or to end after the other, in seconds.
const GRACE: u64 = 12;

struct Load {
    payload: &'static str,
    rate: &'static str,
    is_up: bool,
    delivered: Option<&'static str>,
    lost: &'static str,
}

const fn load(
    payload: &'static str,
    rate: &'static str,
    is_up: bool,
    delivered: Option<&'static str>,
    lost: &'static str,
) -> Load {
    Load {
        payload,
        rate,
        is_up,
        delivered,
        lost,
    }
}

/// More than any tunnel here carries, so that the most that it carries shows; and less than each
/// should carry without loss.
const LOADS: [Load; 6] = [
    load("64", "200000", true, Some("udp64_up"), "udp64_up_loss"),
    load("64", "200000", false, Some("udp64_down"), "udp64_down_loss"),
    load(
        "1400",
        "200000",
        true,
        Some("udp1400_up"),
        "udp1400_up_loss",
    ),
    load(
        "1400",
        "200000",
        false,
        Some("udp1400_down"),
        "udp1400_down_loss",
    ),
    load("1400", "20000", true, None, "udp1400_up_slow_loss"),
    load("1400", "20000", false, None, "udp1400_down_slow_loss"),
];

/// All loads, one after another.
pub(super) fn all(bed: &Bed, subject: &Subject<'_>, seconds: u64) -> anyhow::Result<Values> {
    if subject.is_pairs() {
        bail!("a pair of socat joins streams, and keeps no datagram apart from the next");
    }
    let mut values = Vec::new();
    for load in LOADS {
        let [sent, received] = once(bed, subject, seconds, &load)?;
        let time = seconds as f64;
        if let Some(key) = load.delivered {
            values.push((key, received.count as f64 / time));
        }
        let lost = sent.count.saturating_sub(received.count) as f64;
        values.push((load.lost, 100.0 * lost / sent.count as f64));
    }
    Ok(values)
}

/// What was sent, and what came.
fn once(
    bed: &Bed,
    subject: &Subject<'_>,
    seconds: u64,
    load: &Load,
) -> anyhow::Result<[Datagrams; 2]> {
    let time = seconds.to_string();
    let (own, server) = (
        SocketAddr::new(SERVER, port::DATAGRAMS).to_string(),
        subject.at(port::DATAGRAMS).to_string(),
    );
    let send = |address| ["send", address, load.payload, load.rate, &time];
    let receive = |address| ["receive", address];
    // The one in the internet waits for the other.
    let mut far = match load.is_up {
        true => bed.start_load(&bed.lab.internet, &receive(&own)),
        false => bed.start_urgent_load(&bed.lab.internet, &send(&own)),
    };
    far.wait_log(WAITING, GRACE);
    let call = ["--call"];
    let near: anyhow::Result<Datagrams> = match load.is_up {
        true => {
            let arguments = [&send(&server)[..], &call].concat();
            bed.urgent_load(subject.machine(), seconds, &arguments)
        }
        false => {
            let arguments = [&receive(&server)[..], &call].concat();
            bed.load(subject.machine(), seconds, &arguments)
        }
    };
    let near = near?;
    far.ended_within(seconds + GRACE)
        .context("the far end does not end")?;
    let far = result_of(&far.log())?;
    Ok(if load.is_up { [near, far] } else { [far, near] })
}
