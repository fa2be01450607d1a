//! A secure module for tests, and the authority that vouches for it.
//!
//! An [`Authority`] is a chain as AWS makes it, under a root of its own; it signs any payload, right
//! or wrong. An [`Attester`] is a secure module over it, with PCRs that extend and lock. The binary
//! `attested-app` is enclave-app with such a module in place of `/dev/nsm`: the shipped program has
//! no way to get one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod attester;
mod authority;

pub use attester::{Attester, PCR};
pub use authority::{Authority, Shape, encoded, payload};
