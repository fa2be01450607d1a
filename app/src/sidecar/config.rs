//! Settings: a file in JSON, and environment variables that win over it.
//!
//! Both are read into one JSON object, which is parsed and checked once: a setting has one name, one
//! type and one check wherever it comes from. The variable of `idle_seconds` is
//! `SIDECAR_IDLE_SECONDS`; lists are separated by commas.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::destination::Allowed;
use super::target::PlainHttp;
use crate::error::Failure;
use crate::limits::net as limits;
use crate::net::tls::{Oldest, Roots};

const PREFIX: &str = "SIDECAR_";

/// Settings that are text, numbers, and lists, for the variables.
const TEXTS: [&str; 4] = ["listen", "plain_http", "tls_oldest", "roots"];
const NUMBERS: [&str; 8] = [
    "attempts",
    "backoff_milliseconds",
    "connect_seconds",
    "answer_seconds",
    "idle_seconds",
    "connections",
    "tunnels",
    "kept_per_host",
];
const LISTS: [&str; 1] = ["allow"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    listen: SocketAddr,
    allow: Vec<String>,
    plain_http: PlainHttp,
    tls_oldest: Oldest,
    roots: Option<String>,
    attempts: u32,
    backoff_milliseconds: u64,
    connect_seconds: u64,
    answer_seconds: u64,
    idle_seconds: u64,
    connections: usize,
    tunnels: usize,
    kept_per_host: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            listen: SocketAddr::from(([0; 16], 8080)),
            allow: vec!["*".to_owned()],
            plain_http: PlainHttp::Refuse,
            tls_oldest: Oldest::Tls13,
            roots: None,
            attempts: 3,
            backoff_milliseconds: 100,
            connect_seconds: limits::CONNECT_TIME.as_secs(),
            answer_seconds: 60,
            idle_seconds: 120,
            connections: limits::CONNECTIONS,
            tunnels: 256,
            kept_per_host: 32,
        }
    }
}

/// Settings that were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) listen: SocketAddr,
    pub(super) allow: Allowed,
    pub(super) plain_http: PlainHttp,
    pub(super) tls_oldest: Oldest,
    pub(super) roots: Roots,
    /// How often a safe request is tried in all.
    pub(super) attempts: u32,
    /// The longest wait before the second attempt; it doubles with each.
    pub(super) backoff: Duration,
    pub(super) connect_time: Duration,
    /// From the request to the headers of its answer.
    pub(super) answer_time: Duration,
    /// How long a body or a tunnel may stand still.
    pub(super) idle_time: Duration,
    pub(super) connections: usize,
    pub(super) tunnels: usize,
    /// Idle connections that are kept for the next request, of each host.
    pub(super) kept_per_host: usize,
}

impl Config {
    /// Reads the file, if there is one, and the environment.
    ///
    /// # Errors
    /// The setting that is wrong, where it stands, and what it may be.
    pub(super) fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, Failure> {
        let mut settings = match file {
            None => Map::new(),
            Some(path) => {
                let place = path.display();
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Failure::usage(format!("cannot read {place}: {error}")))?;
                // By itself first: an error then tells the line.
                serde_json::from_str::<Raw>(&text)
                    .and_then(|_| serde_json::from_str(&text))
                    .map_err(|error| Failure::usage(format!("{place}: {error}")))?
            }
        };
        for (name, value) in environment {
            let Some(key) = name.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else {
                continue;
            };
            let value = from_environment(&key, &value)
                .map_err(|wrong| Failure::usage(format!("{name}={value:?}: {wrong}")))?;
            settings.insert(key.clone(), value);
            // With the others it was good: what is wrong now is this one.
            serde_json::from_value::<Raw>(Value::Object(settings.clone()))
                .map_err(|error| Failure::usage(format!("{name}: {error}")))?;
        }
        serde_json::from_value::<Raw>(Value::Object(settings))
            .map_err(|error| error.to_string())
            .and_then(Config::check)
            .map_err(Failure::usage)
    }

    fn check(raw: Raw) -> Result<Config, String> {
        let within = |key: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(value)
            } else {
                Err(format!("{key} is {value}; it may be {least} to {most}"))
            }
        };
        let seconds = |key, value| within(key, value, 1, 3600).map(Duration::from_secs);
        let count = |key, value: usize, most| within(key, value as u64, 1, most).map(|_| value);
        within("attempts", raw.attempts.into(), 1, 10)?;
        Ok(Config {
            listen: raw.listen,
            allow: Allowed::parse(&raw.allow).map_err(|wrong| format!("allow: {wrong}"))?,
            plain_http: raw.plain_http,
            tls_oldest: raw.tls_oldest,
            roots: match &raw.roots {
                None => Roots::default(),
                Some(text) => text
                    .parse()
                    .map_err(|wrong| format!("roots is {text:?}; it {wrong}"))?,
            },
            attempts: raw.attempts,
            backoff: within("backoff_milliseconds", raw.backoff_milliseconds, 1, 10_000)
                .map(Duration::from_millis)?,
            connect_time: seconds("connect_seconds", raw.connect_seconds)?,
            answer_time: seconds("answer_seconds", raw.answer_seconds)?,
            idle_time: seconds("idle_seconds", raw.idle_seconds)?,
            connections: count("connections", raw.connections, 10_000)?,
            tunnels: count("tunnels", raw.tunnels, 10_000)?,
            kept_per_host: count("kept_per_host", raw.kept_per_host, 1_000)?,
        })
    }
}

/// A variable's value as JSON.
fn from_environment(key: &str, text: &str) -> Result<Value, String> {
    if TEXTS.contains(&key) {
        Ok(Value::from(text))
    } else if NUMBERS.contains(&key) {
        text.trim()
            .parse::<u64>()
            .map(Value::from)
            .map_err(|_| "is no number".to_owned())
    } else if LISTS.contains(&key) {
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        Ok(items.map(Value::from).collect())
    } else {
        Err("there is no such setting".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    fn read(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let place = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(place.path(), file).unwrap();
        let variables = environment
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Config::read(Some(place.path()), variables).map_err(|failure| failure.why)
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let file = r#"{"allow": ["a.example"], "attempts": 5, "tls_oldest": "1.2"}"#;
        let config = read(file, &[("SIDECAR_ATTEMPTS", "7"), ("PATH", "/bin")]).unwrap();
        assert_eq!(config.attempts, 7);
        assert_eq!(config.tls_oldest, Oldest::Tls12);
        assert_eq!(
            config.allow,
            Allowed::parse(&["a.example".to_owned()]).unwrap()
        );
        assert_eq!(config.idle_time, Duration::from_secs(120));
        let list = [
            ("SIDECAR_ALLOW", "a.example, b.example:80,"),
            ("SIDECAR_ROOTS", "built-in"),
        ];
        let config = read("{}", &list).unwrap();
        let both = ["a.example".to_owned(), "b.example:80".to_owned()];
        assert_eq!(config.allow, Allowed::parse(&both).unwrap());
        assert_eq!(config.roots, Roots::BuiltIn);
    }

    #[test]
    fn every_setting_has_a_variable() {
        let mut known: Vec<_> = TEXTS.into_iter().chain(NUMBERS).chain(LISTS).collect();
        known.sort_unstable();
        let error = serde_json::from_str::<Raw>(r#"{"": 1}"#)
            .unwrap_err()
            .to_string();
        let list = error.split("expected one of ").nth(1).unwrap();
        let list = list.split(" at line").next().unwrap();
        let mut all: Vec<_> = list
            .split(", ")
            .map(|name| name.trim_matches('`'))
            .collect();
        all.sort_unstable();
        assert_eq!(known, all);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (file, variable, named) in [
            (r#"{"alow": []}"#, None, "alow"),
            (r#"{"attempts": "3"}"#, None, "string \"3\""),
            (r#"{"attempts": 0}"#, None, "attempts is 0"),
            (r#"{"idle_seconds": 9999}"#, None, "1 to 3600"),
            (r#"{"allow": ["10.0.0"]}"#, None, "\"10.0.0\" is no rule"),
            (r#"{"tls_oldest": "1.1"}"#, None, "1.1"),
            ("{", None, "EOF"),
            ("{}", Some(("SIDECAR_ALOW", "*")), "SIDECAR_ALOW"),
            ("{}", Some(("SIDECAR_ATTEMPTS", "many")), "is no number"),
            ("{}", Some(("SIDECAR_LISTEN", "8080")), "SIDECAR_LISTEN"),
            ("{}", Some(("SIDECAR_PLAIN_HTTP", "yes")), "refuse"),
        ] {
            let environment: Vec<_> = variable.into_iter().collect();
            let why = read(file, &environment).unwrap_err();
            assert!(why.contains(named), "{file} {variable:?}: {why}");
        }
    }
}
