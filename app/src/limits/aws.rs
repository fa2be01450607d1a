//! Limits of every call to an AWS service, with their reasons.

use std::time::Duration;

/// How long one attempt of a call may take; the SDK makes up to three.
pub const ATTEMPT: Duration = Duration::from_secs(10);

/// How long a call may take with all its attempts.
pub const CALL: Duration = Duration::from_secs(30);
