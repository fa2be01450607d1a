//! Doors to the parts that read messages and files, for the fuzz targets of `netd-tests`. Not an
//! interface for anybody else.

use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

use super::cache::{Cache, Key};
use super::conf::Settings;
use super::query::{Query, Received};
use super::response::{Reason, Response};
use super::upstream::{self, Checked};
use super::wire::Message;
use super::{Answer, Transport, local, search};

/// What a message from the enclave is.
#[derive(Debug)]
pub enum Heard {
    /// Not answered.
    Nothing,
    /// Answered without looking anything up.
    Refused(Vec<u8>),
    /// To be looked up, or answered as a name of the loopback.
    Asked(Asked),
}

/// A query of the enclave.
#[derive(Debug)]
pub struct Asked(Query);

/// What a name server is sent, and how its answer reaches the enclave.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// How the query came.
    pub transport: Transport,
    /// Whether the name server was asked another name than the enclave's, from the search list.
    pub searched: bool,
    /// How long the answer lay in the cache; `None` if it was not kept.
    pub kept: Option<Duration>,
}

/// Takes a message of the enclave.
pub fn hear(message: &[u8]) -> Heard {
    match Query::receive(message) {
        Received::Nothing => Heard::Nothing,
        Received::Refused(message, _) => Heard::Refused(message),
        Received::Query(query) => Heard::Asked(Asked(query)),
    }
}

/// Reads a resolv.conf: what was read, or what is wrong.
///
/// # Errors
/// As the daemon logs it.
pub fn read_resolv_conf(text: &[u8]) -> Result<String, String> {
    Settings::parse(text)
        .map(|settings| format!("{settings:?}"))
        .map_err(|error| error.to_string())
}

impl Asked {
    /// The answer if the name is one of the loopback's.
    pub fn local(&self, transport: Transport) -> Option<Answer> {
        let response = local::answer(&self.0.question)?;
        Some(Answer::new(&self.0, response, transport, false))
    }

    /// The answer when no name server has one.
    pub fn failed(&self, transport: Transport) -> Answer {
        let response = self
            .0
            .failure(ResponseCode::ServFail, Reason::NoReachableAuthority);
        Answer::new(&self.0, response, transport, true)
    }

    /// The message to a name server, with its identifier.
    pub fn to_name_server(&self, edns: bool) -> (u16, Vec<u8>) {
        upstream::encode(&self.0.ask(), edns)
    }

    /// What the enclave gets when a name server says `reply` to the message with this identifier.
    /// `None` if that is no answer.
    pub fn answered(&self, id: u16, reply: Vec<u8>, way: Way) -> Option<Answer> {
        let ask = self.0.ask();
        let Checked::Answer(message) = upstream::check(reply, id, &ask) else {
            return None;
        };
        let mut response = Response::from_upstream(message).ok()?;
        if let (Some(kept), Some(key)) = (way.kept, Key::of(&ask)) {
            let (mut cache, now) = (Cache::default(), Instant::now());
            cache.insert(key.clone(), &response, now);
            response = cache.get(&key, now + kept).unwrap_or(response);
        }
        if way.searched {
            response = search::alias(&self.0.question, &response).ok()?;
        }
        Some(Answer::new(&self.0, response, way.transport, true))
    }
}

/// Whether the bytes are one message as this service reads it.
pub fn is_message(bytes: &[u8]) -> bool {
    Message::parse(bytes.to_vec()).is_ok_and(|message| message.as_bytes() == bytes)
}
