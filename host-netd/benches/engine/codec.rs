//! netd-proto alone: frames out of the link's stream and into its queue, packets checked.

use crate::Load;
use crate::packets::{MSS, Mark, SUPER_SEGMENT, Segment};
use netd_proto::frame::{Decoder, Kind, Queue, header};
use netd_proto::handshake::Features;
use netd_proto::limits::LINK_READ;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::Packet;
use std::hint::black_box;

/// Payload of a small segment.
const SMALL: usize = 64;

/// A read full of frames, cut into frames again and again.
struct Decode {
    decoder: Decoder,
    frames: usize,
    length: usize,
}

impl Load for Decode {
    fn run(&mut self, iterations: usize) {
        let mut left = iterations;
        while left > 0 {
            // An empty decoder begins at the start of its buffer, where the stream still is.
            self.decoder.space();
            self.decoder.advance(self.length);
            for _ in 0..self.frames {
                let frame = self.decoder.next().expect("own frames").expect("whole");
                black_box(frame.payload);
            }
            left = left.saturating_sub(self.frames);
        }
    }
}

pub(crate) fn decode_small(_: usize) -> Box<dyn Load> {
    decode(SMALL)
}

pub(crate) fn decode_super_segments(_: usize) -> Box<dyn Load> {
    decode(SUPER_SEGMENT)
}

fn decode(payload: usize) -> Box<dyn Load> {
    let segment = Segment::new(Mark::Ack, payload);
    let head = header(Kind::Packet, segment.frame().len());
    let frame = [&head, segment.frame()].concat();
    let frames = LINK_READ / frame.len();
    let stream = frame.repeat(frames);
    let mut decoder = Decoder::new();
    decoder.space()[..stream.len()].copy_from_slice(&stream);
    Box::new(Decode {
        decoder,
        frames,
        length: stream.len(),
    })
}

/// Packets that are queued, and sent whenever the queue is full. Their bytes are not written: that
/// is the work of whoever makes them.
struct Enqueue {
    queue: Queue,
    length: usize,
}

impl Load for Enqueue {
    fn run(&mut self, iterations: usize) {
        for _ in 0..iterations {
            let Some(space) = self.queue.packet_space() else {
                black_box(self.queue.pending());
                self.queue.consume(self.queue.len());
                continue;
            };
            black_box(&mut space[..self.length]);
            self.queue.commit_packet(self.length);
        }
    }
}

pub(crate) fn queue_small(_: usize) -> Box<dyn Load> {
    enqueue(SMALL)
}

pub(crate) fn queue_super_segments(_: usize) -> Box<dyn Load> {
    enqueue(SUPER_SEGMENT)
}

fn enqueue(payload: usize) -> Box<dyn Load> {
    let length = Segment::new(Mark::Ack, payload).frame().len();
    let queue = Queue::new();
    Box::new(Enqueue { queue, length })
}

/// A packet frame, checked again and again.
struct Parse(Vec<u8>);

impl Load for Parse {
    fn run(&mut self, iterations: usize) {
        for _ in 0..iterations {
            let (vnet, bytes) = VnetHeader::split(black_box(&self.0)).expect("long enough");
            let packet = Packet::parse(bytes).expect("valid");
            vnet.check(&packet, Features::ALL).expect("true");
            black_box(packet);
        }
    }
}

pub(crate) fn parse_small(_: usize) -> Box<dyn Load> {
    Box::new(Parse(Segment::new(Mark::Ack, SMALL).frame().to_vec()))
}

/// With the checksum that a sender without offload makes.
pub(crate) fn parse_full_checksum(_: usize) -> Box<dyn Load> {
    let mut frame = Segment::new(Mark::Ack, MSS).frame().to_vec();
    frame[..VnetHeader::LEN].copy_from_slice(&VnetHeader::NONE.encode());
    Box::new(Parse(frame))
}

pub(crate) fn parse_super_segment(_: usize) -> Box<dyn Load> {
    Box::new(Parse(
        Segment::new(Mark::Ack, SUPER_SEGMENT).frame().to_vec(),
    ))
}
