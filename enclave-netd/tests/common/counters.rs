//! What the daemon and its kernel count.

use super::Daemon;
use super::host::Link;
use netd_proto::frame::Kind;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;

/// Packets by reason of their drop.
pub type Counters = BTreeMap<String, u64>;

/// The daemon's counters. One of them must not be zero, or it has nothing to say.
pub fn dropped(daemon: &mut Daemon) -> Counters {
    daemon.signal(Signal::SIGUSR1);
    let line = daemon.wait_for("dropped since the start");
    let (_, packets) = line.split_once("packets=\"").expect("a list");
    let (packets, _) = packets.split_once('"').expect("its end");
    let count = |counter: &str| {
        let (reason, count) = counter.split_once('=').expect("a counter");
        (reason.to_owned(), count.parse().expect("a number"))
    };
    packets.split(' ').map(count).collect()
}

/// What the kernel was given through the tun: packets that it took, and that it did not.
pub fn entered() -> [u64; 3] {
    ["rx_packets", "rx_errors", "rx_dropped"].map(|name| {
        let path = format!("/sys/class/net/netd0/statistics/{name}");
        let text = fs::read_to_string(path).expect("the interface is there");
        text.trim().parse().expect("a number")
    })
}

/// Waits until the daemon has looked at everything sent before; returns the packets that came back.
pub fn settle(link: &mut Link) -> Vec<Vec<u8>> {
    let number = 0x5E77_1ED0_u64.to_be_bytes();
    link.send(Kind::Ping, &number);
    let mut packets = Vec::new();
    loop {
        match link.next() {
            (Kind::Packet, frame) => packets.push(frame[10..].to_vec()),
            (Kind::Pong, answer) if answer == number => return packets,
            (kind, payload) => panic!("{kind:?} {payload:?}"),
        }
    }
}
