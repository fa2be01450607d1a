//! DNS over TCP.

use std::collections::HashSet;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::Resolved;
use super::super::limits;
use super::super::stream::serve;
use super::*;

/// `slow.*` takes its time.
async fn zone() -> Server {
    Server::start(|got| {
        let bytes = message(got, 0x0180, [&[Rr::a(NAME, 60, [192, 0, 2, 1])], &[], &[]]);
        match got.name().starts_with("slow") {
            true => Reply::Late(Duration::from_millis(300), bytes),
            false => Reply::Send(bytes),
        }
    })
    .await
}

fn frame(id: u16, text: &str) -> Vec<u8> {
    let bytes = Q {
        id,
        ..q(text, 1u16)
    }
    .bytes();
    [
        &u16::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        &bytes,
    ]
    .concat()
}

async fn answer(stream: &mut DuplexStream) -> Option<Message> {
    let length = stream.read_u16().await.ok()?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Some(Message::from_vec(&bytes).unwrap())
}

/// Short enough for a test, for those that wait for it.
const IDLE: Duration = Duration::from_millis(200);

type Connection = (
    DuplexStream,
    mpsc::Receiver<String>,
    tokio::task::JoinHandle<()>,
);

fn connect(dns: &Dns, room: usize) -> Connection {
    connect_for(limits::STREAM_IDLE, dns, room)
}

fn connect_for(idle: Duration, dns: &Dns, room: usize) -> Connection {
    let (near, far) = duplex(room);
    let (sender, names) = mpsc::channel();
    let report = move |resolved: Resolved| sender.send(resolved.name).unwrap();
    (
        near,
        names,
        tokio::spawn(serve(dns.clone(), far, report, idle)),
    )
}

#[tokio::test]
async fn queries_in_pieces_are_answered_as_they_become_ready() {
    let server = zone().await;
    let (mut stream, names, served) = connect(&dns(settings(&[&server])), 65_536);

    stream.write_all(&frame(1, "slow.test")).await.unwrap();
    let second = frame(2, "quick.test");
    for byte in &second[..second.len() - 1] {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.write_all(&second[second.len() - 1..]).await.unwrap();

    assert_eq!(answer(&mut stream).await.unwrap().metadata.id, 2);
    assert_eq!(
        names.try_recv().unwrap(),
        "quick.test",
        "reported before it was sent"
    );
    assert_eq!(answer(&mut stream).await.unwrap().metadata.id, 1);
    drop(stream);
    served.await.unwrap();
}

#[tokio::test]
async fn after_the_end_of_the_queries_the_answers_still_come() {
    let server = zone().await;
    let (mut stream, _names, served) = connect(&dns(settings(&[&server])), 65_536);

    stream
        .write_all(&[frame(1, "slow.test"), frame(2, "a.test")].concat())
        .await
        .unwrap();
    // Part of a further one, which never comes.
    stream.write_all(&frame(3, "b.test")[..5]).await.unwrap();
    stream.shutdown().await.unwrap();

    let mut ids = Vec::new();
    while let Some(message) = answer(&mut stream).await {
        ids.push(message.metadata.id);
    }
    assert_eq!(ids, [2, 1]);
    served.await.unwrap();
}

#[tokio::test]
async fn many_queries_at_once_are_all_answered_within_the_bound() {
    let server = zone().await;
    let (mut stream, _names, _served) = connect(&dns(settings(&[&server])), 256);
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let count = u16::try_from(limits::STREAM_PIPELINE * 5).unwrap();

    let send = async {
        for id in 0..count {
            writer
                .write_all(&frame(id, &format!("n{id}.test")))
                .await
                .unwrap();
        }
    };
    let receive = async {
        let mut ids = Vec::new();
        for _ in 0..count {
            let mut bytes = vec![0; reader.read_u16().await.unwrap().into()];
            reader.read_exact(&mut bytes).await.unwrap();
            ids.push(Message::from_vec(&bytes).unwrap().metadata.id);
        }
        ids.sort_unstable();
        ids
    };
    let ((), ids) = tokio::join!(send, receive);
    assert_eq!(ids, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_pipeline_is_bounded() {
    let server = Server::start(|_| Reply::Silent).await;
    let (mut stream, _names, _served) = connect(&dns(settings(&[&server])), 1 << 20);
    for id in 0..200 {
        stream
            .write_all(&frame(id, &format!("n{id}.test")))
            .await
            .unwrap();
    }
    let asked = || server.names().into_iter().collect::<HashSet<_>>().len();
    let started = Instant::now();
    while asked() < limits::STREAM_PIPELINE {
        assert!(started.elapsed() < Duration::from_secs(3));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Time for one more, if there were no bound.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(asked(), limits::STREAM_PIPELINE);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let dns = dns(settings_at(&["127.0.0.1:9".parse().unwrap()]));
    for start in [&[][..], &[0], &frame(1, "a.test")[..9]] {
        let (mut stream, _names, served) = connect_for(IDLE, &dns, 65_536);
        let started = Instant::now();
        stream.write_all(start).await.unwrap();

        served.await.unwrap();

        assert!(started.elapsed() >= IDLE);
        assert!(answer(&mut stream).await.is_none());
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_closed() {
    let dns = dns(settings_at(&["127.0.0.1:9".parse().unwrap()]));
    let (mut stream, _names, served) = connect_for(IDLE, &dns, 64);
    for id in 0..3 {
        stream.write_all(&frame(id, "localhost")).await.unwrap();
    }
    served.await.unwrap();
    drop(stream);
}
