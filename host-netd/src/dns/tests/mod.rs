//! The service against scripted name servers on the loopback.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod answers;
mod bounds;
mod cache;
mod conf;
mod edns;
mod failures;
mod local;
mod search;
mod server;
mod stream;

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Record, RecordType};

use super::conf::Settings;
use super::limits;
use super::name::Name;
use super::{Answer, Dns, Transport};
pub(crate) use server::{NAME, Reply, Rr, Server, message, name, reply};

pub(crate) fn settings(servers: &[&Server]) -> Settings {
    settings_at(
        &servers
            .iter()
            .map(|server| server.address)
            .collect::<Vec<_>>(),
    )
}

pub(crate) fn settings_at(servers: &[SocketAddr]) -> Settings {
    Settings {
        servers: servers.to_vec(),
        search: Vec::new(),
        timeout: Duration::from_secs(2),
        attempts: 2,
        ndots: 1,
        rotate: false,
    }
}

pub(crate) fn searching(server: &Server, domains: &[&str]) -> Settings {
    let search = domains
        .iter()
        .map(|domain| Name::from_text(domain).unwrap())
        .collect();
    Settings {
        search,
        ..settings(&[server])
    }
}

pub(crate) fn dns(settings: Settings) -> Dns {
    let dns = Dns::new(limits::UPSTREAM_SOCKETS);
    dns.service.apply("test".as_ref(), Ok(settings));
    dns
}

/// A query as a stub resolver writes it.
pub(crate) struct Q {
    pub(crate) name: Vec<u8>,
    pub(crate) rtype: u16,
    pub(crate) class: u16,
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// UDP size, version, DO, options.
    pub(crate) opt: Option<(u16, u8, bool, Vec<u8>)>,
}

pub(crate) fn q(text: &str, rtype: impl Into<u16>) -> Q {
    Q {
        name: name(text),
        rtype: rtype.into(),
        class: 1,
        id: 0x1234,
        flags: 0x0100,
        opt: None,
    }
}

impl Q {
    pub(crate) fn edns(mut self, size: u16) -> Q {
        self.opt = Some((size, 0, false, Vec::new()));
        self
    }

    pub(crate) fn dnssec_ok(mut self) -> Q {
        self.opt.get_or_insert((1_232, 0, false, Vec::new())).2 = true;
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [self.id, self.flags, 1, 0, 0, self.opt.is_some().into()] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(&self.name);
        bytes.extend(self.rtype.to_be_bytes());
        bytes.extend(self.class.to_be_bytes());
        if let Some((size, version, dnssec_ok, options)) = &self.opt {
            bytes.extend([0, 0, 41]);
            bytes.extend(size.to_be_bytes());
            bytes.extend([0, *version, if *dnssec_ok { 0x80 } else { 0 }, 0]);
            bytes.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
            bytes.extend(options);
        }
        bytes
    }
}

pub(crate) async fn ask(dns: &Dns, q: &Q) -> Message {
    ask_over(dns, q, Transport::Udp).await.1
}

pub(crate) async fn ask_over(dns: &Dns, q: &Q, transport: Transport) -> (Answer, Message) {
    let answer = dns.answer(&q.bytes(), transport).await.expect("an answer");
    let message = Message::from_vec(&answer.message).expect("hickory can read it");
    (answer, message)
}

pub(crate) fn rcode(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

pub(crate) fn types(records: &[Record]) -> Vec<RecordType> {
    records.iter().map(Record::record_type).collect()
}

/// The extended error (RFC 8914) of an answer.
pub(crate) fn extended_error(answer: &Answer) -> Option<u16> {
    let at = answer
        .message
        .windows(4)
        .rposition(|window| window == [0, 15, 0, 2])?;
    super::wire::u16_at(&answer.message, at + 4)
}
