//! How a kernel of the enclave and its program are.

use crate::random::Random;

/// How this kernel and its program are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    pub(crate) mss: u16,
    pub(crate) scale: Option<u8>,
    pub(crate) receive_buffer: u64,
    pub(crate) send_buffer: u64,
    /// Payload of its longest segment; more than `mss` only with segmentation offload.
    pub(crate) longest: usize,
    pub(crate) offload_checksum: bool,
    pub(crate) delays_acks: bool,
    pub(crate) keeps_alive: bool,
    /// A FIN waits for room in the window.
    pub(crate) fin_needs_window: bool,
}

impl Habits {
    pub(crate) fn new(
        random: &mut Random,
        mtu: u16,
        ipv6: bool,
        checksum: bool,
        tso: bool,
    ) -> Self {
        let most = mtu - if ipv6 { 60 } else { 40 };
        let mss = if random.percent(70) {
            most
        } else {
            random.within(536..=usize::from(most)) as u16
        };
        let receive_buffer = random.magnitude(2 * usize::from(mss)..=2_000_000) as u64;
        // The largest window that 16 bits and the scale can tell is at most the buffer.
        let scale = (0..=14).find(|scale| receive_buffer >> scale <= 65_535);
        Habits {
            mss,
            scale: scale.filter(|_| !random.percent(10)),
            receive_buffer,
            send_buffer: random.magnitude(2000..=2_000_000) as u64,
            longest: if tso && random.percent(80) {
                random.magnitude(usize::from(mss)..=64_000.max(usize::from(mss)))
            } else {
                usize::from(mss)
            },
            offload_checksum: checksum && random.percent(90),
            delays_acks: random.percent(50),
            keeps_alive: random.percent(30),
            fin_needs_window: random.percent(50),
        }
    }
}

impl Habits {
    /// As Linux is over a tun device of 1500 bytes, with a program that does nothing but read or
    /// write.
    pub(crate) fn linux() -> Habits {
        Habits {
            mss: 1460,
            scale: Some(7),
            receive_buffer: 6 << 20,
            send_buffer: 4 << 20,
            longest: 44 * 1460,
            offload_checksum: true,
            delays_acks: true,
            keeps_alive: false,
            fin_needs_window: true,
        }
    }
}
