//! Limits of every server and client here, with their reasons.

use std::time::Duration;

/// Connections that a server holds at once. Each holds a buffer of [`HEADER_BYTES`] and a TLS
/// session: some 50 MiB at most. Further clients wait in the kernel's backlog.
pub const CONNECTIONS: usize = 1024;

/// Clients that the kernel keeps waiting; what Linux allows by default since 5.4.
pub const BACKLOG: u32 = 4096;

/// Bytes of a request's line and headers: what nginx and node allow.
pub const HEADER_BYTES: usize = 16 * 1024;

/// Headers of a request: the double of what browsers send with many cookies.
pub const HEADERS: usize = 100;

/// How long a client may take to send a request's headers, and to be idle between requests.
/// Otherwise a few clients that say nothing would hold every connection.
pub const HEADER_TIME: Duration = Duration::from_secs(30);

/// How long a client may take for its half of the TLS handshake.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Requests at once on one HTTP/2 connection.
pub const STREAMS: u32 = 100;

/// How often a quiet HTTP/2 client is asked whether it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How long requests that are under way may take once the service is asked to end. `docker stop`
/// kills after 10 s.
pub const GRACE: Duration = Duration::from_secs(8);

/// How long to wait before accepting again when there are no files or no memory for it: at once
/// would be a busy loop.
pub const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long one address of a server may take to accept a connection, when there are others to try.
pub const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long a client may take nothing of an answer that waits for it.
pub const STALL: Duration = Duration::from_secs(60);
