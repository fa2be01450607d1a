//! Limits of `crypto`, with their reasons.

use std::time::Duration;

/// The longest message. KMS takes 4,096 bytes of plaintext and 6,144 of ciphertext; in base64 and
/// with all its escapes that is less than half of this.
pub const MESSAGE: usize = 64 * 1024;

/// Connections at once. A parent's program needs a few; each holds at most two messages: 32 MiB.
pub const CONNECTIONS: usize = 256;

/// The longest request identifier: a UUID has 36 characters.
pub const REQUEST_ID: usize = 256;

/// How long a connection may be quiet between two requests.
pub const IDLE: Duration = Duration::from_secs(600);

/// How long a message may take, from its first byte to its last, either way.
pub const MESSAGE_TIME: Duration = Duration::from_secs(30);

/// Bytes of one write. Larger ones are reported to be corrupted by some kernels on vsock.
pub const WRITE: usize = 32_000;

/// How much of an oversized message is read and forgotten, so that its sender is not reset before
/// it reads why it is refused; and how long that may take.
pub const LINGER: u64 = 16 * 1024 * 1024;
/// See [`LINGER`].
pub const LINGER_TIME: Duration = Duration::from_secs(5);

/// How long an answer about the health of KMS and the security module stands: a parent that asks
/// all the time costs them nothing.
pub const HEALTH: Duration = Duration::from_secs(10);
