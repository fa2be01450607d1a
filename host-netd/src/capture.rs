//! Records what crosses the link into a pcap file (link type RAW: IP packets).
//!
//! A thread writes; the data loop only copies packets into a bounded queue. What the thread
//! cannot keep up with, or the disk does not take, is left out and counted: capturing never holds
//! traffic.

use crate::limits::CAPTURE_QUEUE;
use netd_proto::frame::{Decoder, Kind};
use netd_proto::offload::VnetHeader;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where data loops leave copies of packets.
#[derive(Clone, Debug)]
pub struct Tap {
    packets: SyncSender<Captured>,
    outgoing: Arc<Mutex<Outgoing>>,
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
    lost: u64,
}

/// `LINKTYPE_RAW`: packets begin with an IPv4 or IPv6 header.
const LINKTYPE_RAW: u32 = 101;

/// Long enough for any super-segment.
const SNAPLEN: u32 = 262_144;

/// A capture file that nothing is written to yet.
#[derive(Debug)]
pub struct Recording(BufWriter<File>);

impl Recording {
    /// Creates the file.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path) -> io::Result<Recording> {
        let mut file = BufWriter::new(File::create(path)?);
        let mut header = Vec::new();
        header.extend(0xa1b2_c3d4_u32.to_ne_bytes());
        header.extend([2_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat());
        header.extend([0; 8]);
        header.extend(SNAPLEN.to_ne_bytes());
        header.extend(LINKTYPE_RAW.to_ne_bytes());
        file.write_all(&header)?;
        file.flush()?;
        Ok(Recording(file))
    }

    /// Starts the thread that writes.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(self) -> io::Result<Tap> {
        let (packets, queue) = sync_channel(CAPTURE_QUEUE);
        std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || write(self.0, &queue))?;
        Ok(Tap {
            packets,
            outgoing: Arc::default(),
        })
    }
}

impl Tap {
    /// The same file, for one session: each link has a byte stream of its own.
    pub(crate) fn for_session(&self) -> Tap {
        let packets = self.packets.clone();
        Tap {
            packets,
            outgoing: Arc::default(),
        }
    }

    /// A packet frame's payload from the enclave.
    pub(crate) fn packet(&self, frame: &[u8]) {
        let Some((_, packet)) = VnetHeader::split(frame) else {
            return;
        };
        let captured = Captured {
            at: SystemTime::now(),
            packet: packet.to_vec(),
        };
        if let Err(TrySendError::Full(_)) = self.packets.try_send(captured) {
            let lost = &mut self
                .outgoing
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .lost;
            *lost += 1;
            if lost.is_power_of_two() {
                tracing::warn!(
                    lost = *lost,
                    "the capture does not keep up: packets are left out"
                );
            }
        }
    }

    /// Bytes as they were written to the link.
    pub(crate) fn sent(&self, mut bytes: &[u8]) {
        let mut packets = Vec::new();
        {
            let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
            while !bytes.is_empty() {
                let space = outgoing.decoder.space();
                let n = space.len().min(bytes.len());
                space[..n].copy_from_slice(&bytes[..n]);
                outgoing.decoder.advance(n);
                bytes = &bytes[n..];
                while let Ok(Some(frame)) = outgoing.decoder.next() {
                    if frame.kind == Kind::Packet {
                        packets.push(frame.payload.to_vec());
                    }
                }
            }
        }
        packets.iter().for_each(|frame| self.packet(frame));
    }
}

fn write(mut file: BufWriter<File>, queue: &Receiver<Captured>) {
    while let Ok(first) = queue.recv() {
        let batch = std::iter::once(first).chain(queue.try_iter());
        let mut written = Ok(());
        for captured in batch {
            written = written.and_then(|()| write_packet(&mut file, &captured));
        }
        if let Err(error) = written.and_then(|()| file.flush()) {
            tracing::warn!(%error, "the capture ends here: its file takes no more");
            return;
        }
    }
}

fn write_packet(file: &mut impl Write, captured: &Captured) -> io::Result<()> {
    let at = captured.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // The format's seconds end in 2106.
    let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
    let length = u32::try_from(captured.packet.len()).unwrap_or(u32::MAX);
    for field in [seconds, at.subsec_micros(), length, length] {
        file.write_all(&field.to_ne_bytes())?;
    }
    file.write_all(&captured.packet)
}
