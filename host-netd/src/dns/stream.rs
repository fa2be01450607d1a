//! DNS over TCP (RFC 7766) for one connection of the enclave.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::{Answer, Dns, Resolved, Transport, limits};

const LENGTH: usize = 2;
/// Room for reading: a few queries.
const READ: usize = 4_096;
/// How long the peer is given to take the end of the stream.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// Serves the queries of one TCP connection (RFC 7766) until the peer closes its side, an error
/// occurs, or nothing has moved for ten seconds.
///
/// Messages are framed by two bytes of length. Several queries may be in progress; each is answered
/// as soon as its answer is there, so answers may come out of order. When a bound on queries in
/// progress or on unwritten answers is reached, reading waits. After the peer's end of stream the
/// queries it had sent are still answered. A connection holds less than 512 KiB; how many there are
/// is for the caller to bound. `resolved` is told of the addresses in an answer before the answer
/// is sent.
pub async fn serve_stream<S>(dns: Dns, stream: S, resolved: impl FnMut(Resolved))
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    serve(dns, stream, resolved, limits::STREAM_IDLE).await;
}

pub(super) async fn serve<S>(
    dns: Dns,
    stream: S,
    mut resolved: impl FnMut(Resolved),
    idle: Duration,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut input: Vec<u8> = Vec::new();
    let mut output: Vec<u8> = Vec::new();
    let mut running = FuturesUnordered::new();
    let mut open = true;
    let mut moved = Instant::now();
    loop {
        while running.len() < limits::STREAM_PIPELINE
            && let Some(query) = next_frame(&mut input)
        {
            let dns = &dns;
            running.push(async move { dns.answer(&query, Transport::Tcp).await });
            moved = Instant::now();
        }
        if !open && running.is_empty() && output.is_empty() {
            break;
        }
        let take = output.len() < limits::STREAM_OUTPUT;
        let read = open && take && running.len() < limits::STREAM_PIPELINE;
        tokio::select! {
            answer = running.next(), if take && !running.is_empty() => {
                moved = Instant::now();
                if let Some(Some(Answer { message, resolved: names })) = answer {
                    names.into_iter().for_each(&mut resolved);
                    push_frame(&mut output, &message);
                }
            }
            wrote = writer.write(&output), if !output.is_empty() => match wrote {
                Ok(length) if length > 0 => {
                    moved = Instant::now();
                    output.drain(..length);
                }
                Ok(_) => break,
                Err(error) => {
                    debug!(%error, "a DNS connection of the enclave failed");
                    break;
                }
            },
            got = read_some(&mut reader, &mut input), if read => match got {
                Ok(length) => open = length > 0,
                Err(error) => {
                    debug!(%error, "a DNS connection of the enclave failed");
                    break;
                }
            },
            // Answers in progress end by themselves, and unread ones keep `moved` where it is.
            () = sleep_until(moved + idle), if running.is_empty() || !take => {
                debug!("closing an idle DNS connection of the enclave");
                break;
            }
        }
    }
    // The peer may be gone or not reading; either way the connection is over.
    let _ = timeout(SHUTDOWN, writer.shutdown()).await;
}

/// Safe to cancel: what was read is in `input`.
async fn read_some(
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut Vec<u8>,
) -> std::io::Result<usize> {
    let mut chunk = [0; READ];
    let length = reader.read(&mut chunk).await?;
    input.extend_from_slice(&chunk[..length]);
    Ok(length)
}

/// Takes the first message off `input` once it is there as a whole.
fn next_frame(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = LENGTH + usize::from(u16::from_be_bytes(*input.first_chunk()?));
    if input.len() < length {
        return None;
    }
    let mut frame: Vec<u8> = input.drain(..length).collect();
    frame.drain(..LENGTH);
    Some(frame)
}

fn push_frame(output: &mut Vec<u8>, message: &[u8]) {
    // Answers over TCP are cut to what the length can say.
    if let Ok(length) = u16::try_from(message.len()) {
        output.extend_from_slice(&length.to_be_bytes());
        output.extend_from_slice(message);
    }
}
