//! Frames: how packets and control messages travel in the link's byte stream.
//!
//! A frame is a four-byte header (one byte of kind, three of payload length, big-endian) and its
//! payload. The payload of a packet frame is a virtio-net header (10 bytes, little-endian, as the
//! tun device reads and writes it) and one IP packet, so a packet goes from the tun to the link
//! and back without being copied or rewritten.
//!
//! [`Decoder`] is the receiving side: it owns one linear buffer, the caller reads the link into
//! [`Decoder::space`], and each frame is handed out as a slice of that buffer. [`Queue`] is the
//! sending side: packets are built in place at its tail and the link is written from its head.
//! Neither allocates after it is made.

use crate::build::MAX_ICMP_ERROR;
use crate::limits::{LINK_QUEUE, LINK_READ, MAX_CONTROL_FRAME, MAX_LOG_LINE, MAX_PACKET_FRAME};
use crate::offload::VnetHeader;
use crate::report::LOG_HEADER;

/// Length of a frame's header.
pub const HEADER: usize = 4;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A virtio-net header and an IP packet.
    Packet = 1,
    /// "Are you there?" and a number to be sent back.
    Ping = 2,
    /// The number of a ping.
    Pong = 3,
    /// The sender closes the link, and why.
    Goodbye = 4,
    /// First frame of the side that connects.
    Hello = 5,
    /// Answer to a hello.
    Welcome = 6,
    /// A line of the enclave's log.
    Log = 7,
    /// How the enclave's program ended.
    Exit = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Packet,
            2 => Kind::Ping,
            3 => Kind::Pong,
            4 => Kind::Goodbye,
            5 => Kind::Hello,
            6 => Kind::Welcome,
            7 => Kind::Log,
            8 => Kind::Exit,
            _ => return None,
        })
    }

    /// Longest payload of this kind, in bytes.
    pub const fn max_payload(self) -> usize {
        match self {
            Kind::Packet => MAX_PACKET_FRAME,
            Kind::Log => LOG_HEADER + MAX_LOG_LINE,
            _ => MAX_CONTROL_FRAME,
        }
    }
}

/// The byte stream is not one of frames; the link must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such kind.
    #[error("frame kind {0} is unknown: is the peer an enclave-netd or host-netd of this version?")]
    UnknownKind(u8),
    /// The payload is longer than its kind allows.
    #[error("{kind:?} frame of {length} bytes is longer than the {} allowed", kind.max_payload())]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// The length its header tells.
        length: usize,
    },
}

/// The header of a frame with `length` bytes of payload.
///
/// # Panics
/// When `length` is longer than `kind` allows.
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    assert!(
        length <= kind.max_payload(),
        "{kind:?} payload of {length} bytes"
    );
    #[expect(clippy::cast_possible_truncation, reason = "max_payload is below 2^24")]
    let [_, a, b, c] = (length as u32).to_be_bytes();
    [kind as u8, a, b, c]
}

/// A frame as it lies in the decoder's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: Kind,
    /// At most [`Kind::max_payload`] bytes.
    pub payload: &'a [u8],
}

/// Cuts frames out of a byte stream, however the stream is split.
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder whose buffer holds one read and a partial frame before it.
    pub fn new() -> Self {
        let capacity = LINK_READ + HEADER + MAX_PACKET_FRAME;
        Decoder {
            buffer: vec![0; capacity].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Where the next bytes of the stream go: at least [`LINK_READ`] bytes, provided that
    /// [`next`](Self::next) was called until it had nothing more.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.buffer.len() - self.end < LINK_READ {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Tells that the first `n` bytes of [`space`](Self::space) were filled.
    pub fn advance(&mut self, n: usize) {
        assert!(
            n <= self.buffer.len() - self.end,
            "more bytes than there was space"
        );
        self.end += n;
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// The stream is broken for good: every later call fails the same way.
    #[expect(
        clippy::should_implement_trait,
        reason = "the frame borrows the decoder"
    )]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let waiting = &self.buffer[self.start..self.end];
        let Some((&[kind, a, b, c], rest)) = waiting.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > kind.max_payload() {
            return Err(FrameError::TooLong { kind, length });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let payload = self.start + HEADER;
        self.start = payload + length;
        Ok(Some(Frame {
            kind,
            payload: &self.buffer[payload..payload + length],
        }))
    }
}

/// Frames on their way to the link, bounded.
///
/// [`has_room`](Self::has_room) turns false at [`LINK_QUEUE`] bytes. What was begun before fits
/// always: behind the bound there is room for one packet, for [`ANSWER_RESERVE`] bytes of answers
/// that cannot wait, and for [`CONTROL_RESERVE`] bytes of control frames, so that a closed port is
/// told and a ping is answered also while bulk data waits.
#[derive(Debug)]
pub struct Queue {
    buffer: Box<[u8]>,
    head: usize,
    tail: usize,
}

/// Room for short packets beyond the bound of a [`Queue`]: resets, acknowledgements and ICMP errors
/// that answer a packet, a dozen of the longest or two hundred of the shortest.
pub const ANSWER_RESERVE: usize = 16 * 1024;

const MAX_ANSWER_FRAME: usize = HEADER + VnetHeader::LEN + MAX_ICMP_ERROR;

/// The most that waits in a [`Queue`] but for control frames.
const QUEUE_WITH_ANSWERS: usize = LINK_QUEUE + HEADER + MAX_PACKET_FRAME + ANSWER_RESERVE;

/// Room for control frames beyond the bound of a [`Queue`].
pub const CONTROL_RESERVE: usize = 4 * (HEADER + MAX_CONTROL_FRAME);

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Self {
        // Twice the bound: sent bytes are reclaimed by moving what waits only after at least
        // LINK_QUEUE bytes went out.
        let capacity = LINK_QUEUE + QUEUE_WITH_ANSWERS + CONTROL_RESERVE;
        Queue {
            buffer: vec![0; capacity].into_boxed_slice(),
            head: 0,
            tail: 0,
        }
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.tail - self.head
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Whether another packet may be queued.
    pub fn has_room(&self) -> bool {
        self.len() < LINK_QUEUE
    }

    /// Room for the payload of one packet frame: virtio-net header first, then the packet. Call
    /// [`commit_packet`](Self::commit_packet) with the length of what was written. `None` when
    /// the queue is full.
    pub fn packet_space(&mut self) -> Option<&mut [u8]> {
        if !self.has_room() {
            return None;
        }
        self.make_room(HEADER + MAX_PACKET_FRAME);
        let payload = self.tail + HEADER;
        Some(&mut self.buffer[payload..payload + MAX_PACKET_FRAME])
    }

    /// The same for a packet of at most [`MAX_ICMP_ERROR`] bytes that answers another and is lost
    /// when it cannot be queued now: `None` only when the reserve is used up too.
    pub fn answer_space(&mut self) -> Option<&mut [u8]> {
        if self.len() + MAX_ANSWER_FRAME > QUEUE_WITH_ANSWERS {
            return None;
        }
        self.make_room(MAX_ANSWER_FRAME);
        Some(&mut self.buffer[self.tail + HEADER..self.tail + MAX_ANSWER_FRAME])
    }

    /// Queues the frame whose payload was written to the first `length` bytes of
    /// [`packet_space`](Self::packet_space) or [`answer_space`](Self::answer_space).
    pub fn commit_packet(&mut self, length: usize) {
        self.buffer[self.tail..self.tail + HEADER].copy_from_slice(&header(Kind::Packet, length));
        self.tail += HEADER + length;
    }

    /// Queues a control frame. False when even the reserve is used up: the frame is not queued.
    pub fn push_control(&mut self, kind: Kind, payload: &[u8]) -> bool {
        if self.len() + HEADER + payload.len() > QUEUE_WITH_ANSWERS + CONTROL_RESERVE {
            return false;
        }
        self.push(kind, payload);
        true
    }

    /// Queues a line of the log where a packet would have room, behind what waits. False when it
    /// has none: the line is not queued.
    pub fn push_log(&mut self, payload: &[u8]) -> bool {
        let room = self.has_room();
        if room {
            self.push(Kind::Log, payload);
        }
        room
    }

    fn push(&mut self, kind: Kind, payload: &[u8]) {
        self.make_room(HEADER + payload.len());
        let (head, body) = self.buffer[self.tail..].split_at_mut(HEADER);
        head.copy_from_slice(&header(kind, payload.len()));
        body[..payload.len()].copy_from_slice(payload);
        self.tail += HEADER + payload.len();
    }

    /// What waits, oldest first.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.head..self.tail]
    }

    /// Tells that the first `n` bytes of [`pending`](Self::pending) were sent.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len(), "more bytes sent than waited");
        self.head += n;
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        }
    }

    /// Forgets everything that waits, for a new link.
    pub fn clear(&mut self) {
        self.head = 0;
        self.tail = 0;
    }

    fn make_room(&mut self, n: usize) {
        if self.buffer.len() - self.tail < n {
            self.buffer.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn feed(decoder: &mut Decoder, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = decoder.space();
            let n = space.len().min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            decoder.advance(n);
            bytes = &bytes[n..];
        }
    }

    fn drain(decoder: &mut Decoder) -> Result<Vec<(Kind, Vec<u8>)>, FrameError> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next()? {
            frames.push((frame.kind, frame.payload.to_vec()));
        }
        Ok(frames)
    }

    fn frames() -> impl Strategy<Value = Vec<(Kind, Vec<u8>)>> {
        let one = prop_oneof![
            (Just(Kind::Packet), vec(any::<u8>(), 0..3000)),
            (
                Just(Kind::Packet),
                (60_000..=MAX_PACKET_FRAME).prop_map(|n| vec![0xA5; n])
            ),
            (
                prop_oneof![Just(Kind::Ping), Just(Kind::Goodbye), Just(Kind::Hello)],
                vec(any::<u8>(), 0..=MAX_CONTROL_FRAME)
            ),
        ];
        vec(one, 0..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_queued_is_decoded_however_the_stream_is_split(
            frames in frames(),
            cuts in vec(1usize..100_000, 1..50),
        ) {
            let mut queue = Queue::new();
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            let mut flush = |queue: &mut Queue| {
                let n = cuts.next().expect("cycles").min(queue.len());
                feed(&mut decoder, &queue.pending()[..n]);
                queue.consume(n);
                seen.extend(drain(&mut decoder).expect("own frames"));
            };
            for (kind, payload) in &frames {
                while !queue.has_room() {
                    flush(&mut queue);
                }
                if *kind == Kind::Packet {
                    let space = queue.packet_space().expect("has room");
                    space[..payload.len()].copy_from_slice(payload);
                    queue.commit_packet(payload.len());
                } else {
                    prop_assert!(queue.push_control(*kind, payload));
                }
            }
            while !queue.is_empty() {
                flush(&mut queue);
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn garbage_is_decoded_or_refused_but_never_panics(
            garbage in vec(any::<u8>(), 0..2000),
            cut in 1usize..500,
        ) {
            let mut decoder = Decoder::new();
            for part in garbage.chunks(cut) {
                feed(&mut decoder, part);
                if let Err(error) = drain(&mut decoder) {
                    prop_assert_eq!(drain(&mut decoder), Err(error), "an error is for good");
                    break;
                }
            }
        }
    }

    #[test]
    fn a_partial_frame_waits_for_its_last_byte() {
        let mut decoder = Decoder::new();
        let mut bytes = header(Kind::Ping, 3).to_vec();
        bytes.extend([1, 2, 3]);
        let (last, front) = bytes.split_last().expect("not empty");

        feed(&mut decoder, front);
        assert_eq!(decoder.next(), Ok(None));

        feed(&mut decoder, &[*last]);
        assert_eq!(
            decoder.next(),
            Ok(Some(Frame {
                kind: Kind::Ping,
                payload: &[1, 2, 3]
            }))
        );
    }

    #[test]
    fn unknown_kinds_and_long_payloads_are_refused_before_their_payload_comes() {
        let mut decoder = Decoder::new();
        feed(&mut decoder, &[9, 0, 0, 0]);
        assert_eq!(decoder.next(), Err(FrameError::UnknownKind(9)));

        let mut decoder = Decoder::new();
        feed(&mut decoder, &[2, 0, 2, 1]);
        assert_eq!(
            decoder.next(),
            Err(FrameError::TooLong {
                kind: Kind::Ping,
                length: 513
            })
        );
    }

    #[test]
    fn a_full_queue_refuses_packets_and_still_takes_answers_and_a_pong() {
        let mut queue = Queue::new();
        while let Some(space) = queue.packet_space() {
            let n = space.len();
            queue.commit_packet(n);
        }
        let full = queue.len();
        assert!(full <= LINK_QUEUE + HEADER + MAX_PACKET_FRAME);
        while let Some(space) = queue.answer_space() {
            let n = space.len();
            queue.commit_packet(n);
        }
        assert!(queue.len() - full > ANSWER_RESERVE - MAX_ANSWER_FRAME);
        assert!(queue.len() <= QUEUE_WITH_ANSWERS);
        for _ in 0..4 {
            assert!(queue.push_control(Kind::Pong, &[0; 8]));
        }
        for _ in 0..100_000 {
            queue.push_control(Kind::Pong, &[0; 8]);
        }
        assert!(queue.len() <= QUEUE_WITH_ANSWERS + CONTROL_RESERVE);
    }
}
