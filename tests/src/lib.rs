//! The bed on which both daemons are tested: real kernels on both ends, real servers and clients.
//!
//! # Theory of operation
//! A [`Lab`] is three [`Machine`]s, each a network and a mount namespace of its own:
//!
//! ```text
//!  enclave            parent                    internet
//!  only a loopback    192.0.2.1    ==veth==     192.0.2.2, .3 (servers), .53 (DNS)
//!                     2001:db8:1::1             2001:db8:1::2, ::3, ::53
//!      enclave-netd <=unix socket=> host-netd (as nobody)
//! ```
//!
//! Namespaces have no names. The test's process and what runs inside hold them, so the kernel
//! removes them with the last of these. Whatever a machine starts dies with the thread that started
//! it (`PR_SET_PDEATHSIG`), carries the lab's name in its environment, and is found by that name if
//! it outlives its test anyway: when the lab is dropped, and when a later lab is made.
//!
//! Nothing here sleeps to let something happen: [`until`] looks for it, up to a deadline.
//! Everything panics when the bed itself cannot be made, with what to do about it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod aws;
mod census;
mod dns;
pub mod fuzz;
mod image;
mod kms;
mod lab;
mod machine;
pub mod packets;
mod parent;
mod process;
mod rogue;
mod servers;
mod streams;
mod tap;
mod wait;

pub use aws::{Aws, Client};
pub use census::Census;
pub use dns::{Answer, FakeDns};
pub use image::Image;
pub use kms::{KmsBed, base64};
pub use lab::{Daemons, Family, Lab, address};
pub use machine::Machine;
pub use parent::{FakeHost, Told};
pub use process::{Done, Process};
pub use rogue::{Packets, Rogue, dns_query, flag, frame, framed, log_frame};
pub use servers::{Nginx, Server};
pub use streams::{Pattern, connect, echo_compared, echo_server, serve, works_again};
pub use tap::{Direction, Tap};
pub use wait::{Deadline, repeats, until};
