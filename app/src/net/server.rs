//! Connections in: accepted up to a bound, with or without TLS, ended in order.
//!
//! A connection beyond the bound waits in the kernel until another ends. One that says nothing, in
//! its handshake or between requests, is closed ([`limits`]); so is one that takes none of its
//! answer (`Stall`). When the service is to end, nothing more is accepted, idle connections are
//! closed, requests under way are answered, and after [`limits::GRACE`] the rest is cut.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::stall::Stall;
use crate::error::{Failure, What};
use crate::limits::net as limits;

/// Where and how a service is reached.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    connections: usize,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

/// Opens a port. `[::]` is every address of both families, or of IPv4 where there is no IPv6.
///
/// # Errors
/// When the address is not ours, or taken.
pub fn listen(at: SocketAddr) -> Result<TcpListener, Failure> {
    let bind = |at: SocketAddr| -> io::Result<TcpListener> {
        let socket = match at {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(at)?;
        socket.listen(limits::BACKLOG)
    };
    let no_family = |error: &io::Error| {
        use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
        matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
    };
    bind(at)
        .or_else(|error| {
            if at.is_ipv6() && at.ip().is_unspecified() && no_family(&error) {
                bind((Ipv4Addr::UNSPECIFIED, at.port()).into())
            } else {
                Err(error)
            }
        })
        .map_err(|error| Failure::new(What::Network, format!("cannot listen on {at}: {error}")))
}

impl Server {
    /// A server of plain HTTP/1.1.
    #[must_use]
    pub fn plain(listener: TcpListener) -> Server {
        Server {
            listener,
            tls: None,
            connections: limits::CONNECTIONS,
        }
    }

    /// A server of HTTP/2 and HTTP/1.1 over TLS.
    #[must_use]
    pub fn encrypted(listener: TcpListener, mut config: ServerConfig) -> Server {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        Server {
            listener,
            tls,
            connections: limits::CONNECTIONS,
        }
    }

    /// The same with another bound on connections.
    #[must_use]
    pub fn at_most(self, connections: usize) -> Server {
        Server {
            connections,
            ..self
        }
    }

    /// Serves until `stop`, and then ends in order.
    pub async fn run<S, B>(self, service: S, stop: impl Future<Output = ()>)
    where
        S: tower_service::Service<Request<Incoming>, Response = Response<B>>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let ending = GracefulShutdown::new();
        let room = Arc::new(Semaphore::new(self.connections));
        let mut stop = std::pin::pin!(stop);
        loop {
            let next = async {
                // Never closed, so it cannot fail.
                let place = Arc::clone(&room).acquire_owned().await.ok();
                (place, accept(&self.listener).await)
            };
            let (place, (stream, peer)) = tokio::select! {
                next = next => next,
                () = &mut stop => break,
            };
            let (tls, watcher) = (self.tls.clone(), ending.watcher());
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                match connection(stream, tls, service, watcher).await {
                    Ok(()) => tracing::debug!(%peer, "connection ended"),
                    Err(error) => tracing::debug!(%peer, %error, "connection failed"),
                }
                drop(place);
            });
        }
        drop(self.listener);
        let open = ending.count();
        tracing::info!(open, "ending: no more connections are accepted");
        if tokio::time::timeout(limits::GRACE, ending.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("requests were still under way and are cut");
        }
    }
}

/// The next connection, however often accepting fails.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // The client is gone already, or there are no files or no memory for it.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(limits::ACCEPT_AGAIN).await;
            }
        }
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn connection<S, B>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    service: S,
    watcher: Watcher,
) -> Result<(), Failed>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Failed>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Failed>,
{
    stream.set_nodelay(true)?;
    let stream = Stall::new(stream, limits::STALL);
    let Some(tls) = tls else {
        return http(stream, false, service, watcher).await;
    };
    let stream = tokio::time::timeout(limits::HANDSHAKE_TIME, tls.accept(stream)).await??;
    let is_two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    http(stream, is_two, service, watcher).await
}

async fn http<I, S, B>(stream: I, is_two: bool, service: S, watcher: Watcher) -> Result<(), Failed>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Failed>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Failed>,
{
    let builder = auto::Builder::new(TokioExecutor::new());
    // Not told apart by their first bytes: nothing would bound the wait for these.
    let mut builder = if is_two {
        builder.http2_only()
    } else {
        builder.http1_only()
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_TIME)
        .max_buf_size(limits::HEADER_BYTES)
        .max_headers(limits::HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .keep_alive_interval(limits::KEEP_ALIVE)
        .keep_alive_timeout(Duration::from_secs(10));
    watcher
        .watch(
            builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .into_owned(),
        )
        .await
}

#[allow(clippy::cast_possible_truncation, reason = "a few thousand")]
const HEADER_BYTES: u32 = limits::HEADER_BYTES as u32;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn what_is_under_way_is_answered_before_the_end_and_nothing_is_begun() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = listener.local_addr().unwrap();
        let (begun, go, stop) = (
            Arc::new(Notify::new()),
            Arc::new(Notify::new()),
            Arc::new(Notify::new()),
        );
        let (told, waited) = (Arc::clone(&begun), Arc::clone(&go));
        let slow = async move || {
            told.notify_one();
            waited.notified().await;
            "done"
        };
        let router = Router::new().route("/", get(slow));
        let ended = Arc::new(AtomicBool::new(false));
        let (stopped, end) = (Arc::clone(&stop), Arc::clone(&ended));
        let server = tokio::spawn(async move {
            Server::plain(listener)
                .run(router, async move { stopped.notified().await })
                .await;
            end.store(true, Ordering::Relaxed);
        });

        let mut idle = TcpStream::connect(at).await.unwrap();
        let mut busy = TcpStream::connect(at).await.unwrap();
        busy.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        begun.notified().await;
        stop.notify_one();
        // The idle one is closed: so the end has begun.
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(TcpStream::connect(at).await.is_err());
        assert!(!ended.load(Ordering::Relaxed));
        go.notify_one();
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("done"), "{answer}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "hello"));
        let server = Server::plain(listener)
            .at_most(1)
            .run(router, std::future::pending());
        let server = tokio::spawn(server);
        let first = TcpStream::connect(at).await.unwrap();
        let mut second = TcpStream::connect(at).await.unwrap();
        second.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), second.readable()).await;
        assert!(early.is_err(), "answered while the only place is taken");
        drop(first);
        let mut answer = String::new();
        second.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
        server.abort();
    }
}
