//! A second way from the parent to the internet, with delay and loss.
//!
//! ```text
//!  parent 203.0.113.241 ==veth== near0 [relay] far0 ==veth== 203.0.113.242 internet
//! ```
//! Frames there are what travels on a real wire: every offload is off on all four ends.

use crate::bed::{Bed, finish, result_of};
use crate::load::{RELAYING, Relayed};
use anyhow::Context;
use netd_tests::{Lab, Machine, Process};
use nix::sys::signal::Signal;
use std::net::{IpAddr, Ipv4Addr};

/// The server's address behind the relay.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 242));
const PARENT: &str = "203.0.113.241";
/// How long the relay may take to start or to end, in seconds.
const START: u64 = 10;

/// The machine in the middle.
pub(crate) struct Wan {
    relay: Machine,
}

/// A relay that runs.
pub(crate) struct Wire(Process);

impl Wan {
    /// Makes the machine and its two wires.
    pub(crate) fn new(lab: &Lab) -> anyhow::Result<Wan> {
        let relay = lab.machine("relay");
        let holder = relay.spawn("sleep", &["infinity"]);
        let pid = holder.pid().to_string();
        let server = SERVER.to_string();
        for (machine, end, address) in [
            (&lab.parent, "near0", PARENT),
            (&lab.internet, "far0", &server),
        ] {
            let line = format!(
                "ip link add wan0 type veth peer name {end} netns {pid} &&
                 ip link set wan0 up && ip address add {address}/28 dev wan0 && {}",
                without_offloads("wan0")
            );
            finish(machine, START, "bash", &["-c", &line])?;
            let line = format!("ip link set {end} up && {}", without_offloads(end));
            finish(&relay, START, "bash", &["-c", &line])?;
        }
        Ok(Wan { relay })
    }

    /// Carries frames for as long as the wire is kept: delay each way in milliseconds, loss each
    /// way as a part of 1.
    pub(crate) fn wire(&self, bed: &Bed, delay: f64, loss: f64) -> Wire {
        let (delay, loss) = (delay.to_string(), loss.to_string());
        let load = ["load", "relay", "near0", "far0", &delay, &loss];
        let mut relay = self.relay.spawn(bed.program(), &load);
        relay.wait_log(RELAYING, START);
        Wire(relay)
    }
}

impl Wire {
    /// Ends it and tells what it did.
    pub(crate) fn end(mut self) -> anyhow::Result<Relayed> {
        self.0.signal(Signal::SIGTERM);
        self.0
            .ended_within(START)
            .context("the relay does not end")?;
        result_of(&self.0.log())
    }
}

fn without_offloads(interface: &str) -> String {
    format!("ethtool -K {interface} tx off rx off gso off gro off tso off >/dev/null")
}
