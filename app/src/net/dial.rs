//! Names to addresses, and addresses to connections.
//!
//! Both are hyper's connector, which tries the families as RFC 8305 tells, with the look-up apart
//! from the connect: `fetch` measures the two, and `sidecar` judges the addresses between them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::error::chain;

/// A host as it stands in a URL, without the brackets of an IPv6 address.
#[must_use]
pub fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// Looks a host up as every program of the machine does.
///
/// # Errors
/// Why it has no address.
pub async fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<_> = tokio::net::lookup_host((bare(host), port)).await?.collect();
    if found.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    Ok(found)
}

/// Connects to the first of these addresses that accepts.
///
/// # Errors
/// Why the last one did not.
pub async fn connect(addresses: &[SocketAddr], time: Duration) -> Result<TcpStream, String> {
    let port = addresses.first().map_or(0, SocketAddr::port);
    let mut connector = HttpConnector::new_with_resolver(Known(addresses.to_vec()));
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(time));
    // The host is never looked at: `Known` answers for any.
    let place = Uri::builder()
        .scheme("http")
        .authority(format!("known.invalid:{port}"))
        .path_and_query("/")
        .build()
        .map_err(|error| error.to_string())?;
    match connector.call(place).await {
        Ok(stream) => Ok(stream.into_inner()),
        Err(error) => Err(chain(&error)),
    }
}

/// A resolver that knows the answer.
#[derive(Clone)]
struct Known(Vec<SocketAddr>);

impl Service<Name> for Known {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        std::future::ready(Ok(self.0.clone().into_iter()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn another_address_is_tried_when_one_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = SocketAddr::from(([127, 0, 0, 2], open.port()));
        let found = connect(&[closed, open], Duration::from_secs(5)).await;
        assert_eq!(found.unwrap().peer_addr().unwrap(), open);
        let error = connect(&[closed], Duration::from_secs(5)).await;
        assert!(error.unwrap_err().contains("refused"));
    }

    #[tokio::test]
    async fn a_literal_address_is_its_own() {
        let found = look_up("[::1]", 443).await.unwrap();
        assert_eq!(found, ["[::1]:443".parse().unwrap()]);
    }
}
