//! Records what crosses the links into a pcapng file (link type RAW: IP packets). Each peer is an
//! interface of the file with the peer's name, by which readers tell enclaves apart: they all use the
//! same addresses.
//!
//! A thread writes; the data loop only copies packets into a queue that is bounded in packets and
//! bytes. What the thread cannot keep up with is left out and counted: capturing never holds
//! traffic. When the disk takes no more, the capture ends with the last whole packet, and all that
//! comes later counts as left out.

use crate::limits::{CAPTURE_BYTES, CAPTURE_PEERS, CAPTURE_QUEUE};
use crate::listen::Peer;
use netd_proto::frame::{Decoder, Kind};
use netd_proto::offload::VnetHeader;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where data loops leave copies of packets.
#[derive(Clone, Debug)]
pub struct Tap {
    packets: SyncSender<Captured>,
    file: Arc<Progress>,
    /// Of the peer whose packets these are.
    interface: u32,
    outgoing: Arc<Mutex<Outgoing>>,
}

/// What all sessions and the writing thread know of the file.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes of packets that wait to be written.
    waiting: AtomicUsize,
    left_out: AtomicU64,
    ended: AtomicBool,
    /// Interfaces of the file, in the order of their numbers.
    peers: Mutex<Vec<Peer>>,
}

#[derive(Debug)]
struct Captured {
    at: SystemTime,
    interface: u32,
    packet: Vec<u8>,
}

/// Cuts the packets out of what was written to the link.
#[derive(Debug, Default)]
struct Outgoing {
    decoder: Decoder,
    /// Where frames begin is not known any more.
    astray: bool,
}

// Types of pcapng's blocks, and options.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const IF_NAME: u16 = 2;

/// By this a reader knows the writer's byte order.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// `LINKTYPE_RAW`: packets begin with an IPv4 or IPv6 header.
const LINKTYPE_RAW: u16 = 101;

/// Bytes written at once.
const BATCH: usize = 256 * 1024;

/// Long enough for any super-segment.
const SNAPLEN: u32 = 262_144;

impl Tap {
    /// Begins the file, which is empty, and starts its writer.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn start(mut file: File) -> io::Result<Tap> {
        let mut header = Vec::new();
        block(&mut header, SECTION_HEADER, |body| {
            body.extend(BYTE_ORDER.to_ne_bytes());
            body.extend([1_u16.to_ne_bytes(), 0_u16.to_ne_bytes()].concat());
            // The section's length is not known.
            body.extend((-1_i64).to_ne_bytes());
        });
        file.write_all(&header)?;
        let whole = header.len() as u64;
        let (packets, queue) = sync_channel(CAPTURE_QUEUE);
        let progress = Arc::new(Progress::default());
        let ours = Arc::clone(&progress);
        std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || write(&file, whole, &queue, &ours))?;
        Ok(Tap {
            packets,
            file: progress,
            interface: 0,
            outgoing: Arc::default(),
        })
    }

    /// Packets that are not in the file, of all sessions.
    pub(crate) fn left_out(&self) -> u64 {
        self.file.left_out.load(Ordering::Relaxed)
    }

    /// The same file, for a session of this peer: each link has a byte stream of its own.
    pub(crate) fn for_session(&self, peer: Peer) -> Tap {
        let mut peers = self
            .file
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = peers.iter().position(|other| *other == peer);
        let index = known.unwrap_or_else(|| {
            if peers.len() < CAPTURE_PEERS {
                peers.push(peer);
            }
            peers.len() - 1
        });
        Tap {
            interface: u32::try_from(index).unwrap_or(0),
            outgoing: Arc::default(),
            ..self.clone()
        }
    }

    /// A packet frame's payload from the enclave.
    pub(crate) fn packet(&self, frame: &[u8]) {
        let Some((_, packet)) = VnetHeader::split(frame) else {
            return;
        };
        let waiting = self.file.waiting.load(Ordering::Relaxed);
        if self.file.ended.load(Ordering::Relaxed) || waiting + packet.len() > CAPTURE_BYTES {
            return self.leave_out();
        }
        self.file.waiting.fetch_add(packet.len(), Ordering::Relaxed);
        let captured = Captured {
            at: SystemTime::now(),
            interface: self.interface,
            packet: packet.to_vec(),
        };
        if self.packets.try_send(captured).is_err() {
            self.file.waiting.fetch_sub(packet.len(), Ordering::Relaxed);
            self.leave_out();
        }
    }

    fn leave_out(&self) {
        let left_out = self.file.left_out.fetch_add(1, Ordering::Relaxed) + 1;
        if left_out.is_power_of_two() && !self.file.ended.load(Ordering::Relaxed) {
            tracing::warn!(
                left_out,
                "the capture does not keep up: packets are left out"
            );
        }
    }

    /// Bytes as they were written to the link.
    pub(crate) fn sent(&self, mut bytes: &[u8]) {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() && !outgoing.astray {
            let space = outgoing.decoder.space();
            let n = space.len().min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            outgoing.decoder.advance(n);
            bytes = &bytes[n..];
            loop {
                match outgoing.decoder.next() {
                    Ok(Some(frame)) if frame.kind == Kind::Packet => self.packet(frame.payload),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        outgoing.astray = true;
                        tracing::warn!(%error, "this is a bug: the capture shows no more packets to this enclave");
                        break;
                    }
                }
            }
        }
    }
}

/// Writes batches of whole packets; `whole` bytes are in the file already.
fn write(mut file: &File, mut whole: u64, queue: &Receiver<Captured>, progress: &Progress) {
    let mut batch = Vec::new();
    let mut described = 0;
    while let Ok(first) = queue.recv() {
        batch.clear();
        let mut packets = 0;
        for captured in std::iter::once(first).chain(queue.try_iter()) {
            let length = captured.packet.len();
            described = describe(&mut batch, described, &captured, progress);
            progress.waiting.fetch_sub(length, Ordering::Relaxed);
            append(&mut batch, &captured);
            packets += 1;
            if batch.len() >= BATCH {
                break;
            }
        }
        if let Err(error) = file.write_all(&batch) {
            progress.ended.store(true, Ordering::Relaxed);
            let rest: u64 = queue.try_iter().map(|_| 1).sum();
            progress
                .left_out
                .fetch_add(packets + rest, Ordering::Relaxed);
            // A file that cannot even be shortened ends amid a packet, which readers tell.
            let _ = file.set_len(whole);
            tracing::warn!(%error, "the capture ends here: its file takes no more");
            return;
        }
        whole += batch.len() as u64;
    }
}

/// Writes the interfaces up to a packet's, which have to stand before it. `described` are there.
fn describe(
    batch: &mut Vec<u8>,
    described: usize,
    captured: &Captured,
    progress: &Progress,
) -> usize {
    if (captured.interface as usize) < described {
        return described;
    }
    let peers = progress
        .peers
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    for peer in &peers[described..] {
        block(batch, INTERFACE_DESCRIPTION, |body| {
            body.extend([LINKTYPE_RAW.to_ne_bytes(), [0; 2]].concat());
            body.extend(SNAPLEN.to_ne_bytes());
            let name = peer.to_string();
            // A peer's name is short.
            let length = u16::try_from(name.len()).unwrap_or(0);
            body.extend([IF_NAME.to_ne_bytes(), length.to_ne_bytes()].concat());
            body.extend(name.into_bytes());
            pad(body);
            // No more options.
            body.extend([0; 4]);
        });
    }
    peers.len()
}

fn append(batch: &mut Vec<u8>, captured: &Captured) {
    // Before 1970 is a clock that was never set.
    let at = captured.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // 64 bits of microseconds last for 584,000 years.
    let at = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
    let length = u32::try_from(captured.packet.len()).unwrap_or(u32::MAX);
    block(batch, ENHANCED_PACKET, |body| {
        let half = |bits: u64| u32::try_from(bits).unwrap_or(u32::MAX);
        let (high, low) = (half(at >> 32), half(at & u64::from(u32::MAX)));
        for field in [captured.interface, high, low, length, length] {
            body.extend(field.to_ne_bytes());
        }
        body.extend(&captured.packet);
    });
}

/// Appends a block: its type and, before and behind the body, its length.
fn block(to: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend(kind.to_ne_bytes());
    to.extend([0; 4]);
    body(to);
    pad(to);
    let length = u32::try_from(to.len() - start + 4).unwrap_or(u32::MAX);
    to[start + 4..start + 8].copy_from_slice(&length.to_ne_bytes());
    to.extend(length.to_ne_bytes());
}

/// To the next boundary of 32 bits: all that is written is as long as a multiple of them.
fn pad(to: &mut Vec<u8>) {
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A virtio-net header and a packet of that length.
    fn frame(length: usize) -> Vec<u8> {
        vec![0x45; VnetHeader::LEN + length]
    }

    fn framed(length: usize) -> Vec<u8> {
        let payload = frame(length);
        let header = netd_proto::frame::header(Kind::Packet, payload.len());
        [&header[..], &payload].concat()
    }

    /// A tap whose writer has not begun.
    fn stuck() -> (Tap, Receiver<Captured>) {
        let (packets, queue) = sync_channel(CAPTURE_QUEUE);
        let tap = Tap {
            packets,
            file: Arc::default(),
            interface: 0,
            outgoing: Arc::default(),
        };
        (tap.for_session(Peer::Unix), queue)
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_the_rest_is_counted() {
        let (tap, queue) = stuck();
        let fitting = CAPTURE_BYTES / 65_000;
        (0..fitting + 3).for_each(|_| tap.packet(&frame(65_000)));
        assert_eq!(tap.left_out(), 3);
        assert_eq!(queue.try_iter().count(), fitting);
    }

    #[test]
    fn a_disk_that_is_full_ends_the_capture_after_a_whole_packet() {
        let (tap, queue) = stuck();
        (0..5).for_each(|_| tap.packet(&frame(100)));
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("Linux has it");
        write(&full, 24, &queue, &tap.file);
        tap.packet(&frame(100));
        assert_eq!(tap.left_out(), 6);
        assert_eq!(tap.file.waiting.load(Ordering::Relaxed), 0);
    }

    /// Type and body of each block.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |at: &[u8]| u32::from_ne_bytes(at[..4].try_into().expect("four bytes"));
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            let length = word(&bytes[4..]) as usize;
            let (block, rest) = bytes.split_at(length);
            assert_eq!(word(&block[length - 4..]) as usize, length);
            blocks.push((word(block), block[8..length - 4].to_vec()));
            bytes = rest;
        }
        blocks
    }

    #[test]
    fn each_peer_is_an_interface_that_stands_before_its_packets() {
        use netd_proto::address::Cid;
        let (packets, queue) = sync_channel(CAPTURE_QUEUE);
        let any = Tap {
            packets,
            file: Arc::default(),
            interface: 0,
            outgoing: Arc::default(),
        };
        let of = |cid| any.for_session(Peer::Enclave(Cid(cid)));
        // The third is another session of the first's.
        for (cid, length) in [(17, 61), (16, 62), (17, 63)] {
            of(cid).packet(&frame(length));
        }
        let progress = Arc::clone(&any.file);
        drop(any);
        let mut file = tempfile::tempfile().expect("made");
        write(&file, 0, &queue, &progress);

        let mut bytes = Vec::new();
        io::Seek::rewind(&mut file).expect("a file");
        io::Read::read_to_end(&mut file, &mut bytes).expect("readable");
        let seen: Vec<_> = blocks(&bytes)
            .into_iter()
            .map(|(kind, body)| match kind {
                INTERFACE_DESCRIPTION => {
                    assert_eq!((body[0], body[8], body[10]), (101, 2, 6));
                    String::from_utf8_lossy(&body[12..18]).into_owned()
                }
                ENHANCED_PACKET => format!("{} {}", body[0], body[12]),
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(seen, ["CID 17", "CID 16", "0 61", "1 62", "0 63"]);
    }

    #[test]
    fn frames_are_cut_out_of_any_pieces() {
        let (tap, queue) = stuck();
        let bytes = [framed(100), framed(60_000), framed(1)].concat();
        bytes.chunks(7).for_each(|piece| tap.sent(piece));
        let lengths: Vec<_> = queue
            .try_iter()
            .map(|captured| captured.packet.len())
            .collect();
        assert_eq!(lengths, [100, 60_000, 1]);
    }

    #[test]
    fn bytes_that_are_no_frames_end_the_look_at_that_direction_only() {
        let (tap, queue) = stuck();
        tap.sent(&[99; 2_000_000]);
        tap.sent(&framed(100));
        assert_eq!(queue.try_iter().count(), 0);
        tap.packet(&frame(100));
        assert_eq!(queue.try_iter().count(), 1);
    }
}
