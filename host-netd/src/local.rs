//! The parent's own addresses, which an enclave does not reach unless a rule says so.

use nix::ifaddrs::getifaddrs;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// How often the kernel is asked; addresses of a parent change rarely.
const REFRESH: Duration = Duration::from_secs(2);

/// A set of addresses that follows the kernel's.
#[derive(Debug, Default)]
pub struct LocalAddresses(RwLock<HashSet<IpAddr>>);

impl LocalAddresses {
    /// Reads the addresses and, in the running tokio runtime, keeps them fresh.
    ///
    /// # Errors
    /// The kernel does not tell them.
    pub fn follow() -> nix::Result<Arc<LocalAddresses>> {
        let addresses = Arc::new(LocalAddresses(RwLock::new(read()?)));
        let kept = Arc::downgrade(&addresses);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REFRESH).await;
                let Some(addresses) = kept.upgrade() else {
                    return;
                };
                match read() {
                    Ok(fresh) => {
                        *addresses.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                    }
                    Err(error) => tracing::debug!(%error, "own addresses not read"),
                }
            }
        });
        Ok(addresses)
    }

    /// Whether the parent itself has this address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&ip)
    }

    #[cfg(test)]
    pub(crate) fn fixed(addresses: &[&str]) -> Arc<LocalAddresses> {
        let set = addresses
            .iter()
            .map(|text| text.parse().expect("valid"))
            .collect();
        Arc::new(LocalAddresses(RwLock::new(set)))
    }
}

fn read() -> nix::Result<HashSet<IpAddr>> {
    let ip = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(getifaddrs()?.filter_map(ip).collect())
}
