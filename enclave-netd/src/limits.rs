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
