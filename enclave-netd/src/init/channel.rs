//! What the keeper and the carrier say to each other, over a pair of sockets that keep messages
//! apart.
//!
//! The carrier reads a hostile parent's bytes, so the keeper believes it as little as it can: it
//! takes three short messages from it, each of one exact form, and what they can bring about is that
//! the program is started, that lines of the log are sent again, and that the end is not waited for
//! any longer. Anything else ends the carrier.

use crate::limits::{CARRIER_ORDERS, CONFIG_PART};
use netd_proto::frame::Kind;
use netd_proto::handshake::SessionId;
use netd_proto::report::Exit;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use thiserror::Error;

/// Tells lines for one link of a carrier from those for the next, while they are on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation(pub(crate) u32);

/// From the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// A part of the configuration's text.
    Config(Vec<u8>),
    /// That was all of it: connect, in this session.
    Begin(SessionId),
    /// What follows is for this link.
    Replay(Generation),
    /// The payload of a [`Kind::Log`] frame.
    Line(Vec<u8>),
    /// How the program ended; say goodbye.
    Exit(Exit),
    /// Log the counters.
    Report,
    /// Say goodbye and end.
    Stop,
}

/// From the carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// There is a link.
    Linked {
        generation: Generation,
        /// Whether its parent takes log lines.
        takes_log: bool,
    },
    /// There is none any more.
    Lost,
    /// The parent knows how the program ended.
    Told,
}

/// A message that the other side should never have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a message of {0} bytes that is none")]
pub(crate) struct Malformed(usize);

const MAX_ORDER: usize = 1 + CONFIG_PART;
/// One more than the longest, so that a longer one is seen.
const NOTICE_BUFFER: usize = 8;

const _: () = assert!(Kind::Log.max_payload() < CONFIG_PART);

impl Order {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, body): (u8, &[u8]) = match self {
            Order::Config(part) => (1, part),
            Order::Begin(session) => (2, &session.0),
            Order::Replay(generation) => (3, &generation.0.to_be_bytes()),
            Order::Line(line) => (4, line),
            Order::Exit(exit) => (5, &exit.encode()),
            Order::Report => (6, &[]),
            Order::Stop => (7, &[]),
        };
        [&[kind], body].concat()
    }

    fn decode(message: &[u8]) -> Result<Order, Malformed> {
        let wrong = Malformed(message.len());
        let (kind, body) = message.split_first().ok_or(wrong)?;
        Ok(match kind {
            1 if body.len() <= CONFIG_PART => Order::Config(body.into()),
            2 => Order::Begin(SessionId(body.try_into().map_err(|_| wrong)?)),
            3 => {
                let number = body.try_into().map_err(|_| wrong)?;
                Order::Replay(Generation(u32::from_be_bytes(number)))
            }
            4 if body.len() <= Kind::Log.max_payload() => Order::Line(body.into()),
            5 => Order::Exit(Exit::decode(body).map_err(|_| wrong)?),
            6 if body.is_empty() => Order::Report,
            7 if body.is_empty() => Order::Stop,
            _ => return Err(wrong),
        })
    }
}

impl Notice {
    fn encode(self) -> Vec<u8> {
        match self {
            Notice::Linked {
                generation: Generation(number),
                takes_log,
            } => [&[1, u8::from(takes_log)], &number.to_be_bytes()[..]].concat(),
            Notice::Lost => vec![2],
            Notice::Told => vec![3],
        }
    }

    fn decode(message: &[u8]) -> Result<Notice, Malformed> {
        match *message {
            [1, takes_log @ 0..=1, a, b, c, d] => Ok(Notice::Linked {
                generation: Generation(u32::from_be_bytes([a, b, c, d])),
                takes_log: takes_log == 1,
            }),
            [2] => Ok(Notice::Lost),
            [3] => Ok(Notice::Told),
            _ => Err(Malformed(message.len())),
        }
    }
}

/// What reading a message may come to.
#[derive(Debug, Error)]
pub(crate) enum ChannelError {
    #[error("the other side is gone")]
    Closed,
    #[error("{CARRIER_ORDERS} orders wait, and the other side takes none")]
    Deaf,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Io(io::Error),
}

impl From<Errno> for ChannelError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::ECONNRESET | Errno::EPIPE => ChannelError::Closed,
            error => ChannelError::Io(error.into()),
        }
    }
}

/// A pair of sockets, the keeper's and the carrier's. None blocks.
pub(crate) fn pair() -> io::Result<(KeeperEnd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (keeper, carrier) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((
        KeeperEnd {
            socket: keeper,
            waiting: VecDeque::new(),
        },
        carrier,
    ))
}

/// The keeper's end.
#[derive(Debug)]
pub(crate) struct KeeperEnd {
    socket: OwnedFd,
    /// Orders that the socket has no room for, [`CARRIER_ORDERS`] at most. Lines are offered instead.
    waiting: VecDeque<Vec<u8>>,
}

impl KeeperEnd {
    /// Gives an order, now or as soon as there is room.
    ///
    /// # Errors
    /// The carrier is gone, or takes nothing.
    pub(crate) fn give(&mut self, order: &Order) -> Result<(), ChannelError> {
        if self.waiting.len() >= CARRIER_ORDERS {
            return Err(ChannelError::Deaf);
        }
        self.waiting.push_back(order.encode());
        self.flush()
    }

    /// Gives an order if there is room. False when it was not given.
    ///
    /// # Errors
    /// The carrier is gone.
    pub(crate) fn offer(&mut self, order: &Order) -> Result<bool, ChannelError> {
        self.flush()?;
        if self.is_full() {
            return Ok(false);
        }
        try_send(&self.socket, &order.encode())
    }

    /// Whether orders wait for room.
    pub(crate) fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives what waits.
    ///
    /// # Errors
    /// The carrier is gone.
    pub(crate) fn flush(&mut self) -> Result<(), ChannelError> {
        while let Some(message) = self.waiting.front() {
            if !try_send(&self.socket, message)? {
                return Ok(());
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// The next message of the carrier; none when there is none yet.
    ///
    /// # Errors
    /// The carrier is gone, or sent what is none.
    pub(crate) fn next(&mut self) -> Result<Option<Notice>, ChannelError> {
        let mut buffer = [0; NOTICE_BUFFER];
        match receive(&self.socket, &mut buffer)? {
            Some(n) => Ok(Some(Notice::decode(&buffer[..n])?)),
            None => Ok(None),
        }
    }
}

impl AsFd for KeeperEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The carrier's end.
#[derive(Debug)]
pub(crate) struct CarrierEnd {
    socket: OwnedFd,
    buffer: Box<[u8]>,
}

impl CarrierEnd {
    pub(crate) fn new(socket: OwnedFd) -> CarrierEnd {
        let buffer = vec![0; MAX_ORDER + 1].into_boxed_slice();
        CarrierEnd { socket, buffer }
    }

    /// The next order; none when there is none yet.
    ///
    /// # Errors
    /// The keeper is gone, or said what is none.
    pub(crate) fn next(&mut self) -> Result<Option<Order>, ChannelError> {
        match receive(&self.socket, &mut self.buffer)? {
            Some(n) => Ok(Some(Order::decode(&self.buffer[..n])?)),
            None => Ok(None),
        }
    }

    /// Tells the keeper.
    ///
    /// # Errors
    /// It is gone, or has taken nothing for long.
    pub(crate) fn tell(&self, notice: Notice) -> Result<(), ChannelError> {
        match try_send(&self.socket, &notice.encode())? {
            true => Ok(()),
            false => Err(Errno::EAGAIN.into()),
        }
    }
}

impl AsRawFd for CarrierEnd {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl AsFd for CarrierEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// False when there is no room.
fn try_send(socket: &OwnedFd, message: &[u8]) -> Result<bool, ChannelError> {
    loop {
        match send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => return Ok(true),
            Err(Errno::EAGAIN) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, ChannelError> {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            // No message is empty.
            Ok(0) => return Err(ChannelError::Closed),
            Ok(n) => return Ok(Some(n)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends() -> (KeeperEnd, CarrierEnd) {
        let (keeper, carrier) = pair().expect("a pair");
        (keeper, CarrierEnd::new(carrier))
    }

    #[test]
    fn messages_arrive_as_they_were_said() {
        let (mut keeper, mut carrier) = ends();
        let orders = [
            Order::Config(vec![b'x'; CONFIG_PART]),
            Order::Begin(SessionId([7; 16])),
            Order::Replay(Generation(0x0102_0304)),
            Order::Line(vec![1; Kind::Log.max_payload()]),
            Order::Exit(Exit::Signal(9)),
            Order::Report,
            Order::Stop,
        ];
        for order in orders {
            keeper.give(&order).expect("given");
            assert_eq!(carrier.next().expect("read"), Some(order));
        }
        assert_eq!(carrier.next().expect("read"), None);
        let notices = [false, true].map(|takes_log| Notice::Linked {
            generation: Generation(0x0102_0304),
            takes_log,
        });
        for notice in notices.into_iter().chain([Notice::Lost, Notice::Told]) {
            carrier.tell(notice).expect("told");
            assert_eq!(keeper.next().expect("read"), Some(notice));
        }
        drop(carrier);
        assert!(matches!(keeper.next(), Err(ChannelError::Closed)));
        assert!(matches!(
            keeper.give(&Order::Stop),
            Err(ChannelError::Closed)
        ));
    }

    #[test]
    fn a_message_that_is_longer_or_other_is_no_notice() {
        let (mut keeper, carrier) = ends();
        for wrong in [
            &[0][..],
            &[1],
            &[1, 2, 0, 0, 0, 1],
            &[1, 0, 0, 0, 0, 1, 0],
            &[2, 0],
            &[3, 3],
            &[4],
            &[3; 100],
            &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            send(carrier.as_raw_fd(), wrong, MsgFlags::empty()).expect("sent");
            assert!(
                matches!(keeper.next(), Err(ChannelError::Malformed(_))),
                "{wrong:?}"
            );
        }
        carrier.tell(Notice::Told).expect("told");
        assert_eq!(keeper.next().expect("read"), Some(Notice::Told));
        send(carrier.as_raw_fd(), &[], MsgFlags::empty()).expect("sent");
        assert!(matches!(keeper.next(), Err(ChannelError::Closed)));
    }

    #[test]
    fn orders_wait_for_room_and_keep_their_order() {
        let (mut keeper, mut carrier) = ends();
        let part = |n: u8| Order::Config(vec![n; CONFIG_PART]);
        (0..32).for_each(|n| keeper.give(&part(n)).expect("given"));
        assert!(keeper.is_full());
        assert!(!keeper.offer(&Order::Line(vec![0; 9])).expect("offered"));
        let mut seen = Vec::new();
        while seen.len() < 32 {
            keeper.flush().expect("flushed");
            while let Some(order) = carrier.next().expect("read") {
                seen.push(order);
            }
        }
        assert_eq!(seen, (0..32).map(part).collect::<Vec<_>>());
        assert!(keeper.offer(&Order::Line(vec![0; 9])).expect("offered"));
    }

    #[test]
    fn a_carrier_that_asks_and_never_listens_is_found_out() {
        let (mut keeper, carrier) = ends();
        let asked = Notice::Linked {
            generation: Generation(1),
            takes_log: true,
        };
        for answered in 0.. {
            assert!(answered < 10_000, "the answers pile up");
            carrier.tell(asked).expect("told");
            let Some(Notice::Linked { generation, .. }) = keeper.next().expect("read") else {
                panic!("not what was said");
            };
            match keeper.give(&Order::Replay(generation)) {
                Ok(()) => {}
                Err(ChannelError::Deaf) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(keeper.waiting.len(), CARRIER_ORDERS);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_are_a_notice_to_the_bit(bytes: Vec<u8>) {
            if let Ok(notice) = Notice::decode(&bytes) {
                prop_assert_eq!(notice.encode(), bytes);
            }
        }

        #[test]
        fn orders_are_read_to_the_bit(kind in 0u8..9, mut bytes: Vec<u8>) {
            bytes.insert(0, kind);
            if let Ok(order) = Order::decode(&bytes) {
                prop_assert_eq!(order.encode(), bytes);
            }
        }
    }
}
