//! TCP sockets over pooled rings.
//!
//! A flow's two rings are 1 MiB of address space. Allocating and zeroing them for every
//! connection cut the rate of connections to a third in a trial, so they are anonymous mappings
//! (the kernel zeroes only the pages that are touched) that are kept for the next flow.

#![expect(
    unsafe_code,
    reason = "smoltcp borrows its buffers; the pool takes them back"
)]

use crate::limits::{POOLED_PAGES, POOLED_RINGS, RECEIVE_RING, SEND_RING, WARM_RINGS};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// Where the send ring begins.
const SEND_START: usize = RECEIVE_RING.next_power_of_two();

/// smoltcp 0.14 remembers the unscaled window of its SYN-ACK as if it were scaled, and would take
/// (and panic on) as much: no such window may be larger than the ring.
const _: () = {
    let shift = usize::BITS - RECEIVE_RING.leading_zeros() - 16;
    assert!((u16::MAX as usize) << shift <= RECEIVE_RING);
};

/// One anonymous mapping: a receive ring and a send ring.
#[derive(Debug)]
struct Rings {
    address: NonNull<nix::libc::c_void>,
}

const LENGTH: NonZeroUsize = NonZeroUsize::new(SEND_START + SEND_RING).expect("not zero");

// SAFETY: the mapping belongs to this value alone and is plain memory.
unsafe impl Send for Rings {}

impl Rings {
    fn map() -> nix::Result<Rings> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let address = unsafe { mmap_anonymous(None, LENGTH, protection, flags)? };
        let rings = Rings { address };
        // Where the kernel hands out huge pages unasked, an idle flow would cost one. A kernel
        // without huge pages does not know the advice.
        let _ = rings.advise(0, LENGTH.get(), MmapAdvise::MADV_NOHUGEPAGE);
        Ok(rings)
    }

    /// Gives the pages back to the kernel; they read as zero afterwards.
    fn release(&self) -> nix::Result<()> {
        self.advise(0, LENGTH.get(), MmapAdvise::MADV_DONTNEED)
    }

    fn release_receive(&self) -> nix::Result<()> {
        self.advise(0, SEND_START, MmapAdvise::MADV_DONTNEED)
    }

    fn release_send(&self) -> nix::Result<()> {
        self.advise(SEND_START, SEND_RING, MmapAdvise::MADV_DONTNEED)
    }

    fn advise(&self, start: usize, length: usize, advice: MmapAdvise) -> nix::Result<()> {
        assert!(start + length <= LENGTH.get());
        // SAFETY: inside the mapping, as just asserted, and plain anonymous memory of this value;
        // where a socket borrows it, what is in it is either kept or, with MADV_DONTNEED, not
        // looked at before it is written again.
        unsafe { madvise(self.address.byte_add(start), length, advice) }
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping with this length, and nothing borrows it: `FlowSocket`
        // drops its socket before its rings.
        let unmapped = unsafe { munmap(self.address, LENGTH.get()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// One smoltcp TCP socket in a set of its own, over pooled rings.
#[derive(Debug)]
pub(super) struct FlowSocket {
    // Dropped before the rings it borrows: fields are dropped in their order.
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    rings: Rings,
}

impl FlowSocket {
    fn new(rings: Rings) -> FlowSocket {
        let start = rings.address.cast::<u8>().as_ptr();
        // SAFETY: the mapping is LENGTH bytes of initialized (zero) memory; the two slices do not
        // overlap; `rings` outlives them because it stays in this value, is dropped after the
        // socket, and is handed back by `into_rings` only when the socket is gone. The 'static
        // lifetime does not leave this module: `socket` lends a reference only, and no caller
        // moves the socket out of it.
        let (receive, send) = unsafe {
            (
                std::slice::from_raw_parts_mut(start, RECEIVE_RING),
                std::slice::from_raw_parts_mut(start.add(SEND_START), SEND_RING),
            )
        };
        let socket = tcp::Socket::new(
            tcp::SocketBuffer::new(&mut receive[..]),
            tcp::SocketBuffer::new(&mut send[..]),
        );
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        FlowSocket {
            sockets,
            handle,
            rings,
        }
    }

    fn into_rings(self) -> Rings {
        let FlowSocket { sockets, rings, .. } = self;
        drop(sockets);
        rings
    }

    /// Gives the pages of the receive ring back to the kernel. Nothing may be in it.
    pub(super) fn release_receive(&mut self) {
        debug_assert_eq!(self.socket_ref().recv_queue(), 0);
        // Kept pages cost memory and nothing else.
        let _ = self.rings.release_receive();
    }

    /// Gives the pages of the send ring back to the kernel. Nothing may be in it.
    pub(super) fn release_send(&mut self) {
        debug_assert_eq!(self.socket_ref().send_queue(), 0);
        let _ = self.rings.release_send();
    }

    pub(super) fn set(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }

    pub(super) fn set_ref(&self) -> &SocketSet<'static> {
        &self.sockets
    }

    pub(super) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn socket_ref(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }
}

/// Rings of ended flows, for the next ones.
#[derive(Debug, Default)]
pub(super) struct RingPool {
    idle: Vec<Rings>,
}

impl RingPool {
    /// A closed socket; `None` when the kernel has no memory for it.
    pub(super) fn socket(&mut self) -> Option<FlowSocket> {
        let rings = match self.idle.pop() {
            Some(rings) => rings,
            None => Rings::map().ok()?,
        };
        Some(FlowSocket::new(rings))
    }

    /// Takes the rings of an ended flow back, of which `touched` bytes have pages.
    pub(super) fn recycle(&mut self, socket: FlowSocket, touched: usize) {
        let rings = socket.into_rings();
        if self.idle.len() < WARM_RINGS && touched <= POOLED_PAGES {
            self.idle.push(rings);
        } else if self.idle.len() < POOLED_RINGS {
            // Keep the mapping but not its pages.
            if rings.release().is_ok() {
                self.idle.insert(0, rings);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_used_again_and_bounded() {
        let mut pool = RingPool::default();
        let sockets: Vec<_> = (0..POOLED_RINGS + 10)
            .map(|_| pool.socket().expect("memory"))
            .collect();
        for socket in sockets {
            pool.recycle(socket, 0);
        }
        assert_eq!(pool.idle.len(), POOLED_RINGS);

        let top = pool.idle.last().expect("not empty").address;
        let socket = pool.socket().expect("memory");
        assert_eq!(socket.rings.address, top);
        assert_eq!(socket.socket_ref().recv_capacity(), RECEIVE_RING);
        assert_eq!(socket.socket_ref().send_capacity(), SEND_RING);
    }
}
