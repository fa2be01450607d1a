//! Records what crosses the link into a pcap file (link type RAW: IP packets).
//!
//! A thread writes; the data loop only copies packets into a queue that is bounded in packets and
//! bytes. What the thread cannot keep up with is left out and counted: capturing never holds
//! traffic. When the disk takes no more, the capture ends with the last whole packet, and all that
//! comes later counts as left out.

use crate::limits::{CAPTURE_BYTES, CAPTURE_QUEUE};
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
    outgoing: Arc<Mutex<Outgoing>>,
}

/// What all sessions and the writing thread know of the file.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes of packets that wait to be written.
    waiting: AtomicUsize,
    left_out: AtomicU64,
    ended: AtomicBool,
}

#[derive(Debug)]
struct Captured {
    at: SystemTime,
    packet: Vec<u8>,
}

/// Cuts the packets out of what was written to the link.
#[derive(Debug, Default)]
struct Outgoing {
    decoder: Decoder,
    /// Where frames begin is not known any more.
    astray: bool,
}

/// `LINKTYPE_RAW`: packets begin with an IPv4 or IPv6 header.
const LINKTYPE_RAW: u32 = 101;

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
        header.extend(0xa1b2_c3d4_u32.to_ne_bytes());
        header.extend([2_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat());
        header.extend([0; 8]);
        header.extend(SNAPLEN.to_ne_bytes());
        header.extend(LINKTYPE_RAW.to_ne_bytes());
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
            outgoing: Arc::default(),
        })
    }

    /// Packets that are not in the file, of all sessions.
    pub(crate) fn left_out(&self) -> u64 {
        self.file.left_out.load(Ordering::Relaxed)
    }

    /// The same file, for one session: each link has a byte stream of its own.
    pub(crate) fn for_session(&self) -> Tap {
        Tap {
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
    while let Ok(first) = queue.recv() {
        batch.clear();
        let mut packets = 0;
        for captured in std::iter::once(first).chain(queue.try_iter()) {
            let length = captured.packet.len();
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

fn append(batch: &mut Vec<u8>, captured: &Captured) {
    // Before 1970 is a clock that was never set.
    let at = captured.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // The format's seconds end in 2106.
    let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
    let length = u32::try_from(captured.packet.len()).unwrap_or(u32::MAX);
    for field in [seconds, at.subsec_micros(), length, length] {
        batch.extend(field.to_ne_bytes());
    }
    batch.extend(&captured.packet);
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
            outgoing: Arc::default(),
        };
        (tap, queue)
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
