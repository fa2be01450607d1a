//! Bounds of this daemon, each with its reason. Those of the link are in [`netd_proto::limits`].

use std::time::Duration;

/// Packets that may wait between the kernel and the pump. The kernel's default of 500 drops UDP
/// and makes TCP back off when many flows start at once; 4,096 super-segments are one flow's
/// window many times over.
pub(crate) const QUEUE_LENGTH: u32 = 4096;

/// Longest queue a configuration may ask for: the kernel allocates a ring of that many pointers.
pub(crate) const MAX_QUEUE_LENGTH: u32 = 65_536;

/// Smallest MTU: IPv6 forbids less (RFC 8200, section 5).
pub(crate) const MIN_MTU: u16 = 1280;

/// Largest MTU: a packet and its headers must stay below 64 KiB.
pub(crate) const MAX_MTU: u16 = 65_520;

/// The MTU unless set. With segmentation offload a larger one is no faster, and it would lie to
/// programs about the path behind the parent.
pub(crate) const MTU: u16 = 1500;

/// Longest configuration file: a policy of thousands of rules fits.
pub(crate) const MAX_CONFIG: u64 = 1024 * 1024;

/// Longest resolv.conf that is taken into custody. Resolvers themselves read far less.
pub(crate) const MAX_RESOLV_CONF: u64 = 1024 * 1024;

/// Search domains in resolv.conf: what glibc before 2.26 and musl read.
pub(crate) const MAX_SEARCH: usize = 6;

/// First wait before the parent is tried again.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Longest wait before the parent is tried again: a new request has to work within two seconds
/// of the parent's return.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Wait after a refusal that trying again soon does not change (another version, not allowed).
pub(crate) const BACKOFF_REFUSED: Duration = Duration::from_secs(3);

/// How long one connect to the parent may take before it counts as failed. A vsock connect to a
/// context that is gone ends by itself after two seconds.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Packets read from the tun in one turn, so that the link's input is looked at in between.
pub(crate) const TUN_BUDGET: usize = 64;

/// Reads of the link in one turn: at most 512 KiB before the tun is looked at again.
pub(crate) const LINK_READ_BUDGET: usize = 2;

/// Bytes written to the link in one turn: twice what its queue holds, so that the queue filled in
/// one turn leaves in the same.
pub(crate) const LINK_WRITE_BUDGET: usize = 2 * netd_proto::limits::LINK_QUEUE;

/// How long inbound datagrams may follow the last one that left from a port: longer than the
/// host's own time-outs (30 s and 120 s), so that this check never ends a flow the host keeps.
pub(crate) const UDP_REPLY_WINDOW: Duration = Duration::from_secs(180);

/// Callers of published UDP ports that are remembered: 64 KiB per thousand, and an answer follows
/// its question by milliseconds.
pub(crate) const CALLER_SLOTS: usize = 4096;

/// Datagrams in parts whose first part was refused that are remembered: kernels send all parts of
/// one before the next of the same socket.
pub(crate) const REFUSED_DATAGRAMS: usize = 16;

/// DNS questions whose answers are waited for, where a rule names a host: four times what host-netd
/// answers at once, and at most 300 KiB of names.
pub(crate) const QUESTIONS: usize = 1024;

/// How long an address belongs to its name at least, for rules that name hosts: programs keep
/// addresses beyond their time to live, and a flow must not depend on the second.
pub(crate) const NAME_HOLDS_FOR: Duration = Duration::from_secs(600);

/// Wait between two sweeps over the sockets of a lost link. What a sweep provokes is answered
/// within a turn of the loop; a later sweep finds what was not provoked, such as a socket that
/// sent in the meantime.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(300);

/// Sweeps after a link was lost, so the work is bounded: 1.5 s in all.
pub(crate) const SWEEPS: u32 = 5;

/// Sockets reset in one sweep: the hard limit of open files is far below, and a sweep that stays
/// within is over in some milliseconds.
pub(crate) const SWEEP_SOCKETS: usize = 32_768;

/// Packets answered between the provocations of a sweep, so that the kernel's queue does not
/// overflow with the answers.
pub(crate) const DRAIN_EVERY: usize = 64;

/// How long the pump may take to say goodbye when the daemon ends.
pub(crate) const GOODBYE_TIMEOUT: Duration = Duration::from_millis(200);

/// Longest list of modules in an image, 64 bytes for each of [`MAX_MODULES`].
pub(crate) const MAX_MODULE_ORDER: u64 = 16 * 1024;

/// Modules that an image may bring: a Debian kernel needs ten.
pub(crate) const MAX_MODULES: usize = 256;

/// Random bytes that the kernel is seeded with. Pools are full with 512 bytes, those of kernels
/// since 5.18 with 32.
pub(crate) const SEED: usize = 512;

/// Requests to /dev/nsm for one seed, in case it gives little at a time. It gives 256 bytes.
pub(crate) const SEED_REQUESTS: usize = 16;

/// Longest answer of /dev/nsm, as its driver has it.
pub(crate) const NSM_RESPONSE: usize = 0x3000;

/// Longest line of text from /dev/nsm that goes into the log.
pub(crate) const NSM_COMPLAINT: usize = 64;

/// How long the parent may take to answer the heartbeat, and as long again to accept it.
/// `nitro-cli` answers within milliseconds.
pub(crate) const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the clock is looked at: a jump is told within ten seconds, and clocks that are off by
/// 20 ppm, as quartz is, drift by 0.2 ms between two looks.
pub(crate) const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

/// Attempts at reading all clocks in one moment; the fastest counts.
pub(crate) const CLOCK_ATTEMPTS: usize = 5;

/// Nearer to the hypervisor's clock than this nothing is done: reading both takes some microseconds.
pub(crate) const CLOCK_DEAD_BAND: Duration = Duration::from_micros(200);

/// Further off than this the clock is set before any program runs, which nobody sees. Below, it
/// is right within 20 s.
pub(crate) const CLOCK_START_STEP: Duration = Duration::from_millis(10);

/// Further off than this the clock is set later on. The kernel slews 0.5 ms a second, so that this
/// takes 17 minutes; further off, signed requests and one-time codes begin to fail.
pub(crate) const CLOCK_STEP: Duration = Duration::from_millis(500);

/// Difference between two clocks of one kernel that is taken for noise.
pub(crate) const CLOCK_NOISE: Duration = Duration::from_millis(1);

/// Difference between the hypervisor's clock and the kernel's own count that is taken for noise.
pub(crate) const SOURCE_NOISE: Duration = Duration::from_millis(10);

/// How much faster or slower than the hypervisor's clock the kernel's own count may be, in millionths:
/// twenty times what quartz is off, and what a host disciplines its own clock by at most.
pub(crate) const SOURCE_DRIFT_PPM: i64 = 500;

/// Time over which small jumps of the hypervisor's clock are added up, so that not many of them
/// pass below [`SOURCE_NOISE`] each.
pub(crate) const SOURCE_WATCH: Duration = Duration::from_secs(3600);

/// A look at the clock that comes later than this means that the enclave stood still. Busy
/// machines keep a thread waiting for less.
pub(crate) const CLOCK_LATE: Duration = Duration::from_secs(5);

/// The hypervisor's clock is not followed to a time before this, 2024-01-01 in seconds of Unix: it
/// is not set.
pub(crate) const CLOCK_EPOCH: i64 = 1_704_067_200;

/// How long processes may take to end at SIGTERM before the enclave ends: less than what operators
/// and `nitro-cli terminate-enclave` wait.
pub(crate) const END_GRACE: Duration = Duration::from_secs(5);

/// How long killed processes may take to be gone, and file systems to be written.
pub(crate) const END_FORCED: Duration = Duration::from_secs(2);

/// How often the end looks whether processes are gone.
pub(crate) const END_LOOK: Duration = Duration::from_millis(5);

/// Bytes of log lines that are kept for a parent that comes later: some thousand lines of ordinary
/// length, a sixtieth of what this daemon may use in all.
pub(crate) const RING_BYTES: usize = 256 * 1024;

/// What a kept line costs beside its text.
pub(crate) const RING_LINE: usize = 48;

/// Log lines that are kept: where they are short, the bound on bytes would allow five thousand.
pub(crate) const RING_LINES: usize = 4096;

/// How long a line of the program may wait for its end: a prompt is seen, and a line that is
/// written in parts stays one.
pub(crate) const PARTIAL_LINE: Duration = Duration::from_millis(200);

/// Bytes read from a pipe of the program in one turn: what a pipe holds.
pub(crate) const PIPE_READ: usize = 64 * 1024;

/// Bytes of log lines a second that are sent to the parent for long: a fraction of any link, and
/// more than anybody reads. What a program writes beyond is a gap in the numbers.
pub(crate) const FEED_RATE: usize = 4 * 1024 * 1024;

/// Bytes of log lines sent to the parent at once: the whole ring after a new link.
pub(crate) const FEED_BURST: usize = RING_BYTES + RING_LINES * 16;

/// Bytes of log lines queued for the link in one turn: an eighth of what the queue holds, so that
/// lines neither displace packets nor wait for ever behind them.
pub(crate) const FEED_BUDGET: usize = netd_proto::limits::LINK_QUEUE / 8;

/// Messages taken from the carrier in one turn: it has a few to send in its life.
pub(crate) const CARRIER_MESSAGES: usize = 16;

/// Bytes of configuration in one message to the carrier: several fit a socket's buffer.
pub(crate) const CONFIG_PART: usize = 32 * 1024;

/// Orders that may wait for the carrier to read them: the longest configuration, and as many words
/// again.
#[expect(clippy::cast_possible_truncation, reason = "a mebibyte")]
pub(crate) const CARRIER_ORDERS: usize = 2 * (MAX_CONFIG as usize / CONFIG_PART);

/// Own log lines that may wait for the main thread, which takes them every turn.
pub(crate) const OWN_LINES: usize = 512;

/// First wait before a carrier that died is started again.
pub(crate) const CARRIER_BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Longest wait before a carrier is started again: what ends it each time is not mended by haste,
/// and what ended it for a while is over within seconds.
pub(crate) const CARRIER_BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A carrier that lived this long had no trouble at its start: the next one is started at once.
pub(crate) const CARRIER_STEADY: Duration = Duration::from_secs(60);

/// The user that a carrier runs as. Nobody else's: beyond what distributions give to people and
/// services (60,000), below what containers map to (65,536 and up), and not one of the numbers with
/// a meaning there (65,533 to 65,535).
pub(crate) const CARRIER_USER: u32 = 64_733;

/// Threads of the carrier's user: one has four, and several run where namespaces stand for enclaves.
pub(crate) const CARRIER_THREADS: u64 = 64;

/// Open files of a carrier: it has about twelve.
pub(crate) const CARRIER_FILES: u64 = 64;

/// Memory a carrier may write to: four times what it uses with its stacks.
pub(crate) const CARRIER_MEMORY: u64 = 64 * 1024 * 1024;

/// How long the program may take to end once it was asked to: what container runtimes give.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(10);

/// How long lines that the program left in its pipes are waited for: they are there at once, unless
/// a process that it left behind goes on writing.
pub(crate) const DRAIN_TIME: Duration = Duration::from_secs(1);

/// How long the parent may take to learn how the program ended: enough for a link that is being made
/// again.
pub(crate) const TELL_TIME: Duration = Duration::from_secs(5);
