//! Doors to the parts that read what others wrote, for the fuzz targets of `netd-tests`. Not an
//! interface for anybody else.

use crate::config::Config;
use crate::dns;
use crate::drops::DropReason;
use crate::guard::{Addresses, Egress, Guard, Ingress};
use crate::memory::Seconds;
use netd_proto::handshake::Features;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::Packet;
use std::net::IpAddr;

/// Reads a configuration file; the text of what was read, or of what is wrong.
///
/// # Errors
/// As the daemon prints it.
pub fn read_config(text: &str) -> Result<String, String> {
    Config::parse(text)
        .map(|config| format!("{config:?}"))
        .map_err(|error| error.to_string())
}

/// The name and the addresses that the guard takes from a DNS message.
pub fn read_dns_answer(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    dns::Answer::parse(message).map(|answer| (answer.question.name, answer.addresses))
}

/// The guard as a configuration makes it.
#[derive(Debug)]
pub struct Gate {
    guard: Guard,
}

/// What became of a packet from the link.
#[derive(Debug)]
pub enum Entered<'a> {
    /// It goes to the tun.
    Delivered(VnetHeader, Packet<'a>),
    /// It is answered with a reset.
    Reset(Packet<'a>),
    /// It is dropped.
    Dropped,
}

impl Gate {
    /// # Errors
    /// The configuration is wrong.
    pub fn new(config: &str) -> Result<Gate, String> {
        let config = Config::parse(config).map_err(|error| error.to_string())?;
        let addresses = Addresses::from(&config.network);
        Ok(Gate {
            guard: Guard::new(addresses, config.publish, config.rules),
        })
    }

    /// What the link agreed on.
    pub fn agree(&mut self, features: Features) {
        self.guard.agree(features);
    }

    /// Whether a packet from the tun may leave, `now` in seconds.
    pub fn leaves(&mut self, packet: &Packet<'_>, now: u32) -> bool {
        self.guard.egress(packet, Seconds(now)) == Egress::Send
    }

    /// Decides on the payload of a packet frame, `now` in seconds.
    pub fn enters<'a>(&mut self, frame: &'a [u8], now: u32) -> Entered<'a> {
        match self.guard.ingress(frame, Seconds(now)) {
            Ingress::Deliver(vnet, packet) => Entered::Delivered(vnet, packet),
            Ingress::Reset(packet) => Entered::Reset(packet),
            Ingress::Drop(_) => Entered::Dropped,
        }
    }

    /// Packets that went no further so far.
    pub fn refused(&self) -> u64 {
        let refused = |(reason, _): &(DropReason, u64)| *reason != DropReason::InNameForgotten;
        self.guard
            .drops
            .nonzero()
            .filter(refused)
            .map(|(_, count)| count)
            .sum()
    }
}
