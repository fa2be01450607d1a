//! Bounds of the link protocol. Both sides compile the same values in; none is negotiated.

use std::time::Duration;

/// Longest IP packet on the link: an IPv6 header (40 bytes) before the 65,535 bytes that its
/// payload length field can tell. IPv4 ends at 65,535.
pub const MAX_PACKET: usize = 65_575;

/// Longest payload of a packet frame: the virtio-net header and the packet.
pub const MAX_PACKET_FRAME: usize = crate::offload::VnetHeader::LEN + MAX_PACKET;

/// Longest payload of a control frame. A hello is 130 bytes and a goodbye carries one sentence.
pub const MAX_CONTROL_FRAME: usize = 512;

/// Longest text of a goodbye, in bytes of UTF-8: one log line.
pub const MAX_GOODBYE_TEXT: usize = 300;

/// Longest line of an enclave's log, in bytes: what a pipe passes on in one piece.
pub const MAX_LOG_LINE: usize = 4096;

/// Most datagrams of one super-datagram that are accepted: what Linux lets a program send at once
/// (`UDP_MAX_SEGMENTS`). It bounds the work that one packet can make.
pub const MAX_DATAGRAMS: usize = 128;

/// Datagrams gathered into one super-datagram: the same limit of kernels before 6.10, so that each
/// can send them on as they are.
pub const RUN_DATAGRAMS: usize = 64;

/// Bytes that may wait for the link before its sender stops producing more: enough for one batch
/// of super-segments, small enough that a request behind bulk data waits well under a millisecond.
pub const LINK_QUEUE: usize = 128 * 1024;

/// Bytes asked of the link in one read.
pub const LINK_READ: usize = 256 * 1024;

/// Longest single write on a vsock stream: above 32 KiB some kernels (6.17 and later) have been
/// reported to corrupt the stream, and some device models stop.
pub const VSOCK_WRITE: usize = 32_000;

/// Socket buffer of a vsock stream. A small buffer makes some kernels reset the stream when many
/// small packets are queued.
pub const VSOCK_BUFFER: u64 = 8 * 1024 * 1024;

/// Send buffer of a unix stream, as far as `net.core.wmem_max` allows: with the default of 208 KiB
/// the two sides wait for each other more often than they work.
pub const UNIX_BUFFER: usize = 256 * 1024;

/// How long each side waits for the other's part of the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence after which a side asks whether the other still lives.
pub const PING_AFTER: Duration = Duration::from_secs(5);

/// Silence after which a link counts as dead: three pings unanswered.
pub const LINK_DEAD_AFTER: Duration = Duration::from_secs(15);

/// Lanes a session may have. One connection carries everything; the field is there for later.
pub const MAX_LANES: u8 = 1;

// A frame's length is a 24-bit field.
const _: () = assert!(MAX_PACKET_FRAME < 1 << 24);
// A whole frame always fits behind what one read leaves over.
const _: () = assert!(LINK_READ > MAX_PACKET_FRAME);
