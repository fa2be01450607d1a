//! A name server that does what the test says, on one port of the loopback for UDP and TCP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::super::Transport;

/// The question's name, as a pointer.
pub(crate) const NAME: [u8; 2] = [0xc0, 12];

/// A record in parts: owner, type, TTL, data.
#[derive(Clone, Debug)]
pub(crate) struct Rr(
    pub(crate) Vec<u8>,
    pub(crate) u16,
    pub(crate) u32,
    pub(crate) Vec<u8>,
);

impl Rr {
    pub(crate) fn bytes(&self, class: [u8; 2]) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.extend(self.1.to_be_bytes());
        bytes.extend(class);
        bytes.extend(self.2.to_be_bytes());
        bytes.extend(u16::try_from(self.3.len()).unwrap().to_be_bytes());
        bytes.extend(&self.3);
        bytes
    }

    pub(crate) fn a(owner: impl Into<Vec<u8>>, ttl: u32, address: [u8; 4]) -> Rr {
        Rr(owner.into(), 1, ttl, address.to_vec())
    }

    pub(crate) fn cname(owner: impl Into<Vec<u8>>, ttl: u32, target: &str) -> Rr {
        Rr(owner.into(), 5, ttl, name(target))
    }

    pub(crate) fn soa(zone: &str, ttl: u32, minimum: u32) -> Rr {
        let mut data = [name("ns.test"), name("root.test")].concat();
        data.extend([0; 16]);
        data.extend(minimum.to_be_bytes());
        Rr(name(zone), 6, ttl, data)
    }
}

/// A name in wire form, in its own case.
pub(crate) fn name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

/// What a server got.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) bytes: Vec<u8>,
    pub(crate) transport: Transport,
}

impl Got {
    /// Name and type of the question, and what follows it.
    fn split(&self) -> (usize, usize) {
        let end = 12 + self.bytes[12..].iter().position(|&byte| byte == 0).unwrap() + 1;
        (end, end + 4)
    }

    pub(crate) fn name(&self) -> String {
        let mut text = String::new();
        let mut pos = 12;
        while self.bytes[pos] != 0 {
            let end = pos + 1 + usize::from(self.bytes[pos]);
            text.push_str(std::str::from_utf8(&self.bytes[pos + 1..end]).unwrap());
            text.push('.');
            pos = end;
        }
        text
    }

    pub(crate) fn rtype(&self) -> u16 {
        let (at, _) = self.split();
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The OPT record of the query.
    pub(crate) fn opt(&self) -> &[u8] {
        &self.bytes[self.split().1..]
    }
}

/// What a server does with a query.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Send(Vec<u8>),
    /// Several datagrams, in this order.
    Several(Vec<Vec<u8>>),
    Late(Duration, Vec<u8>),
    Silent,
}

/// A message that answers `got`, with these flags (QR is added) and records by section. With an OPT
/// record, as the servers of today send it.
pub(crate) fn message(got: &Got, flags: u16, sections: [&[Rr]; 3]) -> Vec<u8> {
    let opt = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];
    let mut bytes = reply(got, flags, sections);
    bytes[11] += 1;
    bytes.extend(opt);
    bytes
}

/// The same without OPT.
pub(crate) fn reply(got: &Got, flags: u16, sections: [&[Rr]; 3]) -> Vec<u8> {
    let mut bytes = got.bytes[..2].to_vec();
    let count = |section: &[Rr]| u16::try_from(section.len()).unwrap();
    let [answer, authority, additional] = sections.map(count);
    for word in [0x8000 | flags, 1, answer, authority, additional] {
        bytes.extend(word.to_be_bytes());
    }
    let (class_at, end) = (got.split().0 + 2, got.split().1);
    bytes.extend(&got.bytes[12..end]);
    let class = [got.bytes[class_at], got.bytes[class_at + 1]];
    sections
        .iter()
        .copied()
        .flatten()
        .for_each(|record| bytes.extend(record.bytes(class)));
    bytes
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Got>>>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Got) -> Reply + Send + Sync + 'static) -> Server {
        Server::start_at("127.0.0.1:0", script).await
    }

    pub(crate) async fn start_at(
        at: &str,
        script: impl Fn(&Got) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind(at).await.unwrap();
            // The port may be taken for UDP.
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (Arc::new(udp), tcp);
            }
        };
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), Arc::default());
        let address = tcp.local_addr().unwrap();
        let on_udp = serve_udp(udp, Arc::clone(&script), Arc::clone(&seen));
        let on_tcp = serve_tcp(tcp, script, Arc::clone(&seen));
        Server {
            address,
            seen,
            tasks: [tokio::spawn(on_udp), tokio::spawn(on_tcp)],
        }
    }

    pub(crate) fn seen(&self) -> Vec<Got> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.seen().iter().map(Got::name).collect()
    }
}

type Script = dyn Fn(&Got) -> Reply + Send + Sync;

async fn serve_udp(socket: Arc<UdpSocket>, script: Arc<Script>, seen: Arc<Mutex<Vec<Got>>>) {
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let got = Got {
            bytes: buffer[..length].to_vec(),
            transport: Transport::Udp,
        };
        seen.lock().unwrap().push(got.clone());
        let (reply, socket) = (script(&got), Arc::clone(&socket));
        tokio::spawn(async move {
            for bytes in outcome(reply).await {
                let _ = socket.send_to(&bytes, peer).await;
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, script: Arc<Script>, seen: Arc<Mutex<Vec<Got>>>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            continue;
        };
        let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut bytes = vec![0; length.into()];
                if stream.read_exact(&mut bytes).await.is_err() {
                    return;
                }
                let got = Got {
                    bytes,
                    transport: Transport::Tcp,
                };
                seen.lock().unwrap().push(got.clone());
                for bytes in outcome(script(&got)).await {
                    let length = u16::try_from(bytes.len()).unwrap();
                    let _ = stream
                        .write_all(&[&length.to_be_bytes()[..], &bytes].concat())
                        .await;
                }
            }
        });
    }
}

async fn outcome(reply: Reply) -> Vec<Vec<u8>> {
    match reply {
        Reply::Send(bytes) => vec![bytes],
        Reply::Several(all) => all,
        Reply::Late(after, bytes) => {
            tokio::time::sleep(after).await;
            vec![bytes]
        }
        Reply::Silent => Vec::new(),
    }
}
