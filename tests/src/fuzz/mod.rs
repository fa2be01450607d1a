//! What the fuzz targets check, as plain functions: libFuzzer calls them with inputs it makes up
//! (`tests/fuzz`), the test `corpus` with the inputs that are kept. Each panics on a defect.
//!
//! The targets with a state (`engine`, `guard`) read their input as a list of operations: an
//! [`Input`] gives the bytes that choose, and [`craft`] makes packets of them that get past
//! lengths and checksums, unless the input wants them wrong.

mod config;
pub mod craft;
mod dns;
mod engine;
mod guard;
mod input;
mod proto;
mod shape;

pub use config::config;
pub use dns::dns;
pub use engine::engine;
pub use guard::guard;
pub use input::Input;
pub use proto::{frame, handshake, own_hello, packet, policy};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target with the name of its corpus.
pub const TARGETS: [(&str, Target); 8] = [
    ("config", config),
    ("dns", dns),
    ("engine", engine),
    ("frame", frame),
    ("guard", guard),
    ("handshake", handshake),
    ("packet", packet),
    ("policy", policy),
];
