//! Every bound of host-netd, with its reason.

use std::time::Duration;

/// Ring for bytes from the enclave that the host's socket has not taken yet; also the largest
/// window the enclave sees. With 256 KiB, one read of the link could hold the whole window, and
/// enclave and host took turns instead of working at the same time: a stream had two thirds of the
/// throughput. 1 MiB gains nothing more.
///
/// One byte less than 512 KiB, so that even the window of the SYN-ACK, which smoltcp takes for a
/// scaled one, lies inside it: `engine::rings` asserts it.
pub const RECEIVE_RING: usize = 512 * 1024 - 1;

/// Ring for bytes from the host's socket that the enclave has not acknowledged yet.
pub const SEND_RING: usize = 512 * 1024;

/// Memory of all rings of all enclaves, in MiB, unless set: five hundred flows that fill theirs.
pub const RING_MEMORY_MIB: usize = 512;

/// Ring memory that an engine takes from the budget at a time: seldom enough that sessions do not
/// meet at the counter, little enough that what is taken and not used does not matter.
pub const RING_MEMORY_STEP: usize = 1024 * 1024;

/// Least ring memory that can be set, in MiB: a few bulk flows beside many small ones.
pub const MIN_RING_MEMORY_MIB: usize = 16;

/// Most ring memory that can be set, in MiB: more than `MAX_FLOWS` full rings.
pub const MAX_RING_MEMORY_MIB: usize = 16 * 1024;

/// Idle time after which a flow's rings are given back to the kernel.
pub const RING_IDLE: Duration = Duration::from_secs(10);

/// Window of a flow that is not a bulk flow: enough for several Gbit/s within a machine, little
/// enough that each of `MAX_FLOWS` may have it.
pub const FIRST_WINDOW: usize = 64 * 1024;

/// Window of a flow, and bytes that wait for the enclave, while ring memory is short.
pub const SHORT_WINDOW: usize = 16 * 1024;

/// Bytes of all bulk flows of an enclave that may be on their way in one direction: at 10 Gbit/s a
/// request behind them waits 0.4 ms.
pub const BULK_WINDOWS: usize = 512 * 1024;

/// Least share of a bulk flow: with less, kernels make shorter super-segments.
pub const BULK_WINDOW: usize = 128 * 1024;

/// A flow that moves this much in a [`BULK_INTERVAL`] is a bulk flow: 50 Mbit/s.
pub const BULK_BYTES: usize = 64 * 1024;

/// See [`BULK_BYTES`]; in microseconds.
pub const BULK_INTERVAL: u64 = 10_000;

/// Bytes one TCP flow may send to the link before others have their turn: two super-segments.
/// More makes a request wait longer beside bulk flows.
pub const QUANTUM: usize = 128 * 1024;

/// Bytes queued for the link at which it is written, without waiting for the end of the round.
pub const LINK_BATCH: usize = 64 * 1024;

/// Datagrams one UDP or echo flow may deliver before others have their turn.
pub const DATAGRAM_QUANTUM: usize = 32;

/// Errors taken from one socket's error queue in one turn, so that a storm of ICMP errors does
/// not hold the loop.
pub const ERROR_QUANTUM: usize = 16;

/// Packets from the enclave that are looked at before flows have their turns. Bulk data never comes
/// near it (a read of the link is four super-segments or two hundred plain ones); a flood of small
/// packets, each with its system call, would hold the loop for tens of milliseconds.
pub const PACKETS: usize = 256;

/// Of these, those that begin something: a socket, a connect, a look-up. Each costs 10 to 20 us.
pub const BEGINNINGS: usize = 32;

/// Turns of flows that were put back once, and deadlines that are met, before new events are looked
/// at.
pub const ROUND: usize = 64;

/// How many times as much as one enclave may have, all together may have: one that takes all it can
/// get leaves as much to the others.
pub const OVERALL: usize = 2;

/// Enclaves on one host-netd unless set, among which guarantees are shared out: AWS runs at most
/// four on an instance.
pub const DEFAULT_ENCLAVES: usize = 4;

/// Most enclaves that can be set: nested instances and tests.
pub const MAX_ENCLAVES: usize = 16;

/// Flows of one enclave, all protocols together: a TCP flow can hold 1 MiB of rings, of which
/// only touched pages cost memory. The limit of open files may lower it.
pub const MAX_FLOWS: usize = 16_384;

/// Connects of one enclave that are not answered yet. A blackholed one lasts two minutes.
pub const MAX_DIALS: usize = 2048;

/// Connects of one enclave that are begun at once: as many as may wait for their answer.
pub const DIALS_AT_ONCE: u32 = 2048;

/// Connects of one enclave that are begun in a second, after [`DIALS_AT_ONCE`]: more than a core
/// can do beside the traffic that belongs to them. See `engine::pace`.
pub const DIALS_A_SECOND: u32 = 10_000;

/// The same to the gateway's DNS: a resolver asks by TCP only for what is too long for UDP.
pub const DNS_STREAMS_A_SECOND: u32 = 1000;

/// Of these, those to one address: a destination that swallows every connect leaves half of them
/// to the others.
pub const MAX_DIALS_PER_DESTINATION: usize = 1024;

/// UDP mappings and echo flows of one enclave: a spray over all ports leaves half of its flows to
/// TCP.
pub const MAX_UDP_MAPPINGS: usize = 8192;

/// DNS queries of one enclave that are not answered yet.
pub const MAX_DNS_QUERIES: usize = 256;

/// Clients of published ports that one enclave has not answered yet: as many as the kernel keeps
/// for a listener.
pub const MAX_HALF_OPEN: usize = 1024;

/// Connections of one enclave to the gateway's DNS over TCP: each may hold half a MiB of messages.
pub const MAX_DNS_STREAMS: usize = 64;

/// Packets of one enclave that are being put together from fragments: each holds up to 64 KiB.
pub const MAX_REASSEMBLIES: usize = 64;

/// How long the rest of a fragmented packet is waited for. Fragments cross a lossless link in
/// order; RFC 8200's 60 s are for the internet.
pub const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest SYN that is kept while the real connect runs: any that fits the enclave's MTU.
pub const MAX_SYN: usize = 1500;

/// Handshakes of one peer at a time; more connections of it are closed. An enclave needs one.
pub const MAX_HANDSHAKES: usize = 8;

/// Handshakes of all peers at a time: every enclave's, twice over.
pub const MAX_ALL_HANDSHAKES: usize = 2 * MAX_ENCLAVES;

/// How long a new link waits for the session it replaces to end.
pub const REPLACED_WITHIN: Duration = Duration::from_secs(2);

/// A warning that a limit was reached is written once in this time.
pub const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Messages from tokio to one data loop that wait: its senders wait when it is full.
pub const COMMANDS: usize = 1024;

/// Idle time of a UDP mapping that was never answered.
pub const UDP_IDLE: Duration = Duration::from_secs(30);

/// Idle time of a UDP mapping with traffic both ways (RFC 4787 REQ-5 allows 120 s and more).
pub const UDP_IDLE_ANSWERED: Duration = Duration::from_secs(120);

/// Idle time of an echo flow: no program waits longer for a reply.
pub const ECHO_IDLE: Duration = Duration::from_secs(30);

/// How long the enclave has to complete a TCP handshake over a lossless link.
pub const ENCLAVE_HANDSHAKE: Duration = Duration::from_secs(30);

/// How long the enclave may leave its window shut before it is told of a reset by the host's peer,
/// though not all that came before it was delivered: a program that only waits for errors is told.
pub const RESET_PATIENCE: Duration = Duration::from_secs(1);

/// The first pause after which a kernel repeats a SYN (RFC 6298, 2.1).
pub const SYN_PAUSE: Duration = Duration::from_secs(1);

/// How much longer than expected a repeated SYN is waited for: a busy machine. A connect that is
/// taken for given up too early begins anew with the next SYN.
pub const SYN_GRACE: Duration = Duration::from_secs(2);

/// How long a flow waits for an acknowledgement before it asks for it: long for a link within a
/// machine, short beside the second that smoltcp waits. See `engine::probe`.
pub const PROBE_AFTER: Duration = Duration::from_millis(20);

/// Longest wait before it asks again.
pub const PROBE_AGAIN: Duration = Duration::from_millis(160);

/// How often it asks an enclave that does not answer: ten seconds long.
pub const PROBES: u32 = 64;

/// How often an idle TCP flow asks the enclave's kernel whether it still knows it; a live kernel
/// answers, so no flow ends by being idle.
pub const ENCLAVE_KEEPALIVE: Duration = Duration::from_secs(600);

/// How long a name's addresses stay known to the policy after their TTL: programs keep addresses
/// longer than DNS says.
pub const LEARNT_GRACE: Duration = Duration::from_secs(600);

/// Lines of an enclave's log that are kept: some hours of a quiet service, what a shell scrolls back.
pub const LOG_LINES: usize = 4096;

/// The same in bytes of memory: all these lines, if they are of the usual length.
pub const LOG_BYTES: usize = 512 * 1024;

/// What a line costs besides its text: its fields, two blocks of memory, its place in the ring.
pub const LOG_LINE_COST: usize = 112;

/// Records of enclaves that are gone: yesterday's runs of as many enclaves as AWS permits, twice.
pub const PAST_RECORDS: usize = 8;

/// How long an enclave whose link broke may take to come back before its run counts as ended: it
/// tries again once a second at least.
pub const RETURN_WITHIN: Duration = Duration::from_secs(5);

/// Clients of the admin socket at a time: some followed logs, a monitor, and an operator or two.
pub const ADMIN_CLIENTS: usize = 16;

/// Longest request on the admin socket, in bytes: ten times what any needs.
pub const ADMIN_REQUEST: usize = 1024;

/// How long a client of the admin socket may take for a request; its place is for others then.
pub const ADMIN_IDLE: Duration = Duration::from_secs(10);

/// How long a client of the admin socket may leave an answer unread: a pager that is looked at.
pub const ADMIN_STALLED: Duration = Duration::from_secs(600);

/// Bytes of a log that are sent to a client in one piece.
pub const ADMIN_BATCH: usize = 64 * 1024;

/// Pause between such pieces: what lines an enclave writes without end must not keep the thread
/// busy that also looks names up. 6 MiB a second are more than anybody reads.
pub const ADMIN_PAUSE: Duration = Duration::from_millis(10);

/// How long a question for figures waits for the threads of the sessions: a busy one has answered
/// within a few milliseconds.
pub const STATUS_WITHIN: Duration = Duration::from_millis(500);

/// Bytes of an enclave's last line that `status` shows.
pub const STATUS_TEXT: usize = 240;

/// Memory of a record: its log, and the rest.
pub const RECORD_MEMORY: usize = LOG_BYTES + 16 * 1024;

/// Memory of a client of the admin socket: a record that it reads though it was let go of; a piece
/// of the log as text and as JSON, where no byte takes more than two (a line more fits as well).
pub const ADMIN_CLIENT_MEMORY: usize = RECORD_MEMORY + 4 * ADMIN_BATCH;

/// Open files left to everything but flows, sessions, published ports and DNS: runtime, logs,
/// handshakes, the admin socket.
pub const RESERVED_FILES: usize = 32 + MAX_ALL_HANDSHAKES + ADMIN_CLIENTS;

/// Open files of a session besides its flows: link, wake-up, and epoll twice.
pub const SESSION_FILES: usize = 4;

/// The part of the files that DNS may have for its queries to name servers, as a divisor.
pub const DNS_FILES: usize = 8;

/// Memory of a flow besides its rings: its smoltcp stack (2 KiB), its places in the tables, or
/// the SYN of one that is being dialed.
pub const FLOW_MEMORY: usize = 4096;

/// Memory of a session besides its flows: buffers of the link, [`MAX_REASSEMBLIES`] packets,
/// [`MAX_DNS_QUERIES`] answers that wait, [`MAX_DNS_STREAMS`] connections, what is kept of idle
/// rings.
pub const SESSION_MEMORY: usize = (2 + 5 + 17 + 33 + 5) * 1024 * 1024;

/// Memory of the process besides all this: program, runtime, handshakes, capture queue.
pub const PROCESS_MEMORY: usize = 48 * 1024 * 1024;

/// Packets waiting to be written to a capture file; beyond it they are left out and counted.
pub const CAPTURE_QUEUE: usize = 4096;

/// Enclaves that a capture file tells apart; the last name stands for all that come later. A CID is
/// given out by the parent's operator, who starts fewer.
pub const CAPTURE_PEERS: usize = 1024;

/// Bytes of packets waiting to be written to a capture file, for the same: a disk may stand still for
/// half a second at 500 Mbit/s.
pub const CAPTURE_BYTES: usize = 32 * 1024 * 1024;

// The largest window must fit the enclave's idea of it: 16 bits and a shift of at most 14.
const _: () = assert!(RECEIVE_RING <= 1 << 30);

/// Idle rings kept for the next flows of a session; more are given back to the kernel.
pub const POOLED_RINGS: usize = 256;

/// Of these, those that keep their pages, if they have touched no more than [`POOLED_PAGES`].
pub const WARM_RINGS: usize = 64;

/// See [`WARM_RINGS`]: what a small request and its answer need.
pub const POOLED_PAGES: usize = 64 * 1024;
