//! Where a destination leads, and whether the operator permits it.

use super::drops::DropReason;
use crate::local::LocalAddresses;
use netd_proto::build::IcmpError;
use netd_proto::handshake::Hello;
use netd_proto::packet::Protocol;
use netd_proto::policy::{Action, Policy};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Where packets for a destination go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// The gateway itself.
    Gateway,
    /// A host socket, to this address.
    Host(SocketAddr),
    /// Nowhere.
    Denied(DropReason),
}

/// What a denied sender is told.
pub(super) const DENIED: IcmpError = IcmpError::Prohibited;

/// The addresses of one enclave's network, and the host's policy for it.
#[derive(Debug)]
pub(super) struct Router {
    hello: Hello,
    policy: Policy,
    own: Arc<LocalAddresses>,
}

impl Router {
    pub(super) fn new(hello: Hello, policy: Policy, own: Arc<LocalAddresses>) -> Router {
        Router { hello, policy, own }
    }

    pub(super) fn policy(&mut self) -> &mut Policy {
        &mut self.policy
    }

    /// The enclave's address of the family of `like`.
    pub(super) fn enclave(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.hello.v4.enclave.into(),
            IpAddr::V6(_) => self.hello.v6.enclave.into(),
        }
    }

    /// The gateway's address of the family of `like`.
    pub(super) fn gateway(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.hello.v4.gateway.into(),
            IpAddr::V6(_) => self.hello.v6.gateway.into(),
        }
    }

    fn parent_loopback(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.hello.v4.parent_loopback.into(),
            IpAddr::V6(_) => self.hello.v6.parent_loopback.into(),
        }
    }

    /// How the enclave sees a host outside: the parent's loopback has an address of its own.
    pub(super) fn as_seen_by_enclave(&self, outside: IpAddr) -> IpAddr {
        let outside = outside.to_canonical();
        if outside.is_loopback() {
            self.parent_loopback(outside)
        } else {
            outside
        }
    }

    /// Decides on a packet for `dst`, with `now` in seconds.
    ///
    /// The decision is about the address that is really reached: an enclave that calls a public
    /// address its "parent loopback" gains nothing by it.
    pub(super) fn route(&self, protocol: Protocol, dst: SocketAddr, now: u64) -> Route {
        let ip = dst.ip();
        if ip == self.gateway(ip) {
            return Route::Gateway;
        }
        let real = if ip == self.parent_loopback(ip) {
            match ip {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
            }
        } else if ip.is_loopback() || ip == self.enclave(ip) {
            return Route::Denied(DropReason::DeniedReserved);
        } else {
            ip
        };
        if let Some(reason) = never(real) {
            return Route::Denied(reason);
        }
        match self.policy.decide(protocol, real, dst.port(), now) {
            Some(Action::Allow) => Route::Host(SocketAddr::new(real, dst.port())),
            Some(Action::Deny) => Route::Denied(DropReason::DeniedByRule),
            None => match self.closed(real) {
                Some(reason) => Route::Denied(reason),
                None => Route::Host(SocketAddr::new(real, dst.port())),
            },
        }
    }

    /// Whether `ip` can be a host's, so that an answer may come from it (RFC 1122, 3.2.1.3 and
    /// 4.2.3.10).
    pub(super) fn may_be_a_host(&self, ip: IpAddr) -> bool {
        never(ip).is_none() && !ip.is_loopback() && ip != self.enclave(ip)
    }

    /// Whether a rule with a name may stand for this address: what is closed by default is opened
    /// by its address only, or whoever serves a name could open it.
    pub(super) fn may_be_named(&self, ip: IpAddr) -> bool {
        never(ip).is_none() && self.closed(ip).is_none()
    }

    fn closed(&self, ip: IpAddr) -> Option<DropReason> {
        let link_local = match ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == IMDS6,
        };
        if ip.is_loopback() {
            Some(DropReason::DeniedLoopback)
        } else if link_local {
            Some(DropReason::DeniedLinkLocal)
        } else if self.own.contains(ip) {
            Some(DropReason::DeniedOwnAddress)
        } else if is_translated(ip) {
            Some(DropReason::DeniedReserved)
        } else {
            None
        }
    }
}

/// The instance metadata service's IPv6 address: a unique local one that means the instance.
const IMDS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// 64:ff9b::/96 and 64:ff9b:1::/48 (RFC 6052, 8215): a NAT64 gateway would lead around the rules
/// for IPv4.
fn is_translated(ip: IpAddr) -> bool {
    let IpAddr::V6(v6) = ip else { return false };
    let segments = v6.segments();
    segments[..2] == [0x64, 0xff9b] && (segments[2] == 1 || segments[2..6] == [0; 4])
}

/// What no rule opens, because no flow of this network can lead there.
fn never(ip: IpAddr) -> Option<DropReason> {
    if ip.is_multicast() {
        return Some(DropReason::DeniedMulticast);
    }
    let reserved = match ip {
        // 0.0.0.0/8 is "this host" (RFC 1122), 240.0.0.0/4 reserved, broadcast included.
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.octets()[0] >= 240,
        // ::a.b.c.d and ::ffff:a.b.c.d would lead around the rules for IPv4.
        IpAddr::V6(v6) => v6.is_unspecified() || (v6.to_ipv4().is_some() && !v6.is_loopback()),
    };
    reserved.then_some(DropReason::DeniedReserved)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use netd_proto::handshake::{Features, Lane, Network4, Network6, SessionId};

    pub(in crate::engine) fn hello() -> Hello {
        let v6 = |text: &str| text.parse().expect("valid");
        Hello {
            features: Features::ALL,
            session: SessionId([1; 16]),
            lane: Lane(0),
            lanes: 1,
            mtu: 1500,
            v4: Network4 {
                enclave: Ipv4Addr::new(100, 64, 0, 2),
                gateway: Ipv4Addr::new(100, 64, 0, 1),
                parent_loopback: Ipv4Addr::new(100, 64, 0, 3),
            },
            v6: Network6 {
                enclave: v6("fd00:6e65:7464::2"),
                gateway: v6("fd00:6e65:7464::1"),
                parent_loopback: v6("fd00:6e65:7464::3"),
            },
        }
    }

    fn router(hello: Hello, rules: &[&str]) -> Router {
        let rules = rules.iter().map(|rule| rule.parse().expect(rule)).collect();
        let own = LocalAddresses::fixed(&["198.51.100.7", "2001:db8::7"]);
        Router::new(hello, Policy::new(rules), own)
    }

    fn route(router: &Router, dst: &str) -> Route {
        router.route(Protocol::Tcp, dst.parse().expect(dst), 0)
    }

    fn host(dst: &str) -> Route {
        Route::Host(dst.parse().expect(dst))
    }

    #[test]
    fn what_is_the_parents_is_closed_and_the_rest_is_open() {
        use DropReason::*;
        let router = router(hello(), &[]);
        for (dst, reason) in [
            ("100.64.0.3:22", DeniedLoopback),
            ("[fd00:6e65:7464::3]:22", DeniedLoopback),
            ("127.0.0.1:22", DeniedReserved),
            ("[::1]:22", DeniedReserved),
            ("[::ffff:127.0.0.1]:22", DeniedReserved),
            ("[::127.0.0.1]:22", DeniedReserved),
            ("0.0.0.0:22", DeniedReserved),
            ("0.1.2.3:22", DeniedReserved),
            ("[::]:22", DeniedReserved),
            ("255.255.255.255:9", DeniedReserved),
            ("240.0.0.1:9", DeniedReserved),
            ("169.254.169.254:80", DeniedLinkLocal),
            ("[fd00:ec2::254]:80", DeniedLinkLocal),
            ("[fe80::1]:80", DeniedLinkLocal),
            ("224.0.0.251:5353", DeniedMulticast),
            ("[ff02::fb]:5353", DeniedMulticast),
            ("198.51.100.7:80", DeniedOwnAddress),
            ("[2001:db8::7]:80", DeniedOwnAddress),
            ("100.64.0.2:80", DeniedReserved),
            ("[64:ff9b::10.0.0.5]:80", DeniedReserved),
            ("[64:ff9b:1::1]:80", DeniedReserved),
        ] {
            assert_eq!(route(&router, dst), Route::Denied(reason), "{dst}");
        }
        for dst in ["192.0.2.1:443", "[2001:db8::1]:443", "10.0.0.1:5432"] {
            assert_eq!(route(&router, dst), host(dst));
        }
        assert_eq!(route(&router, "100.64.0.1:53"), Route::Gateway);
        assert_eq!(route(&router, "[fd00:6e65:7464::1]:53"), Route::Gateway);
    }

    #[test]
    fn rules_open_and_close() {
        let router = router(
            hello(),
            &[
                "allow tcp 127.0.0.1:2049",
                "allow 169.254.169.254",
                "deny 10.0.0.0/8",
                "allow 0.0.0.0",
            ],
        );
        assert_eq!(route(&router, "100.64.0.3:2049"), host("127.0.0.1:2049"));
        assert_eq!(
            route(&router, "100.64.0.3:22"),
            Route::Denied(DropReason::DeniedLoopback)
        );
        assert_eq!(
            route(&router, "169.254.169.254:80"),
            host("169.254.169.254:80")
        );
        assert_eq!(
            route(&router, "10.1.1.1:1"),
            Route::Denied(DropReason::DeniedByRule)
        );
        assert_eq!(
            route(&router, "0.0.0.0:1"),
            Route::Denied(DropReason::DeniedReserved)
        );
    }

    #[test]
    fn an_enclave_cannot_rename_the_parents_loopback() {
        let mut forged = hello();
        forged.v4.parent_loopback = Ipv4Addr::new(192, 0, 2, 1);
        let router = router(forged, &["allow 192.0.2.1"]);
        assert_eq!(
            route(&router, "192.0.2.1:22"),
            Route::Denied(DropReason::DeniedLoopback)
        );
    }
}
