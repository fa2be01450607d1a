//! Attestation documents: reading them strictly, and verifying them offline.

mod command;
mod document;
mod root;
mod verify;

pub use command::{Command, run};
pub use document::{Document, Error as DocumentError, Unverified};
pub use root::{AWS_FINGERPRINT, Root};
pub use verify::{Error, Expected, Link, Verified, verify};
