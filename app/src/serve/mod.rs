//! An HTTP server that greets, tells its health and attests itself.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | the greeting |
//! | `GET /health` | `{"status":"ok"}` |
//! | `GET /attestation?nonce=HEX` | a fresh attestation document with that nonce |
//!
//! # Who is at the other end
//! A client that speaks TLS to an enclave must know that the TLS ends in the enclave, and not on the
//! parent, which could hold a certificate for the same name. So the document's user data is
//! `tls-key-sha256:` and the SHA-256 of the key of this server's certificate (of its
//! SubjectPublicKeyInfo). A client asks with a nonce of its own, verifies the document, and compares
//! the hash with the key of the very connection it asked on. With that a self-signed certificate,
//! whose key never leaves the enclave's memory, is worth more than any other (`identity`).

mod attestor;
mod identity;
mod routes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Failure;
use crate::limits::net as limits;
use crate::net::server::{self, Server};
use crate::net::stop_signal;
use crate::net::tls::Oldest;
use crate::nsm::Place;
use identity::Identity;
use routes::Service;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen; by default on all addresses of both families
    #[arg(long, default_value = "[::]:3000")]
    listen: SocketAddr,
    /// What `GET /` answers
    #[arg(long, default_value = "Hello from Nitro Enclave!")]
    greeting: String,
    /// Speak TLS, with a key made now and a certificate signed by itself
    #[arg(long, conflicts_with = "tls_certificate")]
    tls: bool,
    /// A name for that certificate; may be given many times
    #[arg(
        long,
        value_name = "NAME",
        default_value = "localhost",
        requires = "tls"
    )]
    tls_name: Vec<String>,
    /// Speak TLS with this chain of certificates, the server's own first (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// The oldest version of TLS to speak
    #[arg(long, value_enum, value_name = "VERSION", default_value_t = Oldest::Tls12)]
    tls_oldest: Oldest,
    /// The most connections at once; others wait
    #[arg(long, default_value_t = limits::CONNECTIONS)]
    connections: usize,
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// What failed and why.
pub async fn run(args: Args, place: Place) -> Result<(), Failure> {
    let identity = match (&args.tls_certificate, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(Identity::read(certificate, key, args.tls_oldest)?),
        _ if args.tls => Some(Identity::own(&args.tls_name, args.tls_oldest)?),
        _ => None,
    };
    let key = identity
        .as_ref()
        .map(|identity| identity.key_sha256.clone());
    let stop = stop_signal()?;
    let listener = server::listen(args.listen)?;
    let scheme = if identity.is_some() { "https" } else { "http" };
    let server = match identity {
        Some(identity) => Server::encrypted(listener, identity.config),
        None => Server::plain(listener),
    };
    tracing::info!(at = %args.listen, scheme, key, "listening");
    let service = Service {
        greeting: args.greeting,
        key_sha256: key,
        attestor: Arc::new(place),
    };
    server
        .at_most(args.connections)
        .run(routes::router(service), stop)
        .await;
    Ok(())
}
