//! The sign of life that `nitro-cli run-enclave` waits for.
//!
//! The parent's side listens on port 9000, gets one byte, and sends it back. Nothing depends on
//! its answer: it is the parent's.

use crate::limits::HEARTBEAT_TIMEOUT;
use crate::{privileges, socket};
use netd_proto::address::{Cid, LinkAddress, VsockPort};
use std::io::{self, Read, Write};
use std::thread;
use tracing::{info, warn};

const PORT: VsockPort = VsockPort(9000);
const BEAT: u8 = 0xb7;

/// Exchanges the byte in a thread of its own.
pub(super) fn start(parent: Cid) {
    let started = thread::Builder::new()
        .name("heartbeat".into())
        .spawn(move || {
            privileges::drop_in_thread(false);
            match beat(parent) {
                Ok(()) => info!(parent = parent.0, "heartbeat answered"),
                Err(error) => complain(parent, &error),
            }
        });
    if let Err(error) = started {
        complain(parent, &error);
    }
}

fn complain(parent: Cid, error: &io::Error) {
    warn!(
        %error,
        parent = parent.0,
        port = PORT.0,
        "no heartbeat: nitro-cli may take this enclave for one that did not start"
    );
}

fn beat(parent: Cid) -> io::Result<()> {
    let address = LinkAddress::Vsock(parent, PORT);
    exchange(socket::open(&address, HEARTBEAT_TIMEOUT)?)
}

fn exchange(mut stream: impl Read + Write) -> io::Result<()> {
    stream.write_all(&[BEAT])?;
    let mut answer = [0];
    match stream.read_exact(&mut answer) {
        Ok(()) if answer == [BEAT] => Ok(()),
        Ok(()) => Err(io::Error::other(format!(
            "the parent answered {:#04x} instead of {BEAT:#04x}",
            answer[0]
        ))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::other("the parent did not answer"))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// What an exchange with a parent comes to that does `answer`.
    fn with_parent(answer: impl FnOnce(UnixStream) + Send + 'static) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let short = Some(Duration::from_millis(100));
        ours.set_read_timeout(short).expect("a time-out");
        let parent = thread::spawn(move || answer(theirs));
        let result = exchange(&ours);
        drop(ours);
        parent.join().expect("no panic");
        result
    }

    fn read_beat(mut stream: &UnixStream) {
        let mut beat = [0];
        stream.read_exact(&mut beat).expect("a byte");
        assert_eq!(beat, [0xb7]);
    }

    #[test]
    fn the_byte_comes_back() {
        with_parent(|mut stream| {
            read_beat(&stream);
            stream.write_all(&[0xb7, 1, 2, 3]).expect("room");
        })
        .expect("answered");
    }

    #[test]
    fn another_byte_silence_and_an_end_are_told() {
        let another = with_parent(|mut stream| {
            read_beat(&stream);
            stream.write_all(b"x").expect("room");
        });
        let another = another.expect_err("not the byte").to_string();
        assert_eq!(another, "the parent answered 0x78 instead of 0xb7");
        let silence = with_parent(|mut stream| {
            // Until the other side has lost patience.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let silence = silence.expect_err("no byte").to_string();
        assert_eq!(silence, "the parent did not answer");
        with_parent(|stream| read_beat(&stream)).expect_err("closed");
    }
}
