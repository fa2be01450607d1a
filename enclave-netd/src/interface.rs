//! The network as programs see it: the tun with its addresses and routes, and the resolver. All of
//! this is made once, with privileges, and stays whatever becomes of the link.

use crate::config::Config;
use crate::network::{self, Families};
use crate::resolv_conf::ResolvConf;
use crate::socket;
use crate::tun::{Offload, Tun};
use anyhow::{Context, Result};
use std::net::IpAddr;
use tracing::{info, warn};

/// What was made.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) tun: Tun,
    /// To be put back at the end.
    pub(crate) resolv_conf: Option<ResolvConf>,
    families: Families,
}

impl Interface {
    /// Makes it.
    ///
    /// # Errors
    /// Something is missing or in the way; nothing is left behind then.
    pub(crate) fn set_up(config: &Config) -> Result<Interface> {
        socket::probe(&config.parent).with_context(|| {
            format!(
                "cannot make a socket for {}: does this kernel have AF_VSOCK?",
                config.parent
            )
        })?;
        let tun = Tun::open(&config.network.interface)?;
        let families = network::set_up(&tun, &config.network)?;
        let resolv_conf = point_resolver(config, families)?;
        Ok(Interface {
            tun,
            resolv_conf,
            families,
        })
    }

    /// Logs what was made.
    pub(crate) fn tell(&self, config: &Config) {
        let offload = self.tun.offload();
        info!(
            interface = self.tun.name(),
            address = %config.network.v4.address,
            address6 = self.families.ipv6.then(|| config.network.v6.address.to_string()),
            mtu = config.network.mtu,
            ?offload,
            "network set up"
        );
        if offload < Offload::Segmentation {
            warn!(
                ?offload,
                "this kernel's tun lacks offload: expect less throughput"
            );
        }
    }
}

fn point_resolver(config: &Config, families: Families) -> Result<Option<ResolvConf>> {
    let Some(path) = &config.dns.resolv_conf else {
        return Ok(None);
    };
    let mut servers: Vec<IpAddr> = vec![config.network.v4.gateway.into()];
    if families.ipv6 {
        servers.push(config.network.v6.gateway.into());
    }
    Ok(Some(ResolvConf::point_at(
        path,
        &servers,
        &config.dns.search,
    )?))
}
