//! Connections: many messages on each, until the peer is done, breaks the rules, or the service ends.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::frame::{self, Received};
use super::keeper::Keeper;
use super::message::Answer;
use super::service::Service;
use crate::limits::crypto as limits;

/// Answers messages until the connection ends. When the service ends, the message that is being
/// answered still is.
pub(super) async fn serve<K: Keeper, S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    service: Arc<Service<K>>,
    mut ending: watch::Receiver<bool>,
) -> io::Result<()> {
    loop {
        let received = tokio::select! {
            received = frame::read(&mut stream) => received?,
            // An error: the service is gone.
            _ = ending.wait_for(|ending| *ending) => return Ok(()),
        };
        match received {
            Received::Message(message) => {
                let answer = service.answer(&message).await.encode();
                frame::write(&mut stream, &answer).await?;
            }
            Received::TooLong(length) => {
                let most = limits::MESSAGE;
                let why = format!("usage: a message of {length} bytes; the most are {most}");
                frame::write(&mut stream, &Answer::error(why).encode()).await?;
                return linger(stream, length).await;
            }
            Received::End => return Ok(()),
        }
    }
}

/// Ends a connection so that the peer can read the last answer: closed with bytes unread, it would
/// be reset, and the answer lost.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, length: u32) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = stream.take(u64::from(length).min(limits::LINGER));
    let mut nowhere = tokio::io::sink();
    let _ = timeout(
        limits::LINGER_TIME,
        tokio::io::copy(&mut rest, &mut nowhere),
    )
    .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::super::service::tests::Open;
    use super::super::tenants::tests::tenants;
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    fn start() -> (
        DuplexStream,
        watch::Sender<bool>,
        tokio::task::JoinHandle<io::Result<()>>,
    ) {
        let (near, far) = duplex(4096);
        let (end, ending) = watch::channel(false);
        let service = Arc::new(Service::new(Open::default(), tenants()));
        (near, end, tokio::spawn(serve(far, service, ending)))
    }

    async fn answer(stream: &mut DuplexStream) -> String {
        match frame::read(stream).await.unwrap() {
            Received::Message(message) => String::from_utf8(message.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_wrong_message_does_not_end_a_connection() {
        let (mut near, _end, task) = start();
        for (message, expected) in [
            ("nonsense", "not JSON"),
            (r#"{"action":"health"}"#, "degraded"),
        ] {
            frame::write(&mut near, message.as_bytes()).await.unwrap();
            let answer = answer(&mut near).await;
            assert!(answer.contains(expected), "{answer}");
        }
        drop(near);
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_oversized_message_is_answered_and_ends_it() {
        let (mut near, _end, task) = start();
        near.write_all(&1_000_000_u32.to_be_bytes()).await.unwrap();
        near.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        let answer = answer(&mut near).await;
        assert!(answer.contains("1000000 bytes"), "{answer}");
        assert_eq!(frame::read(&mut near).await.unwrap(), Received::End);
        drop(near);
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn it_ends_with_the_service() {
        let (_near, end, task) = start();
        end.send(true).unwrap();
        task.await.unwrap().unwrap();
    }
}
