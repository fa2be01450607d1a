//! What is said on the admin socket; docs/admin.md describes it.
//!
//! Server and client may be of different releases: both ignore keys that they do not know, and a
//! client takes what is missing as its default.

use crate::listen::Peer;
use netd_proto::address::Cid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// What all enclaves do, and did.
    Status,
    /// The lines of an enclave's log.
    Logs {
        /// Which enclave.
        #[serde(flatten)]
        of: Which,
        /// Go on until the enclave has ended.
        #[serde(default)]
        follow: bool,
        /// The number of the first line wanted.
        #[serde(default)]
        from: u64,
    },
    /// How an enclave's program ends.
    Wait {
        /// Which enclave.
        #[serde(flatten)]
        of: Which,
    },
}

/// Which run of which enclave is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// The enclave.
    pub cid: Name,
    /// The beginning of its session's id; the newest session unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// What an enclave is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NameText", into = "NameText")]
pub enum Name {
    /// By its CID.
    Cid(u32),
    /// It came by a unix socket that is no enclave's in particular.
    Unix,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum NameText {
    Number(u32),
    Text(String),
}

/// The text names no enclave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no enclave: write its CID, a number, or 'unix' for one that came by the unix socket"
)]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        match text {
            "unix" => Ok(Name::Unix),
            _ => (text.parse().map(Name::Cid)).map_err(|_| NameError(text.to_owned())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Cid(cid) => write!(f, "{cid}"),
            Name::Unix => f.write_str("unix"),
        }
    }
}

impl TryFrom<NameText> for Name {
    type Error = NameError;

    fn try_from(text: NameText) -> Result<Name, NameError> {
        match text {
            NameText::Number(cid) => Ok(Name::Cid(cid)),
            NameText::Text(text) => text.parse(),
        }
    }
}

impl From<Name> for NameText {
    fn from(name: Name) -> NameText {
        match name {
            Name::Cid(cid) => NameText::Number(cid),
            Name::Unix => NameText::Text(name.to_string()),
        }
    }
}

impl From<Peer> for Name {
    fn from(peer: Peer) -> Name {
        match peer {
            Peer::Enclave(Cid(cid)) => Name::Cid(cid),
            Peer::Unix => Name::Unix,
        }
    }
}

/// One line of an answer: one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is a type with its own")]
pub struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<Line>,
    /// So many lines are missing here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// The enclave went without telling how its program ended; why the link ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<String>,
    /// What is wrong with the request, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The answer to [`Request::Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// host-netd's.
    pub version: String,
    /// The one that came last comes first.
    pub enclaves: Vec<Enclave>,
}

/// One run of an enclave. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enclave {
    /// Which enclave.
    pub cid: Name,
    /// Which run of it: the same on all its links.
    #[serde(default)]
    pub session: String,
    /// Whether there is a link.
    #[serde(default)]
    pub connected: bool,
    /// When its first link came.
    #[serde(default)]
    pub since: String,
    /// Seconds from then until now, or until it went.
    #[serde(default)]
    pub uptime: u64,
    /// When and why the last link ended, if there is none.
    #[serde(default)]
    pub gone: Option<Gone>,
    /// Of the link, or the last one.
    #[serde(default)]
    pub link: Link,
    /// What it did and holds.
    #[serde(default)]
    pub figures: Figures,
    /// Its log.
    #[serde(default)]
    pub log: Log,
    /// How its program ended, if it told.
    #[serde(default)]
    pub exit: Option<Exit>,
}

/// The end of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "they say it themselves")]
pub struct Gone {
    pub at: String,
    pub why: String,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// How many links this run had.
    pub count: u64,
    /// Who is at the other end.
    pub peer: String,
    /// What both sides can do.
    pub features: String,
    /// The enclave's addresses.
    pub addresses: Vec<String>,
}

/// What a run did on all its links, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// How old they are, in milliseconds.
    pub age_ms: u64,
    /// The session's thread did not answer in time: they are from before.
    pub late: bool,
    /// Open flows, all protocols together.
    pub flows: usize,
    /// Flows that were opened.
    pub flows_opened: u64,
    /// Connects that are not answered.
    pub dials: usize,
    /// UDP mappings and echo flows.
    pub mappings: usize,
    /// Clients of published ports whom the enclave has not answered.
    pub half_open: usize,
    /// DNS queries that are not answered.
    pub dns_queries: usize,
    /// DNS queries over UDP.
    pub dns_asked: u64,
    /// Bytes of buffers in use.
    pub ring_memory: usize,
    /// What came from the enclave.
    pub from_enclave: Traffic,
    /// What went there.
    pub to_enclave: Traffic,
    /// Drops, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "they say it themselves")]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

/// Where a log stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// The number of the line that is due.
    pub next: u64,
    /// Lines that never came.
    pub lost: u64,
    /// The newest; its text may be cut.
    pub last: Option<Line>,
}

/// A line of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    /// Lines of this run before it.
    pub number: u64,
    /// `netd`, `stdout` or `stderr`.
    pub source: String,
    /// When host-netd got it.
    pub time: String,
    /// Without control characters but tabs.
    pub text: String,
}

/// The end of an answer to [`Request::Logs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// The number from which on to ask again.
    pub next: u64,
    /// Why the enclave has ended, if it was followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How an enclave's program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exit {
    /// As a shell has it.
    pub status: u8,
    /// In words.
    pub text: String,
}

impl From<netd_proto::report::Exit> for Exit {
    fn from(exit: netd_proto::report::Exit) -> Exit {
        Exit {
            status: exit.status(),
            text: exit.to_string(),
        }
    }
}

impl Answer {
    /// What is wrong with a request.
    pub(super) fn error(text: impl Into<String>) -> Answer {
        Answer {
            error: Some(text.into()),
            ..Answer::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<Request, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn requests_are_read_also_with_keys_of_a_later_release() {
        assert_eq!(
            request(r#"{"command":"status","x":[1]}"#),
            Ok(Request::Status)
        );
        let of = |cid| Which { cid, session: None };
        let logs = request(r#"{"command":"logs","cid":16,"follow":true,"from":7,"x":1}"#);
        let expected = Request::Logs {
            of: of(Name::Cid(16)),
            follow: true,
            from: 7,
        };
        assert_eq!(logs, Ok(expected));
        let wait = request(r#"{"command":"wait","cid":"unix"}"#);
        assert_eq!(wait, Ok(Request::Wait { of: of(Name::Unix) }));
    }

    #[test]
    fn what_is_no_request_is_named() {
        for (text, what) in [
            (r#"{"command":"stop"}"#, "`status`, `logs`, `wait`"),
            (r#"{"cid":16}"#, "command"),
            (r#"{"command":"wait"}"#, "cid"),
            (r#"{"command":"wait","cid":"x"}"#, "write its CID"),
            (r#"{"command":"logs","cid":16,"from":-1}"#, "-1"),
            ("status", "expected"),
        ] {
            let error = request(text).expect_err(text);
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn an_answer_of_another_release_is_read() {
        let text = r#"{"status":{"enclaves":[{"cid":16,"colour":"red"}]},"more":1}"#;
        let answer: Answer = serde_json::from_str(text).expect("read");
        let enclaves = answer.status.expect("there").enclaves;
        assert_eq!(enclaves[0].cid, Name::Cid(16));
    }
}
