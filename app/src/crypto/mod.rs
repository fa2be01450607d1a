//! Decryption and encryption for a parent application, by length-prefixed JSON.
//!
//! # Theory of operation
//! A program on the parent holds ciphertexts and may not hold the keys. It sends a message, a length
//! (u32, big-endian) and so many bytes of JSON, and gets one back (`frame`, `message`); as many
//! as it likes on a connection, one after the other. Connections come by TCP, on a port that is
//! published to the parent, and by vsock for parents that dial it. KMS opens the ciphertext for this
//! enclave alone ([`crate::kms`]).
//!
//! The parent is not trusted: it could ask for whatever the enclave's role may decrypt. So a file of
//! the image says which tenant may use which key (`tenants`), and each tenant's ciphertexts are
//! bound to it by their encryption context. A message that is wrong in whatever way gets an answer
//! that says so, and the next one is read; only a length beyond the bound ends its connection, since
//! what follows it is not read.

mod aws;
mod connection;
mod frame;
mod keeper;
mod message;
mod service;
mod tenants;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::error::{Failure, What};
use crate::limits;
use crate::net::{server, stop_signal};
use crate::nsm::Place;
use aws::Aws;
use keeper::Keeper;
use service::Service;
use tenants::Tenants;

/// Arguments of `crypto`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which tenant may use which keys, in JSON
    #[arg(long, value_name = "FILE")]
    tenants: PathBuf,
    /// Where to listen; by default on all addresses of both families
    #[arg(long, default_value = "[::]:5000")]
    listen: SocketAddr,
    /// Listen on this port of vsock too, for parents that dial it
    #[arg(long, value_name = "PORT")]
    vsock: Option<u32>,
    /// Outside an enclave: let KMS answer without sealing its answers
    #[arg(long)]
    plain: bool,
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// What failed and why.
pub async fn run(args: Args, place: Place) -> Result<(), Failure> {
    let tenants = Tenants::read(&args.tenants)?;
    let keeper = Aws::new(place, args.plain, &tenants).await?;
    let stop = stop_signal()?;
    let tcp = server::listen(args.listen)?;
    let vsock = args.vsock.map(listen_vsock).transpose()?;
    tracing::info!(at = %args.listen, vsock = args.vsock, "listening");
    serve(Service::new(keeper, tenants), tcp, vsock, stop).await;
    Ok(())
}

/// Serves on both kinds of sockets until `stop`.
async fn serve<K: Keeper>(
    service: Service<K>,
    tcp: tokio::net::TcpListener,
    vsock: Option<VsockListener>,
    stop: impl Future<Output = ()>,
) {
    let service = Arc::new(service);
    let room = Arc::new(Semaphore::new(limits::crypto::CONNECTIONS));
    let (end, ending) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            // Never closed, so it cannot fail.
            let place = Arc::clone(&room).acquire_owned().await.ok();
            tokio::select! {
                (stream, peer) = server::accept(&tcp) => (place, Accepted::Tcp(stream, peer)),
                (stream, peer) = accept_vsock(vsock.as_ref()) => {
                    (place, Accepted::Vsock(stream, peer))
                }
            }
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            // Those that have ended are taken out, or the set would grow for ever.
            Some(_) = tasks.join_next() => continue,
            () = &mut stop => break,
        };
        let (service, ending) = (Arc::clone(&service), ending.clone());
        match accepted {
            Accepted::Tcp(stream, peer) => {
                // Answers are one packet each: none of them should wait for the next.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY");
                }
                tasks.spawn(one(stream, peer.to_string(), service, ending, place));
            }
            Accepted::Vsock(stream, peer) => {
                let peer = format!("vsock:{}:{}", peer.cid(), peer.port());
                tasks.spawn(one(stream, peer, service, ending, place));
            }
        }
    }
    drop((tcp, vsock));
    tracing::info!(
        open = tasks.len(),
        "ending: no more connections are accepted"
    );
    // Without receivers there is nobody to tell.
    let _ = end.send(true);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limits::net::GRACE, all).await.is_err() {
        tracing::warn!("requests were still under way and are cut");
    }
}

enum Accepted {
    Tcp(tokio::net::TcpStream, SocketAddr),
    Vsock(VsockStream, VsockAddr),
}

async fn one<K: Keeper, S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: String,
    service: Arc<Service<K>>,
    ending: watch::Receiver<bool>,
    _place: Option<OwnedSemaphorePermit>,
) {
    match connection::serve(stream, service, ending).await {
        Ok(()) => tracing::debug!(peer, "connection ended"),
        Err(error) => tracing::info!(peer, %error, "connection failed"),
    }
}

fn listen_vsock(port: u32) -> Result<VsockListener, Failure> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map_err(|error| {
        let why = format!("cannot listen on port {port} of vsock: {error}");
        Failure::new(What::Network, why)
    })
}

/// The next connection by vsock; never, if nobody listens there.
async fn accept_vsock(listener: Option<&VsockListener>) -> (VsockStream, VsockAddr) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                let error: io::Error = error;
                tracing::warn!(%error, "a connection by vsock could not be accepted");
                tokio::time::sleep(limits::net::ACCEPT_AGAIN).await;
            }
        }
    }
}
