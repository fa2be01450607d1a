//! A DNS server that lies, fails or stays silent as it is told.

use crate::machine::Machine;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const HEADER: usize = 12;

/// What a [`FakeDns`] says to every question.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These addresses, of the family that was asked for, with this TTL.
    Addresses(Vec<IpAddr>, u32),
    /// This response code and nothing else: 2 is SERVFAIL, 3 NXDOMAIN, 5 REFUSED.
    Code(u8),
    /// Nothing.
    Silence,
}

/// A DNS server over UDP.
#[derive(Debug)]
pub struct FakeDns {
    answer: Arc<Mutex<Answer>>,
    questions: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDns {
    /// Serves on port 53 of an address of a machine.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn new(machine: &Machine, address: IpAddr, answer: Answer) -> FakeDns {
        let at = SocketAddr::new(address, 53);
        let socket = machine
            .inside(|| UdpSocket::bind(at))
            .expect("port 53 is free");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let answer = Arc::new(Mutex::new(answer));
        let questions = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = (
            Arc::clone(&answer),
            Arc::clone(&questions),
            Arc::clone(&stop),
        );
        let thread = thread::spawn(move || {
            let (answer, questions, stop) = theirs;
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                questions.fetch_add(1, Ordering::Relaxed);
                let answer = answer.lock().unwrap().clone();
                if let Some(reply) = reply(&buffer[..n], &answer) {
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        FakeDns {
            answer,
            questions,
            stop,
            thread: Some(thread),
        }
    }

    /// Says something else from now on.
    pub fn say(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// How often it was asked.
    pub fn questions(&self) -> usize {
        self.questions.load(Ordering::Relaxed)
    }
}

impl Drop for FakeDns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The reply to a question, RFC 1035.
fn reply(question: &[u8], answer: &Answer) -> Option<Vec<u8>> {
    let mut end = HEADER;
    while *question.get(end)? != 0 {
        end += 1 + usize::from(question[end]);
    }
    let kind = u16::from_be_bytes(question.get(end + 1..end + 3)?.try_into().ok()?);
    let asked = question.get(HEADER..end + 5)?;
    let (code, addresses, ttl) = match answer {
        Answer::Silence => return None,
        Answer::Code(code) => (*code, &[][..], 0),
        Answer::Addresses(addresses, ttl) => (0, &addresses[..], *ttl),
    };
    let records: Vec<Vec<u8>> = (addresses.iter())
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(address), 1) => Some(address.octets().to_vec()),
            (IpAddr::V6(address), 28) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let count = u16::try_from(records.len()).ok()?;
    let mut out = question[..2].to_vec();
    out.extend([0x81, 0x80 | code, 0, 1]);
    out.extend(count.to_be_bytes());
    out.extend([0; 4]);
    out.extend(asked);
    for record in records {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out.extend(ttl.to_be_bytes());
        out.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
        out.extend(record);
    }
    Some(out)
}
