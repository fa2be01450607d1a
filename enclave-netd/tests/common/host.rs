//! A host that speaks the protocol and nothing more: it sees each frame, and sends what it is told.

use super::{Enclave, PATIENCE};
use netd_proto::control::{Goodbye, Reason};
use netd_proto::frame::{Decoder, Kind, header};
use netd_proto::handshake::{AwaitHello, Features, Hello};
use netd_proto::offload::VnetHeader;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

pub struct Host {
    listener: UnixListener,
}

pub struct Link {
    stream: UnixStream,
    decoder: Decoder,
    pub hello: Hello,
    pub answers_pings: bool,
}

impl Host {
    pub fn listen(enclave: &Enclave) -> Host {
        let path = enclave.path("host.sock");
        let _ = std::fs::remove_file(&path);
        Host {
            listener: UnixListener::bind(path).expect("bound"),
        }
    }

    /// The next connection, before its handshake.
    pub fn accept_raw(&self) -> UnixStream {
        // A test that waits for ever is stopped by its runner; the daemon tries every second.
        let (stream, _) = self.listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(PATIENCE)).expect("set");
        stream
    }

    /// The next connection, shaken hands with.
    pub fn accept(&self) -> Link {
        self.accept_with(Features::ALL)
    }

    pub fn accept_with(&self, features: Features) -> Link {
        let mut stream = self.accept_raw();
        let mut decoder = Decoder::new();
        let offer = loop {
            if let Some(frame) = decoder.next().expect("frames") {
                break AwaitHello.receive(frame).expect("a hello");
            }
            let n = stream.read(decoder.space()).expect("a hello");
            assert!(n > 0, "left before the hello");
            decoder.advance(n);
        };
        let hello = offer.hello;
        let (welcome, _) = offer.accept(features);
        send(&mut stream, Kind::Welcome, &welcome);
        Link {
            stream,
            decoder,
            hello,
            answers_pings: true,
        }
    }

    /// Takes the next connection and refuses it.
    pub fn refuse(&self, reason: Reason, text: &str) {
        let mut stream = self.accept_raw();
        send(
            &mut stream,
            Kind::Goodbye,
            &Goodbye::new(reason, text).encode(),
        );
    }
}

fn send(stream: &mut UnixStream, kind: Kind, payload: &[u8]) {
    let frame = [&header(kind, payload.len()), payload].concat();
    stream.write_all(&frame).expect("sent");
}

impl Link {
    pub fn send(&mut self, kind: Kind, payload: &[u8]) {
        send(&mut self.stream, kind, payload);
    }

    /// Sends bytes that need not be a frame.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    pub fn send_packet(&mut self, packet: &[u8]) {
        self.send(
            Kind::Packet,
            &[VnetHeader::NONE.encode().as_slice(), packet].concat(),
        );
    }

    /// The next frame within `patience`, or `None` at the end of the link or of patience.
    pub fn next_within(&mut self, patience: Duration) -> Option<(Kind, Vec<u8>)> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.decoder.next().expect("frames") {
                let (kind, payload) = (frame.kind, frame.payload.to_vec());
                if kind == Kind::Ping && self.answers_pings {
                    self.send(Kind::Pong, &payload);
                    continue;
                }
                return Some((kind, payload));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).expect("set");
            match self.stream.read(self.decoder.space()) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.decoder.advance(n),
            }
        }
    }

    /// The next frame.
    pub fn next(&mut self) -> (Kind, Vec<u8>) {
        self.next_within(PATIENCE).expect("a frame")
    }

    /// The next packet for which `wanted` has a value; others are passed over.
    pub fn packet<T>(&mut self, mut wanted: impl FnMut(&VnetHeader, &[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some((kind, payload)) = self.next_within(left) else {
                panic!("no such packet")
            };
            if kind != Kind::Packet {
                continue;
            }
            let (vnet, packet) = VnetHeader::split(&payload).expect("a header");
            if let Some(value) = wanted(&vnet, packet) {
                return value;
            }
        }
    }
}
