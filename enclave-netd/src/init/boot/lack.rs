//! Something that is missing.

use std::fmt::Display;
use tracing::warn;

/// What is missing, why, and what follows from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lack {
    what: String,
    why: String,
    follows: &'static str,
}

impl Lack {
    pub(super) fn new(what: impl Into<String>, why: impl Display, follows: &'static str) -> Lack {
        Lack {
            what: what.into(),
            why: why.to_string(),
            follows,
        }
    }

    pub(super) fn tell(&self) {
        warn!(target: "enclave_netd::init::boot", why = self.why, "{}: {}", self.what, self.follows);
    }
}
