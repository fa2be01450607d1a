//! An operator's questions about enclaves: their answers, and who asks.
//!
//! # Theory of operation
//! host-netd serves a unix socket on which each line is a JSON object: a request in, answers out
//! ([`protocol`], docs/admin.md). Only the user of host-netd and root are answered: the socket's mode
//! keeps others out, and the kernel's word on who is at the other end (SO_PEERCRED) where somebody has
//! changed the mode. `host-netd status`, `logs` and `wait` are clients of it ([`client`]).
//!
//! The server is a task of tokio's for each client and reads [`Records`](crate::record::Records). It
//! must not be a way to stop the daemon, so: there are [`ADMIN_CLIENTS`](crate::limits::ADMIN_CLIENTS)
//! at a time, requests have a length and a time to come in; one that does not read its answer waits in
//! its own task with one piece of a log in hand, while the log goes on without it; and figures are
//! asked of the sessions' threads with a time limit, after which older ones are told, and that they are.

pub mod client;
pub mod protocol;
mod server;
mod show;
mod status;
mod time;

pub use server::Admin;
