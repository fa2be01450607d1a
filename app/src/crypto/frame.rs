//! Messages on a stream: a length (u32, big-endian), and so many bytes.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::limits::crypto as limits;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Message(Zeroizing<Vec<u8>>),
    /// A message longer than [`limits::MESSAGE`]; what follows its length was not read.
    TooLong(u32),
    /// The end of the stream, between two messages.
    End,
}

/// Reads a message. Cancelling it loses the stream's place.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Received> {
    read_within(stream, limits::MESSAGE_TIME).await
}

async fn read_within<S: AsyncRead + Unpin>(stream: &mut S, time: Duration) -> io::Result<Received> {
    let mut length = [0; 4];
    let begun = timeout(limits::IDLE, stream.read(&mut length)).await;
    let begun =
        begun.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "idle for too long"))??;
    if begun == 0 {
        return Ok(Received::End);
    }
    let rest = async {
        stream.read_exact(&mut length[begun..]).await?;
        let length = u32::from_be_bytes(length);
        if length as usize > limits::MESSAGE {
            return Ok(Received::TooLong(length));
        }
        let mut message = Zeroizing::new(vec![0; length as usize]);
        stream.read_exact(&mut message).await?;
        Ok(Received::Message(message))
    };
    timeout(time, rest).await.unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the message does not come to an end",
        ))
    })
}

/// Writes a message.
pub(super) async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len())
        .map_err(io::Error::other)?
        .to_be_bytes();
    // In one write if it fits: a length by itself would be a packet by itself.
    let (first, rest) = message.split_at(message.len().min(limits::WRITE - length.len()));
    let first = Zeroizing::new([&length[..], first].concat());
    let all = async {
        stream.write_all(&first).await?;
        for part in rest.chunks(limits::WRITE) {
            stream.write_all(part).await?;
        }
        stream.flush().await
    };
    timeout(limits::MESSAGE_TIME, all)
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer does not take its answer",
            ))
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn messages_come_as_they_went() {
        let (mut near, mut far) = duplex(1000);
        let long = vec![7; limits::MESSAGE];
        let sent: [&[u8]; 3] = [b"", b"{}", &long];
        let writer = async {
            for message in sent {
                write(&mut near, message).await.unwrap();
            }
            near.shutdown().await.unwrap();
        };
        let reader = async {
            for message in sent {
                let expected = Received::Message(Zeroizing::new(message.to_vec()));
                assert_eq!(read(&mut far).await.unwrap(), expected);
            }
            assert_eq!(read(&mut far).await.unwrap(), Received::End);
        };
        tokio::join!(writer, reader);
    }

    #[tokio::test]
    async fn what_is_too_long_or_too_short_is_told() {
        let long = u32::try_from(limits::MESSAGE).unwrap() + 1;
        let got = read(&mut &long.to_be_bytes()[..]).await.unwrap();
        assert_eq!(got, Received::TooLong(long));
        for cut in [&[0, 0][..], &[0, 0, 0, 5, b'a']] {
            let error = read(&mut &cut[..]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut:?}");
        }
    }

    #[tokio::test]
    async fn a_message_must_come_to_an_end() {
        let (mut near, mut far) = duplex(10);
        near.write_all(&[0, 0, 0, 5, b'a']).await.unwrap();
        let error = read_within(&mut far, Duration::from_millis(50))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
