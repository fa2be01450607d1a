//! Addresses and routes of the enclave, by rtnetlink, without calling `ip`.
//!
//! Everything made here hangs on the tun device and goes with it, so an error half-way leaves
//! nothing behind but `lo` being up.
//!
//! The kernel takes the last address of an IPv4 prefix for a broadcast address. On a tun there is
//! no broadcast, and in the default /30 that address stands for the parent's loopback: such
//! routes are removed again.

use crate::config::{Family, Network};
use crate::tun::Tun;
use futures_util::TryStreamExt;
use nix::libc;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{fs, io};
use thiserror::Error;
use tracing::{debug, warn};

/// Why the network could not be set up.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    #[error(
        "there is already a default route ({0}): enclave-netd is to be the only way out, remove \
         that route or run it in a network namespace of its own"
    )]
    DefaultRoute(String),
    #[error("cannot open rtnetlink: {0}")]
    Open(io::Error),
    #[error("cannot {action}: {source}")]
    Request { action: String, source: io::Error },
}

/// Which address families work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Families {
    /// False where the kernel has no IPv6 or it is switched off.
    pub(crate) ipv6: bool,
}

/// Brings `lo` and the tun up, with addresses and default routes.
///
/// # Errors
/// See [`NetworkError`]. Dropping `tun` undoes the rest.
pub(crate) fn set_up(tun: &Tun, network: &Network) -> Result<Families, NetworkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(NetworkError::Open)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Open)?;
        let connection = tokio::spawn(connection);
        let families = Netlink { handle }.set_up(tun, network).await;
        connection.abort();
        families
    })
}

struct Netlink {
    handle: Handle,
}

impl Netlink {
    async fn set_up(&self, tun: &Tun, network: &Network) -> Result<Families, NetworkError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            if let Some(route) = self.default_route(family).await? {
                return Err(NetworkError::DefaultRoute(route));
            }
        }
        let lo = nix::net::if_::if_nametoindex("lo")
            .map_err(|e| request("find the interface lo")(e.into()))?;
        self.set_link("bring lo up", LinkUnspec::new_with_index(lo).up())
            .await?;

        quieten_ipv6(tun.name());
        let link = LinkUnspec::new_with_index(tun.index())
            .mtu(network.mtu.into())
            .txqueuelen(network.queue_length)
            .up();
        self.set_link(&format!("bring {} up", tun.name()), link)
            .await?;

        self.add_family(tun, &network.v4).await?;
        self.remove_broadcast(tun.index()).await?;
        let ipv6 = match self.add_family(tun, &network.v6).await {
            Ok(()) => true,
            Err(NetworkError::Request { action, source }) if is_missing_family(&source) => {
                warn!(
                    reason = format!("cannot {action}: {source}"),
                    "no IPv6 in this kernel or namespace: going on with IPv4 only"
                );
                false
            }
            Err(error) => return Err(error),
        };
        Ok(Families { ipv6 })
    }

    async fn set_link(
        &self,
        action: &str,
        link: rtnetlink::LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetworkError> {
        let set = self.handle.link().set(link.build()).execute().await;
        set.map_err(|e| request(action)(errno(e)))
    }

    async fn add_family<A>(&self, tun: &Tun, family: &Family<A>) -> Result<(), NetworkError>
    where
        A: Copy + Into<IpAddr> + std::fmt::Display,
    {
        let Family {
            address,
            prefix,
            gateway,
            ..
        } = *family;
        let mut add = self
            .handle
            .address()
            .add(tun.index(), address.into(), prefix);
        let message = add.message_mut();
        message
            .attributes
            .retain(|a| !matches!(a, AddressAttribute::Broadcast(_)));
        message.header.flags |= AddressHeaderFlags::Nodad;
        let action = format!("add address {address}/{prefix} to {}", tun.name());
        add.execute()
            .await
            .map_err(|e| request(&action)(errno(e)))?;

        let action = format!("add the default route via {gateway} on {}", tun.name());
        let route = default_route(gateway.into(), address.into(), tun.index());
        self.handle
            .route()
            .add(route)
            .execute()
            .await
            .map_err(|e| request(&action)(errno(e)))
    }

    /// The first unicast default route of the main table, as `ip route` would print it.
    async fn default_route(&self, family: AddressFamily) -> Result<Option<String>, NetworkError> {
        Ok(self
            .routes(family)
            .await?
            .iter()
            .find(|r| is_default(r))
            .map(describe))
    }

    async fn remove_broadcast(&self, index: u32) -> Result<(), NetworkError> {
        let routes = self.routes(AddressFamily::Inet).await?;
        for route in routes.into_iter().filter(|r| is_broadcast(r, index)) {
            debug!(route = describe(&route), "removing broadcast route");
            match self
                .handle
                .route()
                .del(route)
                .execute()
                .await
                .map_err(errno)
            {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(0) => {}
                Err(error) => return Err(request("remove a broadcast route")(error)),
            }
        }
        Ok(())
    }

    async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, NetworkError> {
        let query = if family == AddressFamily::Inet {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        };
        match self
            .handle
            .route()
            .get(query)
            .execute()
            .try_collect()
            .await
            .map_err(errno)
        {
            Ok(routes) => Ok(routes),
            Err(error) if is_missing_family(&error) => Ok(Vec::new()),
            Err(error) => Err(request("list the routes")(error)),
        }
    }
}

/// Keeps the kernel from making link-local addresses and believing router advertisements: there
/// is no router to ask on the tun. Best effort: such packets are dropped by the guard anyway.
fn quieten_ipv6(interface: &str) {
    // IN6_ADDR_GEN_MODE_NONE is 1.
    for (key, value) in [("accept_ra", "0"), ("addr_gen_mode", "1")] {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/{key}");
        if let Err(error) = fs::write(&path, value) {
            debug!(path, %error, "cannot set");
        }
    }
}

fn default_route(gateway: IpAddr, source: IpAddr, index: u32) -> RouteMessage {
    match (gateway, source) {
        (IpAddr::V4(gateway), IpAddr::V4(source)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .pref_source(source)
            .output_interface(index)
            .onlink()
            .build(),
        (IpAddr::V6(gateway), IpAddr::V6(source)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(gateway)
            .pref_source(source)
            .output_interface(index)
            .onlink()
            .build(),
        _ => unreachable!("a family has addresses of one kind"),
    }
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && table(route) == u32::from(RouteHeader::RT_TABLE_MAIN)
}

fn is_broadcast(route: &RouteMessage, index: u32) -> bool {
    route.header.kind == RouteType::Broadcast && interface(route) == Some(index)
}

fn table(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(route.header.table.into())
}

fn interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn describe(route: &RouteMessage) -> String {
    let mut text = String::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(a)) => text += &format!(" via {a}"),
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) => text += &format!(" via {a}"),
            RouteAttribute::Destination(RouteAddress::Inet(a)) => text += &format!(" to {a}"),
            _ => {}
        }
    }
    let name = interface(route).and_then(|i| nix::net::if_::if_indextoname(i).ok());
    if let Some(name) = name {
        text += &format!(" dev {}", name.to_string_lossy());
    }
    let kind = if route.header.kind == RouteType::Broadcast {
        "broadcast"
    } else {
        "default"
    };
    format!("{kind}{text}")
}

fn is_missing_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENODEV)
    )
}

fn request(action: &str) -> impl FnOnce(io::Error) -> NetworkError {
    let action = action.to_owned();
    |source| NetworkError::Request { action, source }
}

fn errno(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        error => io::Error::other(error),
    }
}
