//! Configuration: a TOML file, parsed once into types that are valid by themselves.
//!
//! Every key has a default, so no file is needed. What matters in the enclave comes from here,
//! that is from the enclave's own image; nothing is taken from the parent.

use crate::limits::{
    MAX_CONFIG, MAX_MTU, MAX_QUEUE_LENGTH, MAX_SEARCH, MIN_MTU, MTU, QUEUE_LENGTH,
};
use crate::ports::Published;
use netd_proto::address::{Cid, DEFAULT_PORT, LinkAddress};
use netd_proto::policy::Rule;
use serde::Deserialize;
use std::fmt::{self, Display};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};
use thiserror::Error;

mod program;

pub(crate) use program::{LogSettings, Program, User};

/// What is wrong with the configuration.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {path}: {source}; give an existing file with --config, or none")]
    Read { path: PathBuf, source: io::Error },
    #[error("line {line}: {message}")]
    Syntax { line: usize, message: String },
    #[error("{key} = {value}: {allowed}")]
    Value {
        key: String,
        value: String,
        allowed: String,
    },
    #[error(
        "[{0}] is for `enclave-netd init`, which starts the program itself: run `enclave-netd init \
         --config FILE`, or take the table out and give the command after --"
    )]
    Misplaced(&'static str),
    #[error("program.command is missing: name the program to run, such as [\"/usr/bin/server\"]")]
    NoProgram,
}

impl ConfigError {
    fn value(key: &str, value: impl fmt::Debug, allowed: impl Display) -> Self {
        let value = format!("{value:?}");
        ConfigError::Value {
            key: key.to_owned(),
            value,
            allowed: allowed.to_string(),
        }
    }
}

/// All settings, valid.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) parent: LinkAddress,
    pub(crate) network: Network,
    pub(crate) dns: Dns,
    pub(crate) publish: Published,
    pub(crate) rules: Vec<Rule>,
    /// What `enclave-netd init` runs.
    pub(crate) program: Option<Program>,
    /// `None` where the file does not speak of it.
    pub(crate) log: Option<LogSettings>,
}

/// The tun device and its addresses.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) interface: String,
    pub(crate) mtu: u16,
    /// In packets.
    pub(crate) queue_length: u32,
    pub(crate) v4: Family<Ipv4Addr>,
    pub(crate) v6: Family<Ipv6Addr>,
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family<A> {
    pub(crate) address: A,
    /// Bits of the network.
    pub(crate) prefix: u8,
    pub(crate) gateway: A,
    pub(crate) parent_loopback: A,
}

/// What is written to resolv.conf.
#[derive(Clone, Debug)]
pub(crate) struct Dns {
    /// `None`: leave it alone.
    pub(crate) resolv_conf: Option<PathBuf>,
    pub(crate) search: Vec<String>,
}

impl Config {
    /// Reads `path`, or takes the defaults without one.
    ///
    /// # Errors
    /// See [`ConfigError`]; the message is one line.
    pub(crate) fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        match path {
            Some(path) => Config::parse(&Config::read(path)?),
            None => Config::parse(""),
        }
    }

    /// The text of the file `path`.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
        let mut text = String::new();
        fs::File::open(path)
            .and_then(|file| file.take(MAX_CONFIG).read_to_string(&mut text))
            .map_err(|source| ConfigError::Read {
                path: path.into(),
                source,
            })?;
        Ok(text)
    }

    /// # Errors
    /// See [`ConfigError`].
    pub(crate) fn parse(text: &str) -> Result<Config, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text[..at].matches('\n').count() + 1;
            let source = text.lines().nth(line - 1).unwrap_or_default().trim();
            let message = error.message().replace('\n', " ");
            ConfigError::Syntax {
                line,
                message: format!("'{source}': {message}"),
            }
        })?;
        Config::try_from(raw)
    }

    /// For those who are given a command, or none, instead of a program.
    ///
    /// # Errors
    /// There is a table of `enclave-netd init` in it.
    pub(crate) fn without_program(self) -> Result<Config, ConfigError> {
        match self {
            Config {
                program: Some(_), ..
            } => Err(ConfigError::Misplaced("program")),
            Config { log: Some(_), .. } => Err(ConfigError::Misplaced("log")),
            config => Ok(config),
        }
    }

    /// The program to run.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn program(&self) -> Result<&Program, ConfigError> {
        self.program.as_ref().ok_or(ConfigError::NoProgram)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    parent: String,
    network: RawNetwork,
    dns: RawDns,
    publish: Vec<String>,
    rules: Vec<String>,
    program: Option<program::RawProgram>,
    log: Option<LogSettings>,
}

impl Default for RawConfig {
    fn default() -> Self {
        RawConfig {
            parent: LinkAddress::Vsock(Cid::PARENT, DEFAULT_PORT).to_string(),
            network: RawNetwork::default(),
            dns: RawDns::default(),
            publish: Vec::new(),
            rules: Vec::new(),
            program: None,
            log: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNetwork {
    interface: String,
    mtu: i64,
    queue_length: i64,
    address: String,
    gateway: String,
    parent_loopback: String,
    address6: String,
    gateway6: String,
    parent_loopback6: String,
}

impl Default for RawNetwork {
    fn default() -> Self {
        RawNetwork {
            interface: "netd0".into(),
            mtu: MTU.into(),
            queue_length: QUEUE_LENGTH.into(),
            address: "100.64.0.2/30".into(),
            gateway: "100.64.0.1".into(),
            parent_loopback: "100.64.0.3".into(),
            address6: "fd00:6e65:7464::2/64".into(),
            gateway6: "fd00:6e65:7464::1".into(),
            parent_loopback6: "fd00:6e65:7464::3".into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDns {
    resolv_conf: RawPath,
    search: Vec<String>,
}

impl Default for RawDns {
    fn default() -> Self {
        RawDns {
            resolv_conf: RawPath::Path("/etc/resolv.conf".into()),
            search: Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a path in quotes, or false")]
enum RawPath {
    Switch(bool),
    Path(PathBuf),
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, Self::Error> {
        Ok(Config {
            parent: parse_parent("parent", &raw.parent)?,
            network: Network::try_from(raw.network)?,
            dns: Dns::try_from(raw.dns)?,
            publish: Published::parse(&raw.publish).map_err(|wrong| {
                ConfigError::value("publish", wrong, "PORT, PORT/tcp or PORT/udp")
            })?,
            rules: raw
                .rules
                .iter()
                .map(|rule| parse("rules", rule))
                .collect::<Result<_, _>>()?,
            program: raw.program.map(Program::try_from).transpose()?,
            log: raw.log,
        })
    }
}

/// The address of the parent, from the file or the command line.
pub(crate) fn parse_parent(key: &str, text: &str) -> Result<LinkAddress, ConfigError> {
    let address = parse(key, text)?;
    match address {
        LinkAddress::Vsock(Cid::ANY, _) => Err(ConfigError::value(
            key,
            text,
            "'any' is for listening; the parent's CID is 3",
        )),
        address => Ok(address),
    }
}

impl TryFrom<RawNetwork> for Network {
    type Error = ConfigError;

    fn try_from(raw: RawNetwork) -> Result<Self, Self::Error> {
        let key = |name: &str| format!("network.{name}");
        if !is_interface_name(&raw.interface) {
            let allowed = "an interface name has 1 to 15 letters, digits, '-', '_' or '.'";
            return Err(ConfigError::value(
                &key("interface"),
                raw.interface,
                allowed,
            ));
        }
        let mtu = in_range(&key("mtu"), raw.mtu, MIN_MTU, MAX_MTU)?;
        let queue_length = in_range(&key("queue_length"), raw.queue_length, 1, MAX_QUEUE_LENGTH)?;
        let v4 = family("", &raw.address, &raw.gateway, &raw.parent_loopback, 32)?;
        let v6 = family(
            "6",
            &raw.address6,
            &raw.gateway6,
            &raw.parent_loopback6,
            128,
        )?;
        Ok(Network {
            interface: raw.interface,
            mtu,
            queue_length,
            v4,
            v6,
        })
    }
}

fn is_interface_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=15).contains(&name.len()) && name.chars().all(allowed) && name.trim_matches('.') == name
}

fn in_range<T>(key: &str, value: i64, first: T, last: T) -> Result<T, ConfigError>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    match T::try_from(value) {
        Ok(number) if first <= number && number <= last => Ok(number),
        _ => Err(ConfigError::value(
            key,
            value,
            format!("a number from {first} to {last}"),
        )),
    }
}

fn family<A>(
    suffix: &str,
    address: &str,
    gateway: &str,
    parent_loopback: &str,
    bits: u8,
) -> Result<Family<A>, ConfigError>
where
    A: FromStr<Err: Display> + Into<IpAddr> + Copy + PartialEq + Display,
{
    let key = |name: &str| format!("network.{name}{suffix}");
    let (host, prefix) = address.split_once('/').unwrap_or((address, ""));
    let wrong_prefix = || {
        let allowed = format!("ADDRESS/PREFIX with a prefix from 1 to {bits}");
        ConfigError::value(&key("address"), address, allowed)
    };
    let prefix = prefix
        .parse()
        .ok()
        .filter(|p| (1..=bits).contains(p))
        .ok_or_else(wrong_prefix)?;
    let family = Family {
        address: unicast::<A>(&key("address"), host)?,
        prefix,
        gateway: unicast::<A>(&key("gateway"), gateway)?,
        parent_loopback: unicast::<A>(&key("parent_loopback"), parent_loopback)?,
    };
    let others = [("address", family.address), ("gateway", family.gateway)];
    for (index, (name, used)) in others.iter().enumerate() {
        let later = [
            ("gateway", family.gateway),
            ("parent_loopback", family.parent_loopback),
        ];
        for (other, value) in &later[index..] {
            if used == value {
                let allowed = format!("must differ from {}", key(name));
                return Err(ConfigError::value(&key(other), value.to_string(), allowed));
            }
        }
    }
    Ok(family)
}

fn unicast<A>(key: &str, text: &str) -> Result<A, ConfigError>
where
    A: FromStr<Err: Display> + Into<IpAddr> + Copy,
{
    let address: A = text.parse().map_err(|e| ConfigError::value(key, text, e))?;
    let wrong = match address.into() {
        IpAddr::V4(a) => {
            a.is_broadcast() || a.is_multicast() || a.is_loopback() || a.is_unspecified()
        }
        IpAddr::V6(a) => {
            a.is_multicast()
                || a.is_loopback()
                || a.is_unspecified()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some()
        }
    };
    if wrong {
        Err(ConfigError::value(key, text, "a unicast address"))
    } else {
        Ok(address)
    }
}

impl TryFrom<RawDns> for Dns {
    type Error = ConfigError;

    fn try_from(raw: RawDns) -> Result<Self, Self::Error> {
        let allowed = "an absolute path, or false to leave the file alone";
        let resolv_conf = match raw.resolv_conf {
            RawPath::Switch(false) => None,
            RawPath::Path(path) if path.is_absolute() => Some(path),
            RawPath::Path(path) => {
                return Err(ConfigError::value("dns.resolv_conf", path, allowed));
            }
            RawPath::Switch(true) => {
                return Err(ConfigError::value("dns.resolv_conf", true, allowed));
            }
        };
        if raw.search.len() > MAX_SEARCH {
            let allowed = format!("at most {MAX_SEARCH} domains");
            return Err(ConfigError::value("dns.search", raw.search, allowed));
        }
        if let Some(domain) = raw.search.iter().find(|domain| !is_domain(domain)) {
            return Err(ConfigError::value("dns.search", domain, "a domain name"));
        }
        Ok(Dns {
            resolv_conf,
            search: raw.search,
        })
    }
}

fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(label)
}

fn parse<T: FromStr<Err: Display>>(key: &str, text: &str) -> Result<T, ConfigError> {
    text.parse()
        .map_err(|error| ConfigError::value(key, text, error))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
