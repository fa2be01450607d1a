//! DNS messages: queries of the enclave, answers of name servers, and what a hostile host tells the
//! enclave.

use super::Input;
use enclave_netd::fuzzing::read_dns_answer;
use host_netd::dns::fuzzing::{Asked, Heard, Way, hear, is_message};
use host_netd::dns::{Answer, Transport};
use std::time::Duration;

const HEADER: usize = 12;
const QR: u8 = 0x80;
const TC: u8 = 0x02;

/// A byte that chooses, the length of a query, the query, and what a name server says to it: every
/// answer is one whole message, no longer than asked for, that belongs to its query; and the
/// enclave's side takes from it no less than the policy on the host does.
pub fn dns(input: &[u8]) {
    let mut input = Input::new(input);
    let choice = input.byte();
    let transport = if choice & 1 == 0 {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    if choice & 0x80 != 0 {
        learns(input.rest());
        return;
    }
    let length = usize::from(input.word());
    let query = input.take(length % 8192);
    let asked = match hear(query) {
        Heard::Nothing => return,
        Heard::Refused(message) => {
            belongs(query, &message, 512);
            return;
        }
        Heard::Asked(asked) => asked,
    };
    let limit = match (transport, udp_size(query)) {
        (Transport::Tcp, _) => 65_535,
        (Transport::Udp, None) => 512,
        (Transport::Udp, Some(size)) => usize::from(size).clamp(512, 65_000),
    };
    answers(query, &asked.failed(transport), limit);
    if let Some(answer) = asked.local(transport) {
        answers(query, &answer, limit);
    }
    let way = Way {
        transport,
        searched: choice & 2 != 0,
        kept: (choice & 4 != 0).then(|| Duration::from_secs(input.word().into())),
    };
    if let Some(answer) = from_server(&asked, input.rest(), way, choice) {
        answers(query, &answer, limit);
    }
}

fn from_server(asked: &Asked, reply: &[u8], way: Way, choice: u8) -> Option<Answer> {
    let (id, sent) = asked.to_name_server(choice & 8 == 0);
    assert!(is_message(&sent), "a query of ours is none");
    let mut reply = reply.to_vec();
    // Made to fit the query, which no input could guess: its identifier and question.
    if choice & 16 == 0 {
        let question_end = sent.len() - if choice & 8 == 0 { 11 } else { 0 };
        let body = reply.split_off(reply.len().min(HEADER));
        reply.resize(HEADER, 0);
        reply[..2].copy_from_slice(&id.to_be_bytes());
        reply[2] |= QR;
        reply[2] &= !0x78;
        reply[4..6].copy_from_slice(&[0, 1]);
        reply.extend(&sent[HEADER..question_end]);
        reply.extend(body);
    }
    asked.answered(id, reply, way)
}

fn answers(query: &[u8], answer: &Answer, limit: usize) {
    belongs(query, &answer.message, limit);
    let question = question_end(query).expect("was looked up");
    assert_eq!(
        answer.message.get(HEADER..question),
        Some(&query[HEADER..question]),
        "the question is not as it was written"
    );
    let Some(resolved) = &answer.resolved else {
        return;
    };
    assert!(!resolved.addresses.is_empty());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_cut = answer.message[2] & TC != 0;
    // What the enclave's guard cannot name, or does not see whole, it does not learn.
    if is_cut || !resolved.name.bytes().all(plain) || answer.message[3] & 0x0f != 0 {
        return;
    }
    let taken = read_dns_answer(&answer.message);
    let (name, addresses) = taken.expect("the enclave learns what the host does");
    assert_eq!(name, resolved.name.trim_matches('.'));
    let known = |address| addresses.contains(address) || addresses.len() == 64;
    assert!(resolved.addresses.iter().all(known));
}

/// `message` is whole and a response to `query`.
fn belongs(query: &[u8], message: &[u8], limit: usize) {
    assert!(message.len() <= limit, "{} bytes", message.len());
    assert!(is_message(message), "no message: {message:x?}");
    assert_eq!(message[..2], query[..2], "another identifier");
    assert!(message[2] & QR != 0, "no response");
    assert_eq!(message[2] & 0x79, query[2] & 0x79, "opcode or RD differ");
}

/// The enclave reads an answer of a hostile host.
fn learns(message: &[u8]) {
    let Some((name, addresses)) = read_dns_answer(message) else {
        return;
    };
    assert!(name.len() <= 253);
    assert!((1..=64).contains(&addresses.len()));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    assert!(name.bytes().all(plain));
    assert_eq!(name, name.to_ascii_lowercase());
}

/// Where the question of a message ends.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 5),
            length => at += 1 + usize::from(length),
        }
    }
}

/// The UDP size of a query's OPT record, which is the first record that has no name and type 41.
fn udp_size(query: &[u8]) -> Option<u16> {
    let mut at = question_end(query)?;
    loop {
        while *query.get(at)? != 0 && *query.get(at)? < 0xc0 {
            at += 1 + usize::from(query[at]);
        }
        at += if query[at] == 0 { 1 } else { 2 };
        let fixed: &[u8; 10] = query.get(at..)?.first_chunk()?;
        if fixed[..2] == [0, 41] {
            return Some(u16::from_be_bytes([fixed[2], fixed[3]]));
        }
        at += 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    }
}
