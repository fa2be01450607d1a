//! The enclave's end of the enclave network.
//!
//! `enclave-netd` gives programs in an enclave a network interface, `netd0`, whose packets travel
//! over one vsock connection to `host-netd` on the parent. It sets addresses, routes and the
//! resolver up, connects, runs a command, and ends with the command's status.
//!
//! The order of things: `config` is read; `tun` and `network` make the interface;
//! `resolv_conf` points programs at the gateway's resolver; `privileges` are given up; then
//! two threads start, `link` connecting to the parent and `pump` moving packets, each checked
//! by the `guard`; the main thread becomes the `supervisor` of the command. At the end the
//! resolver is put back, and the interface goes with the process.

mod config;
mod daemon;
mod datapath;
mod dns;
mod drops;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod init;
mod limits;
mod link;
mod memory;
mod network;
mod offline;
mod outbound;
mod ports;
mod privileges;
mod pump;
mod resolv_conf;
mod socket;
mod spawn;
mod supervisor;
mod sweep;
mod tun;

pub use daemon::main;
