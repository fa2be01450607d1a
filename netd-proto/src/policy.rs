//! Which destinations may be reached.
//!
//! A policy is an ordered list of rules; the first that matches decides. Both daemons read the
//! same words: the enclave's image holds the enclave's policy, the operator gives the host's.
//!
//! ```text
//! rule   = ("allow" | "deny") [ "tcp" | "udp" | "icmp" ] target
//! target = host [ ":" port [ "-" port ] ]
//! host   = "*" | IPv4 [ "/" bits ] | IPv6 [ "/" bits ] | "[" IPv6 [ "/" bits ] "]"
//!        | name | "*." name
//! ```
//!
//! An IPv6 address before a port stands in brackets. A name matches the addresses that the
//! gateway's DNS handed out for it, for as long as [`Policy::learn`] was told.

use crate::packet::Protocol;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The flow may go on.
    Allow,
    /// The flow is refused and counted.
    Deny,
}

/// One line of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What to do with what matches.
    pub action: Action,
    /// Which protocol; `None` is every one.
    pub protocol: Option<Protocol>,
    /// Which hosts.
    pub host: Host,
    /// Which ports; `None` is every one.
    pub ports: Option<RangeInclusive<u16>>,
}

/// The hosts of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Every one.
    Any,
    /// An address, or all that share its first bits.
    Net(IpAddr, u8),
    /// A name in lower case without the last dot.
    Name(String),
    /// Every name below this one.
    Below(String),
}

/// The text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{rule}' is no rule: {what}; write for example \"allow tcp kms.us-east-1.amazonaws.com:443\", \"allow udp *:123\" or \"deny 10.0.0.0/8\""
)]
pub struct RuleError {
    rule: String,
    what: &'static str,
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Rule, RuleError> {
        let error = |what| RuleError {
            rule: text.to_owned(),
            what,
        };
        let mut words = text.split_whitespace().peekable();
        let action = match words.next() {
            Some("allow") => Action::Allow,
            Some("deny") => Action::Deny,
            _ => return Err(error("it begins with neither allow nor deny")),
        };
        let protocol = match words.peek() {
            Some(&"tcp") => Some(Protocol::Tcp),
            Some(&"udp") => Some(Protocol::Udp),
            Some(&"icmp") => Some(Protocol::Icmp),
            _ => None,
        };
        if protocol.is_some() {
            words.next();
        }
        let target = words.next().ok_or(error("the target is missing"))?;
        if words.next().is_some() {
            return Err(error("there is something behind the target"));
        }
        let (host, ports) = split_ports(target).ok_or(error("the target is malformed"))?;
        let host = parse_host(host).map_err(error)?;
        let ports = ports.map(parse_ports).transpose().map_err(error)?;
        if ports.is_some() && protocol == Some(Protocol::Icmp) {
            return Err(error("icmp has no ports"));
        }
        Ok(Rule {
            action,
            protocol,
            host,
            ports,
        })
    }
}

fn split_ports(target: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = target.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((host, None)),
            _ => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    match target.split_once(':') {
        // More than one colon without brackets: an IPv6 address or network, no port.
        Some((_, rest)) if rest.contains(':') => Some((target, None)),
        Some((host, ports)) => Some((host, Some(ports))),
        None => Some((target, None)),
    }
}

fn parse_host(host: &str) -> Result<Host, &'static str> {
    if host == "*" {
        return Ok(Host::Any);
    }
    let (address, bits) = match host.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (host, None),
    };
    if let Ok(address) = address.parse::<IpAddr>() {
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => all,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|b| *b <= all)
                .ok_or("the prefix is too long")?,
        };
        if mask(address, bits) != mask(address, all) {
            return Err("the address has bits behind its prefix");
        }
        return Ok(Host::Net(address, bits));
    }
    if bits.is_some() {
        return Err("only an address has a prefix");
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let (name, below) = match name.strip_prefix("*.") {
        Some(rest) => (rest.to_owned(), true),
        None => (name, false),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err("the host is no address and no name");
    }
    // "10.0.0" or "256.1.1.1" is a mistyped address; no top-level domain is a number.
    if name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err("the address is malformed");
    }
    Ok(if below {
        Host::Below(name)
    } else {
        Host::Name(name)
    })
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first), port(last)),
        None => (port(text), port(text)),
    };
    match (first, last) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err("a port is a number from 1 to 65535, or two of them joined by '-'"),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.action {
            Action::Allow => "allow ",
            Action::Deny => "deny ",
        })?;
        if let Some(protocol) = self.protocol {
            write!(f, "{protocol} ")?;
        }
        let brackets = self.ports.is_some();
        match &self.host {
            Host::Any => f.write_str("*")?,
            Host::Net(address @ IpAddr::V6(_), bits) if brackets => {
                write!(f, "[{address}/{bits}]")?
            }
            Host::Net(address, bits) => write!(f, "{address}/{bits}")?,
            Host::Name(name) => f.write_str(name)?,
            Host::Below(name) => write!(f, "*.{name}")?,
        }
        match &self.ports {
            None => Ok(()),
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
        }
    }
}

fn mask(address: IpAddr, bits: u8) -> u128 {
    match address {
        IpAddr::V4(v4) => {
            let bits = u32::from(bits);
            u128::from(v4.to_bits() & u32::MAX.checked_shl(32 - bits).unwrap_or(0))
        }
        IpAddr::V6(v6) => v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0),
    }
}

/// Addresses that a policy remembers for its names. Reached only by a program that resolves
/// tens of thousands of names which the rules match; it then has to wait for older ones to end.
pub const MAX_LEARNT: usize = 16_384;

/// An ordered list of rules, and what DNS said about the names in it.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    /// Which rules an address belongs to by its name, and until when.
    learnt: HashMap<IpAddr, Vec<(usize, u64)>>,
}

impl Policy {
    /// A policy of these rules, the first having the first word.
    pub fn new(rules: Vec<Rule>) -> Policy {
        Policy {
            rules,
            learnt: HashMap::new(),
        }
    }

    /// The rules in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the first matching rule says; `None` when no rule matches. `port` is the
    /// destination's, 0 for ICMP; `now` is in seconds of any clock that [`learn`](Self::learn)
    /// shares.
    pub fn decide(&self, protocol: Protocol, to: IpAddr, port: u16, now: u64) -> Option<Action> {
        let learnt = self.learnt.get(&to);
        let matches = |(index, rule): &(usize, &Rule)| {
            rule.protocol.is_none_or(|p| p == protocol)
                && rule
                    .ports
                    .as_ref()
                    .is_none_or(|ports| ports.contains(&port))
                && match &rule.host {
                    Host::Any => true,
                    Host::Net(net, bits) => {
                        net.is_ipv4() == to.is_ipv4() && mask(*net, *bits) == mask(to, *bits)
                    }
                    Host::Name(_) | Host::Below(_) => learnt
                        .is_some_and(|rules| rules.iter().any(|(i, end)| i == index && now < *end)),
                }
        };
        self.rules
            .iter()
            .enumerate()
            .find(matches)
            .map(|(_, rule)| rule.action)
    }

    /// Takes note that `name` was resolved to `addresses`, for rules with a name in them, until
    /// `until`. False when there was no room for all of them.
    pub fn learn(&mut self, name: &str, addresses: &[IpAddr], now: u64, until: u64) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let below = |rule: &str| {
            name.strip_suffix(rule)
                .is_some_and(|front| front.ends_with('.'))
        };
        let named: Vec<usize> = (0..self.rules.len())
            .filter(|index| match &self.rules[*index].host {
                Host::Name(rule) => *rule == name,
                Host::Below(rule) => below(rule),
                Host::Any | Host::Net(..) => false,
            })
            .collect();
        if named.is_empty() {
            return true;
        }
        if self.learnt.len() + addresses.len() > MAX_LEARNT {
            self.learnt
                .retain(|_, rules| rules.iter().any(|(_, end)| now < *end));
        }
        let mut complete = true;
        for address in addresses {
            if self.learnt.len() >= MAX_LEARNT && !self.learnt.contains_key(address) {
                complete = false;
                continue;
            }
            let rules = self.learnt.entry(*address).or_default();
            for index in &named {
                match rules.iter_mut().find(|(rule, _)| rule == index) {
                    Some((_, end)) => *end = until.max(*end),
                    None => rules.push((*index, until)),
                }
            }
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(rules: &[&str]) -> Policy {
        Policy::new(rules.iter().map(|rule| rule.parse().expect(rule)).collect())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = policy(&[
            "allow tcp 10.1.0.0/16:443",
            "deny 10.0.0.0/8",
            "allow udp *:123",
        ]);
        let decide = |protocol, to, port| policy.decide(protocol, ip(to), port, 0);

        assert_eq!(decide(Protocol::Tcp, "10.1.2.3", 443), Some(Action::Allow));
        assert_eq!(decide(Protocol::Tcp, "10.1.2.3", 80), Some(Action::Deny));
        assert_eq!(decide(Protocol::Udp, "10.9.9.9", 123), Some(Action::Deny));
        assert_eq!(
            decide(Protocol::Udp, "2001:db8::1", 123),
            Some(Action::Allow)
        );
        assert_eq!(decide(Protocol::Icmp, "192.0.2.1", 0), None);
    }

    #[test]
    fn every_form_is_read_and_printed_alike() {
        for text in [
            "allow tcp kms.us-east-1.amazonaws.com:443",
            "allow udp *:123",
            "deny 10.0.0.0/8",
            "deny *",
            "allow *.example.com",
            "allow tcp [2001:db8::/32]:1-1024",
            "deny icmp 2001:db8::/32",
        ] {
            assert_eq!(text.parse::<Rule>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn wrong_rules_say_what_is_wrong() {
        for (text, what) in [
            ("", "neither"),
            ("permit *", "neither"),
            ("allow", "missing"),
            ("allow tcp", "missing"),
            ("allow * *", "behind"),
            ("allow 10.0.0.0/33", "prefix"),
            ("allow 10.0.0.1/8", "bits"),
            ("allow 10.0.0", "address is malformed"),
            ("allow 256.0.0.1", "address is malformed"),
            ("allow name..example", "no name"),
            ("allow *:0", "65535"),
            ("allow *:9-3", "65535"),
            ("allow *:https", "65535"),
            ("allow icmp *:7", "no ports"),
            ("allow example.com/8", "prefix"),
            ("allow [2001:db8::1", "malformed"),
        ] {
            let error = text.parse::<Rule>().expect_err(text).to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_matches_what_was_handed_out_for_it_and_no_longer() {
        let mut policy = policy(&[
            "allow tcp kms.example.com:443",
            "allow *.internal",
            "deny *",
        ]);
        let decide =
            |policy: &Policy, to, port, now| policy.decide(Protocol::Tcp, ip(to), port, now);
        assert_eq!(decide(&policy, "192.0.2.1", 443, 0), Some(Action::Deny));

        assert!(policy.learn("KMS.example.com.", &[ip("192.0.2.1")], 0, 60));
        assert!(policy.learn("evil.example.com", &[ip("192.0.2.2")], 0, 60));
        assert!(policy.learn("db.internal", &[ip("192.0.2.3")], 0, 60));
        assert!(policy.learn("notinternal", &[ip("192.0.2.4")], 0, 60));

        assert_eq!(decide(&policy, "192.0.2.1", 443, 59), Some(Action::Allow));
        assert_eq!(decide(&policy, "192.0.2.1", 80, 59), Some(Action::Deny));
        assert_eq!(decide(&policy, "192.0.2.1", 443, 60), Some(Action::Deny));
        assert_eq!(decide(&policy, "192.0.2.2", 443, 0), Some(Action::Deny));
        assert_eq!(decide(&policy, "192.0.2.3", 5432, 0), Some(Action::Allow));
        assert_eq!(decide(&policy, "192.0.2.4", 5432, 0), Some(Action::Deny));
    }

    #[test]
    fn what_is_learnt_is_bounded() {
        let mut policy = policy(&["allow *.example.com"]);
        let address = |i: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(i));
        for i in 0..u32::try_from(MAX_LEARNT).expect("small") {
            assert!(policy.learn("a.example.com", &[address(i)], 0, 10));
        }
        assert!(!policy.learn("a.example.com", &[address(0xF000_0000)], 5, 15));
        assert!(policy.learn("a.example.com", &[address(0xF000_0001)], 10, 20));
        assert_eq!(policy.learnt.len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_panic(text in ".{0,40}") {
            let _ = text.parse::<Rule>();
            let _ = format!("allow tcp {text}").parse::<Rule>();
        }

        #[test]
        fn a_network_matches_just_its_own(net: u32, bits in 0u8..=32, other: u32) {
            let net = std::net::Ipv4Addr::from_bits(net);
            let base = u32::try_from(mask(net.into(), bits)).expect("32 bits");
            let rule = format!("allow {}/{bits}", std::net::Ipv4Addr::from_bits(base));
            let policy = policy(&[&rule]);
            let other = std::net::Ipv4Addr::from_bits(other);
            let inside = mask(other.into(), bits) == u128::from(base);
            let decided = policy.decide(Protocol::Tcp, other.into(), 1, 0);
            prop_assert_eq!(decided.is_some(), inside);
        }
    }
}
