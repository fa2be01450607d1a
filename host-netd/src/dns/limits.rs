//! The bounds of the DNS service, each with its reason.

use std::time::Duration;

/// Queries being answered at the same time by a service that is not shared among sessions. A
/// resolver that is down holds a query for `timeout * attempts` (10 s by default), so this allows 50
/// new names a second in the worst case and thousands in the usual one. A further query is answered
/// SERVFAIL at once.
pub(super) const QUERIES_IN_FLIGHT: usize = 512;

/// Upstream sockets open at the same time, unless the limit of open files allows less: one a query,
/// and room for every query to have asked a second server. A further try waits for a socket within
/// its query's time.
pub(super) const UPSTREAM_SOCKETS: usize = 2 * QUERIES_IN_FLIGHT;

/// Longest query taken. A question is at most 259 bytes; the rest is room for EDNS options and
/// padding. Anything longer is FORMERR.
pub(super) const QUERY_BYTES: usize = 4_096;

/// The UDP size we advertise, upstream and to the enclave: fits an unfragmented packet on every
/// path (DNS flag day 2020).
pub(super) const ADVERTISED_UDP: u16 = 1_232;

/// A UDP answer to a query without EDNS (RFC 1035, 4.2.1).
pub(super) const PLAIN_UDP: usize = 512;

/// Largest UDP answer, if the query allows it: the link to the enclave is lossless and reassembles,
/// so the asked size is honoured up to what fits one IP datagram with room to spare.
pub(super) const LARGEST_UDP: usize = 65_000;

/// Answers kept: the names of a busy host. With the largest entry below, about 35 MiB at worst.
pub(super) const CACHE_ENTRIES: usize = 4_096;

/// Longest message kept. All but a few key sets and very large TXT sets fit; those are asked anew.
/// Its record table costs at most as much again.
pub(super) const CACHE_ENTRY_BYTES: usize = 4_096;

/// Longest time an answer is kept, whatever its TTL says: a wrong record with a TTL of weeks must
/// not outlive a day. RFC 8767, section 4, asks for such a cap, of a week at most.
pub(super) const CACHE_POSITIVE: Duration = Duration::from_secs(86_400);

/// Longest time the absence of a name is kept (RFC 2308, section 5: one to three hours).
pub(super) const CACHE_NEGATIVE: Duration = Duration::from_secs(3_600);

/// Name servers used from one resolv.conf, as in glibc (MAXNS).
pub(super) const NAME_SERVERS: usize = 3;

/// Search domains used: a missing plain name costs one query for each.
pub(super) const SEARCH_DOMAINS: usize = 16;

/// Upper bounds of the resolv.conf options, as in glibc (resolv.conf(5)).
pub(super) const NDOTS: usize = 15;
/// Longest `timeout` option.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// Most `attempts`.
pub(super) const ATTEMPTS: u32 = 5;

/// Longest resolv.conf read; a real one has a few hundred bytes.
pub(super) const RESOLV_CONF_BYTES: u64 = 64 * 1024;

/// How often resolv.conf is looked at: one `stat`.
pub(super) const RESOLV_CONF_POLL: Duration = Duration::from_secs(1);

/// A silent server is not waited for longer than this before the next one is asked as well. Stub
/// resolvers give up after 5 s, so a dead first server must cost much less.
pub(super) const NEXT_SERVER_AFTER: Duration = Duration::from_secs(1);

/// How long another server is asked first after it answered in place of the first one.
pub(super) const PREFER_SERVER: Duration = Duration::from_secs(30);

/// Queries in progress on one TCP connection; reading stops above it.
pub(super) const STREAM_PIPELINE: usize = 32;

/// Answers waiting to be written on one TCP connection before no further one is taken. Two of the
/// largest messages, so a connection holds at most this plus one message.
pub(super) const STREAM_OUTPUT: usize = 2 * 65_537;

/// A TCP connection on which nothing moves for this long is closed (RFC 7766, 6.2.3: a few
/// seconds).
pub(super) const STREAM_IDLE: Duration = Duration::from_secs(10);

/// Memory of one query at worst: its own bytes and at most three copies of a longest message
/// (received, parsed, answered).
pub(super) const QUERY_MEMORY: usize = QUERY_BYTES + 3 * 65_535;

/// Memory of the cache at worst: a kept answer has its bytes, its table of records, which is never
/// longer, and its key.
pub(super) const CACHE_MEMORY: usize = CACHE_ENTRIES * (2 * CACHE_ENTRY_BYTES + 512);
const _: () = assert!(QUERIES_IN_FLIGHT * QUERY_MEMORY + CACHE_MEMORY < 160 << 20);
