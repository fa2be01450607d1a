//! The parent's resolv.conf: what is taken from it, and how its changes are noticed.
//!
//! Read as glibc reads it (resolv.conf(5)): the last of `domain` and `search` counts, unknown
//! directives and options are passed over, numbers are capped. Two differences: without a name
//! server nothing is assumed to run on 127.0.0.1, and without a search list none is made up from
//! the host's name.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tracing::warn;

use super::limits;
use super::name::Name;

const DNS_PORT: u16 = 53;

/// Why a resolv.conf cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error(
        "longer than {} bytes; is it a resolv.conf?",
        limits::RESOLV_CONF_BYTES
    )]
    TooLong,
    #[error("names no usable name server; add a line `nameserver ADDRESS`")]
    NoNameServer,
}

/// How names are looked up. `servers` is never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<Name>,
    pub(super) timeout: Duration,
    pub(super) attempts: u32,
    pub(super) ndots: usize,
    pub(super) rotate: bool,
}

impl Settings {
    pub(super) fn parse(text: &[u8]) -> Result<Settings, ConfError> {
        let mut settings = Settings {
            servers: Vec::new(),
            search: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            ndots: 1,
            rotate: false,
        };
        for line in text.split(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            let mut words = line
                .split(['#', ';'])
                .next()
                .unwrap_or_default()
                .split_whitespace();
            match words.next() {
                Some("nameserver") => match words.next().and_then(name_server) {
                    Some(_) if settings.servers.len() == limits::NAME_SERVERS => {}
                    Some(server) => settings.servers.push(server),
                    None => warn!(%line, "resolv.conf: not the address of a name server"),
                },
                Some("domain") => settings.search = search(words.take(1)),
                Some("search") => settings.search = search(words),
                Some("options") => words.for_each(|option| settings.option(option)),
                _ => {}
            }
        }
        if settings.servers.is_empty() {
            return Err(ConfError::NoNameServer);
        }
        Ok(settings)
    }

    fn option(&mut self, option: &str) {
        let (key, value) = option.split_once(':').unwrap_or((option, ""));
        let number = value.parse::<u32>().ok();
        match (key, number) {
            ("timeout", Some(seconds)) => {
                self.timeout = Duration::from_secs(seconds.max(1).into()).min(limits::TIMEOUT);
            }
            ("attempts", Some(attempts)) => self.attempts = attempts.clamp(1, limits::ATTEMPTS),
            ("ndots", Some(dots)) => {
                self.ndots = usize::try_from(dots)
                    .unwrap_or(limits::NDOTS)
                    .min(limits::NDOTS);
            }
            ("rotate", _) => self.rotate = true,
            _ => {}
        }
    }
}

fn search<'a>(words: impl Iterator<Item = &'a str>) -> Vec<Name> {
    let domains = words.filter_map(|word| match Name::from_text(word) {
        // `search .` means the name as it is, which is asked in any case.
        Some(name) => Some(name).filter(|name| !name.is_root()),
        None => {
            warn!(domain = word, "resolv.conf: not a search domain");
            None
        }
    });
    domains.take(limits::SEARCH_DOMAINS).collect()
}

/// An address as in `192.0.2.1`, `2001:db8::1`, `fe80::1%eth0` or `fe80::1%2`.
fn name_server(word: &str) -> Option<SocketAddr> {
    let Some((address, scope)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, DNS_PORT));
    };
    let scope = scope
        .parse()
        .or_else(|_| nix::net::if_::if_nametoindex(scope))
        .ok()?;
    let address = address.parse::<Ipv6Addr>().ok()?;
    Some(SocketAddr::V6(SocketAddrV6::new(
        address, DNS_PORT, 0, scope,
    )))
}

/// Tells one state of a file from another. Symbolic links are followed, so a new target counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(path: &Path) -> io::Result<Version> {
        let meta = fs::metadata(path)?;
        Ok(Version {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Follows one resolv.conf.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The state last read; `None` if there was no file.
    seen: Option<Version>,
    started: bool,
}

impl Watch {
    /// The settings, or why there are none, if the file is another than at the last call.
    pub(super) fn changed(&mut self, path: &Path) -> Option<Result<Settings, ConfError>> {
        // Taken before reading: a change in between is then seen as one more.
        let version = Version::of(path);
        let seen = version.as_ref().ok().copied();
        if self.started && seen == self.seen {
            return None;
        }
        (self.seen, self.started) = (seen, true);
        Some(version.map_err(ConfError::from).and_then(|_| read(path)))
    }
}

fn read(path: &Path) -> Result<Settings, ConfError> {
    let mut text = Vec::new();
    File::open(path)?
        .take(limits::RESOLV_CONF_BYTES + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > limits::RESOLV_CONF_BYTES {
        return Err(ConfError::TooLong);
    }
    Settings::parse(&text)
}
