//! A simulated network around the engine: property tests against a reference model.
//!
//! # Theory of operation
//! A [`Schedule`] is a seed. From it follow an enclave, its link and its limits, a few connections
//! and some hundred events: a program connects, writes, reads, stops reading, ends its half, resets;
//! the link takes some bytes; a flow gets its turn; hours pass. Then comes a fair end, in which
//! everybody does what can be done.
//!
//! ```text
//!  program  ->  kernel (`tcp`)  ->  link  ->  Engine  <->  turns (`host`)  <->  kernel  <->  program
//!       \                                 \ `world` /                                     /
//!        \-------------------------- model (`ledger`) ----------------------------------/
//! ```
//!
//! The engine is host-netd's own. All else is written for this bed and independent of it: the
//! enclave's TCP is not smoltcp, and the data loop is a copy of the real one whose steps happen in
//! any order. The model is told what each program does and judges what each sees; it knows nothing
//! of what lies between them.
//!
//! There is one clock, which nothing reads from outside, and one generator of random numbers for
//! each event. So a schedule that fails once fails always, and with fewer events most often as
//! well ([`Schedule::shortened`]).

#![allow(
    clippy::cast_possible_truncation,
    reason = "sequence numbers and small sizes"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod datagrams;
mod host;
mod ledger;
mod path;
mod random;
mod schedule;
mod stream;
mod tcp;
mod transfer;
mod wire;
mod world;

pub use path::Conditions;
pub use random::Random;
pub use schedule::{Failure, Schedule};
pub use transfer::{Direction, FILE, direct, tunnelled};
