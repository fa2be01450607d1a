//! The protocol between `enclave-netd` and `host-netd`.
//!
//! This crate is pure: no sockets, no clock, no threads, no `unsafe`. Both daemons use it so that
//! there is one definition of every byte on the link and one check of every packet:
//!
//! * [`frame`]: how packets and control messages are cut out of the link's byte stream.
//! * [`handshake`]: who speaks which version and which features.
//! * [`control`]: ping, pong and goodbye.
//! * [`report`]: lines of an enclave's log, and how its program ended.
//! * [`packet`]: an IP packet, validated once, and the key of its flow.
//! * [`offload`]: the virtio-net header that travels before every packet.
//! * [`run`]: many UDP datagrams in one packet.
//! * [`build`]: ICMP errors, echo replies, UDP datagrams and TCP resets.
//! * [`policy`]: the rules that say which destinations may be reached.
//! * [`address`]: where a link listens or connects.
//! * [`limits`]: every bound, with its reason.

#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

pub mod address;
pub mod build;
pub mod control;
pub mod frame;
pub mod handshake;
pub mod limits;
pub mod offload;
pub mod packet;
pub mod policy;
pub mod report;
pub mod run;
