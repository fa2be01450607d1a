//! Connections to sites: looked up, judged, made.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::destination::Allowed;
use super::metrics::{Metrics, Trouble};
use crate::error::chain;
use crate::net::dial;

/// Why a request has no answer from its site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(super) struct Unanswered {
    pub(super) trouble: Trouble,
    pub(super) why: String,
}

impl Unanswered {
    pub(super) fn new(trouble: Trouble, why: impl Into<String>) -> Unanswered {
        Unanswered {
            trouble,
            why: why.into(),
        }
    }

    /// What a client's error comes down to.
    pub(super) fn of(error: &hyper_util::client::legacy::Error) -> Unanswered {
        if let Some(own) = find::<Unanswered>(error) {
            return own.clone();
        }
        let trouble = match find::<rustls::Error>(error) {
            Some(_) => Trouble::Tls,
            None if error.is_connect() => Trouble::Connect,
            None => Trouble::Exchange,
        };
        Unanswered::new(trouble, chain(error))
    }
}

/// The cause of this type. What an `io::Error` holds is not among its sources.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<T>() {
            return Some(found);
        }
        next = match cause.downcast_ref::<io::Error>() {
            Some(outer) => outer.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => cause.source(),
        };
    }
    None
}

/// Makes connections to where rules allow it.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    pub(super) allow: Arc<Allowed>,
    pub(super) time: Duration,
    pub(super) metrics: Arc<Metrics>,
}

impl Reach {
    /// Connects to one of a host's addresses that pass.
    pub(super) async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Unanswered> {
        let host = dial::bare(host);
        let refused = |why| Unanswered::new(Trouble::Refused, format!("{host}:{port}: {why}"));
        self.allow.may_look_up(host, port).map_err(refused)?;
        let looking = tokio::time::timeout(self.time, dial::look_up(host, port));
        let found = match looking.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                return Err(Unanswered::new(
                    Trouble::Dns,
                    format!("{host}: {}", chain(&error)),
                ));
            }
            Err(_) => {
                return Err(Unanswered::new(
                    Trouble::Dns,
                    format!("{host}: no answer in time"),
                ));
            }
        };
        let found: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
        let passed = self
            .allow
            .judge(host, port, &found, &own_addresses())
            .map_err(refused)?;
        let passed: Vec<_> = passed
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect();
        let stream = dial::connect(&passed, self.time)
            .await
            .map_err(|why| Unanswered::new(Trouble::Connect, format!("{host}:{port}: {why}")))?;
        self.metrics.connections.fetch_add(1, Relaxed);
        Ok(stream)
    }
}

/// The addresses of this machine, as they are now.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    };
    interfaces.filter_map(address).collect()
}

impl Service<Uri> for Reach {
    type Response = TokioIo<TcpStream>;
    type Error = Unanswered;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unanswered>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unanswered>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            let default = if url.scheme_str() == Some("http") {
                80
            } else {
                443
            };
            let port = url.port_u16().unwrap_or(default);
            let stream = own.connect(url.host().unwrap_or_default(), port).await?;
            Ok(TokioIo::new(stream))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn causes_are_found_however_deep() {
        let cause = Unanswered::new(Trouble::Dns, "deep");
        let error = io::Error::other(io::Error::other(cause.clone()));
        assert_eq!(find::<Unanswered>(&error), Some(&cause));
        assert!(find::<rustls::Error>(&error).is_none());
    }
}
