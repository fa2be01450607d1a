//! Where requests may go.
//!
//! A proxy inside an enclave stands where its clients do not: beside the enclave's own services on
//! its loopback, and on addresses that the parent's operator keeps from the outside. So a name is
//! never enough: it is looked up once, each address it has is judged, and the connection is made to
//! one that passed, not to the name. A name that points at the loopback today or only for the second
//! look-up leads nowhere.
//!
//! A rule is `HOST`, `HOST:PORT` or `HOST:*`; without a port it is for 443. `HOST` is a name, `*.`
//! and a name (everything below it), `*` (everything), an address, or a network. Names and `*` lead
//! to public addresses alone; what is not public is reached only by a rule that spells the address
//! or network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::net::dial::bare;

/// What may be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Allowed(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    hosts: Hosts,
    /// Any, if there is none.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Any,
    Name(String),
    /// Of names below this one.
    Below(String),
    Network(IpAddr, u8),
}

/// Why a destination is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// No rule is for it.
    NoRule,
    /// A rule is, but it has only addresses that are not public.
    NotPublic(IpAddr),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NoRule => f.write_str("no rule of \"allow\" is for this host and port"),
            Refused::NotPublic(address) => write!(
                f,
                "its address {address} is not public; only a rule of \"allow\" that spells the \
                 address or network leads there"
            ),
        }
    }
}

impl Allowed {
    /// Reads rules.
    ///
    /// # Errors
    /// The rule that is none, and what one looks like.
    pub(super) fn parse(rules: &[String]) -> Result<Allowed, String> {
        let rules = rules.iter().map(|rule| {
            rule.parse().map_err(|()| {
                format!(
                    "{rule:?} is no rule; rules are like api.example.com, *.example.com:8443, \
                     192.0.2.0/24:*, [2001:db8::1]:443 or *"
                )
            })
        });
        rules.collect::<Result<_, _>>().map(Allowed)
    }

    /// Whether looking the host up can lead anywhere. What is refused here is not asked of DNS,
    /// which would tell the parent the name.
    pub(super) fn may_look_up(&self, host: &str, port: u16) -> Result<(), Refused> {
        let known = self.names(host, port) || self.0.iter().any(|rule| rule.is_network_at(port));
        if known { Ok(()) } else { Err(Refused::NoRule) }
    }

    /// Those of a host's addresses that may be connected to.
    pub(super) fn judge(
        &self,
        host: &str,
        port: u16,
        found: &[IpAddr],
        own: &[IpAddr],
    ) -> Result<Vec<IpAddr>, Refused> {
        let named = self.names(host, port);
        let passes = |address: &IpAddr| {
            let address = address.to_canonical();
            let public = is_public(address) && !own.contains(&address);
            (named && public) || self.0.iter().any(|rule| rule.is_for_address(address, port))
        };
        let passed: Vec<_> = found.iter().copied().filter(passes).collect();
        match (passed.is_empty(), named, found.first()) {
            (false, ..) => Ok(passed),
            (true, true, Some(address)) => Err(Refused::NotPublic(*address)),
            (true, ..) => Err(Refused::NoRule),
        }
    }

    fn names(&self, host: &str, port: u16) -> bool {
        let host = normal(host);
        self.0.iter().any(|rule| {
            rule.is_at(port)
                && match &rule.hosts {
                    Hosts::Any => true,
                    Hosts::Name(name) => *name == host,
                    Hosts::Below(name) => host
                        .strip_suffix(name)
                        .is_some_and(|below| below.ends_with('.')),
                    Hosts::Network(..) => false,
                }
        })
    }
}

impl Rule {
    fn is_at(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    fn is_network_at(&self, port: u16) -> bool {
        matches!(self.hosts, Hosts::Network(..)) && self.is_at(port)
    }

    fn is_for_address(&self, address: IpAddr, port: u16) -> bool {
        let Hosts::Network(network, length) = self.hosts else {
            return false;
        };
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let ((one, width), (other, other_width)) = (bits(network), bits(address));
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        width == other_width && one & mask == other & mask && self.is_at(port)
    }
}

impl FromStr for Rule {
    type Err = ();

    fn from_str(text: &str) -> Result<Rule, ()> {
        // An address of IPv6 has colons of its own: with a port it is in brackets. A network is told
        // from its port by its slash.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port))
                if !host.contains(':') || host.ends_with(']') || host.contains('/') =>
            {
                (host, port)
            }
            _ => (text, "443"),
        };
        let port = match port {
            "*" => None,
            number => Some(number.parse().ok().filter(|port| *port != 0).ok_or(())?),
        };
        Ok(Rule {
            hosts: bare(host).parse()?,
            port,
        })
    }
}

impl FromStr for Hosts {
    type Err = ();

    fn from_str(text: &str) -> Result<Hosts, ()> {
        if text == "*" {
            return Ok(Hosts::Any);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Hosts::Network(
                address,
                if address.is_ipv4() { 32 } else { 128 },
            ));
        }
        if let Some((address, length)) = text.split_once('/') {
            let address: IpAddr = bare(address).parse().map_err(drop)?;
            let length: u8 = length.parse().map_err(drop)?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            return if length <= most {
                Ok(Hosts::Network(address, length))
            } else {
                Err(())
            };
        }
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let is_label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let name = normal(name);
        // All digits: an address that was meant otherwise, such as 10.0.0.
        let is_number = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        match name.split('.').all(is_label) && !is_number {
            true if below => Ok(Hosts::Below(name)),
            true => Ok(Hosts::Name(name)),
            false => Err(()),
        }
    }
}

/// A name as names are compared.
fn normal(name: &str) -> String {
    let name = bare(name);
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Whether an address is of the internet at large (IANA's registries of special addresses, RFC
/// 6890). Those for documentation count as public: they are nobody's, so nothing is behind them.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || a == 0
        || a >= 240
        // Shared by carriers, and by the network of this very enclave.
        || (a == 100 && b & 0xc0 == 64)
        || (a == 198 && b & 0xfe == 18)
        || (a == 192 && b == 0 && c == 0))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let embedded = |high: u16, low: u16| {
        let bits = u32::from(high) << 16 | u32::from(low);
        is_public_v4(Ipv4Addr::from_bits(bits))
    };
    match parts {
        // NAT64 and 6to4 lead to an address of IPv4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        // NAT64 of a network's own, discard, Teredo.
        [0x64, 0xff9b, ..] | [0x100, 0, 0, 0, ..] | [0x2001, 0, ..] => false,
        // Global unicast is 2000::/3 so far; unique local, link local and multicast are not in it.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    fn allowed(rules: &[&str]) -> Allowed {
        Allowed::parse(
            &rules
                .iter()
                .map(|rule| (*rule).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap()
    }

    fn judge(rules: &[&str], host: &str, port: u16, address: &str) -> Result<(), Refused> {
        let found = [address.parse().unwrap()];
        let rules = allowed(rules);
        rules.may_look_up(host, port)?;
        rules.judge(host, port, &found, &[]).map(drop)
    }

    #[test]
    fn names_are_matched_whole_and_by_port() {
        let rules = ["api.example.com", "*.lab.example:8443", "any.example:*"];
        let to = |host, port| judge(&rules, host, port, "192.0.2.2");
        for (host, port) in [
            ("api.example.com", 443),
            ("API.example.COM.", 443),
            ("a.b.lab.example", 8443),
            ("any.example", 1),
        ] {
            assert_eq!(to(host, port), Ok(()), "{host}:{port}");
        }
        for (host, port) in [
            ("api.example.com", 80),
            ("api.example.com.evil.example", 443),
            ("xapi.example.com", 443),
            ("lab.example", 8443),
            ("evillab.example", 8443),
            ("x.lab.example", 443),
        ] {
            assert_eq!(to(host, port), Err(Refused::NoRule), "{host}:{port}");
        }
    }

    #[test]
    fn everything_is_everything_public() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.2",
            "100.64.0.3",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.0.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fd00:6e65:7464::2",
            "fd00:ec2::254",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "2001::1",
            "100::1",
        ] {
            let refused = judge(&["*:*"], "x.example", 443, address);
            assert!(
                matches!(refused, Err(Refused::NotPublic(_))),
                "{address}: {refused:?}"
            );
        }
        for address in [
            "192.0.2.2",
            "8.8.8.8",
            "100.128.0.1",
            "2606:4700::1",
            "64:ff9b::808:808",
        ] {
            assert_eq!(
                judge(&["*:*"], "x.example", 443, address),
                Ok(()),
                "{address}"
            );
        }
    }

    #[test]
    fn what_is_not_public_is_reached_by_its_address_alone() {
        let rules = ["10.0.0.0/8:8443", "127.0.0.1", "[fd00::1]:*", "::1"];
        for (host, port, address) in [
            ("db.example", 8443, "10.9.9.9"),
            ("127.0.0.1", 443, "127.0.0.1"),
            ("x.example", 443, "::ffff:127.0.0.1"),
            ("[fd00::1]", 22, "fd00::1"),
            ("[::1]", 443, "::1"),
        ] {
            assert_eq!(
                judge(&rules, host, port, address),
                Ok(()),
                "{host}:{port} {address}"
            );
        }
        for (port, address) in [(443, "10.9.9.9"), (443, "127.0.0.2"), (443, "11.0.0.1")] {
            let refused = judge(&rules, "x.example", port, address);
            assert_eq!(refused, Err(Refused::NoRule), "{port} {address}");
        }
    }

    #[test]
    fn of_many_addresses_those_that_pass_are_left_and_own_ones_never_pass() {
        let found = ["127.0.0.1", "192.0.2.2", "192.0.2.9"].map(|it| it.parse().unwrap());
        let own = ["192.0.2.9".parse().unwrap()];
        let passed = allowed(&["*"])
            .judge("x.example", 443, &found, &own)
            .unwrap();
        assert_eq!(passed, ["192.0.2.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn no_rule_is_taken_for_another() {
        for text in [
            "",
            ":443",
            "a..b",
            "exa mple",
            "*.*",
            "a.*.b",
            "10.0.0",
            "10.0.0.0/33",
            "::1/129",
            "x.example:0",
            "x.example:70000",
            "x.example:https",
            "https://x.example",
            "x.example/",
        ] {
            assert!(Allowed::parse(&[text.to_owned()]).is_err(), "{text:?}");
        }
        let whole = allowed(&["0.0.0.0/0:*", "::/0:*"]);
        assert!(
            whole
                .judge("x", 1, &["127.0.0.1".parse().unwrap()], &[])
                .is_ok()
        );
    }
}
