//! The enclave's end of the enclave network.
//!
//! `enclave-netd` gives programs in an enclave a network interface, `netd0`, whose packets travel
//! over one vsock connection to `host-netd` on the parent. It sets addresses, routes and the
//! resolver up, connects, runs a command, and ends with the command's status.
//!
//! With `enclave-netd init` it is the first process of an enclave: see `init`.
//!
//! The order of things otherwise: `config` is read; `interface` makes the tun, sets it up
//! with `network` and points programs at the gateway's resolver with `resolv_conf`; `privileges` are
//! given up; then two `threads` start, `link` connecting to the parent and `pump` moving packets, each
//! checked by the `guard`; the main thread becomes the `supervisor` of the command. At the end the
//! resolver is put back, and the interface goes with the process.

mod config;
mod daemon;
mod datapath;
mod dns;
mod drops;
mod feed;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod init;
mod interface;
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
mod threads;
mod tun;

pub use daemon::main;
