//! An HTTP forward proxy that makes TLS inside the enclave.
//!
//! # Theory of operation
//! A program on the parent that may not see what it fetches, or may not hold the keys for it, asks
//! this proxy, by a port that is published to the parent. It names the site in one of three ways
//! (`target`):
//!
//! - `GET /https://site/path`, for programs that know nothing of proxies;
//! - `GET https://site/path`, the absolute form that proxies are asked with;
//! - `CONNECT site:443`, a tunnel: then TLS is between the client and the site, and all that the
//!   proxy does is to choose whom it leads to.
//!
//! In the first two the TLS connection to the site is made here (`forward`), with the certificate
//! verified, TLS 1.3 unless set otherwise, HTTP/2 where the site speaks it, and kept for the next
//! request. Where requests may go is a list (`destination`), and the enclave's own loopback and
//! private networks are not in it unless spelled out. Bodies flow through as they come in both
//! directions and are never gathered, so the memory of a request is that of its buffers. What is
//! safe to try again is tried again (`retry`).

mod body;
mod config;
mod destination;
mod forward;
mod headers;
mod metrics;
mod reach;
mod retry;
mod target;
mod tunnel;

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use aws_lc_rs::rand;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::error::{Failure, What};
use crate::net::server::{self, Server};
use crate::net::stop_signal;
use body::Any;
use config::Config;
use forward::Forwarder;
use metrics::{Gauge, Metrics, Trouble};
use reach::{Reach, Unanswered};
use target::Target;

/// Arguments of `sidecar`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Settings, in JSON; environment variables `SIDECAR_...` win over them
    #[arg(long, value_name = "FILE", env = "ENCLAVE_APP_SIDECAR_CONFIG")]
    config: Option<PathBuf>,
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// What failed and why.
pub async fn run(args: Args) -> Result<(), Failure> {
    let config = Config::read(args.config.as_deref(), std::env::vars())?;
    let stop = stop_signal()?;
    let sidecar = Sidecar::new(&config)?;
    let listener = server::listen(config.listen)?;
    tracing::info!(at = %config.listen, "listening");
    Server::plain(listener)
        .at_most(config.connections)
        .run(sidecar, stop)
        .await;
    Ok(())
}

/// The proxy, for one connection or all.
#[derive(Clone)]
struct Sidecar(Arc<Shared>);

struct Shared {
    config: Config,
    forwarder: Forwarder,
    reach: Reach,
    metrics: Arc<Metrics>,
    tunnels: Arc<Semaphore>,
}

impl Sidecar {
    fn new(config: &Config) -> Result<Sidecar, Failure> {
        let metrics = Arc::new(Metrics::default());
        let reach = Reach {
            allow: Arc::new(config.allow.clone()),
            time: config.connect_time,
            metrics: Arc::clone(&metrics),
        };
        let mut number = [0; 4];
        rand::fill(&mut number)
            .map_err(|_| Failure::new(What::Other, "there are no random numbers"))?;
        let pseudonym = format!("enclave-sidecar-{}", hex::encode(number));
        Ok(Sidecar(Arc::new(Shared {
            forwarder: Forwarder::new(config, reach.clone(), &metrics, pseudonym)?,
            reach,
            metrics,
            tunnels: Arc::new(Semaphore::new(config.tunnels)),
            config: config.clone(),
        })))
    }
}

impl tower_service::Service<Request<Incoming>> for Sidecar {
    type Response = Response<Any>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Any>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let own = Arc::clone(&self.0);
        Box::pin(async move { Ok(own.answer(request).await) })
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Any> {
        let begin = Instant::now();
        let _gauge = Gauge::of(&self.metrics.requests);
        let target = target::target(request.method(), request.uri(), self.config.plain_http);
        let answer = match target {
            Ok(Target::Own) => return self.own(&request),
            Ok(Target::Site(url)) => self.forwarder.forward(request, url).await,
            Ok(Target::Tunnel(host, port)) => self.tunnel(request, &host, port).await,
            Err(why) => Err(Unanswered::new(Trouble::Bad, why)),
        };
        let answer = answer.unwrap_or_else(|unanswered| self.explain(&unanswered));
        self.metrics
            .answered(answer.status().as_u16(), begin.elapsed());
        answer
    }

    async fn tunnel(
        &self,
        request: Request<Incoming>,
        host: &str,
        port: u16,
    ) -> Result<Response<Any>, Unanswered> {
        let place = Arc::clone(&self.tunnels).try_acquire_owned().map_err(|_| {
            let most = self.config.tunnels;
            Unanswered::new(Trouble::Full, format!("{most} tunnels are open: try later"))
        })?;
        let site = self.reach.connect(host, port).await?;
        let client = hyper::upgrade::on(request);
        let (metrics, idle) = (Arc::clone(&self.metrics), self.config.idle_time);
        let to = format!("{host}:{port}");
        tokio::spawn(async move {
            let done = tunnel::carry(client, site, metrics, idle).await;
            tracing::debug!(
                to,
                error = done.err().map(tracing::field::display),
                "tunnel ended"
            );
            drop(place);
        });
        Ok(Response::new(body::empty()))
    }

    /// What is asked of the proxy itself.
    fn own(&self, request: &Request<Incoming>) -> Response<Any> {
        let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
        let (status, kind, text) = match request.uri().path() {
            "/health" if is_read => (
                StatusCode::OK,
                "application/json",
                json!({"status": "ok"}).to_string(),
            ),
            "/metrics" if is_read => (
                StatusCode::OK,
                "text/plain; version=0.0.4",
                self.metrics.text(),
            ),
            _ => {
                let why = "ask for /https://SITE/PATH, GET /health or GET /metrics";
                (
                    StatusCode::NOT_FOUND,
                    "application/json",
                    json!({"error": why}).to_string(),
                )
            }
        };
        reply(status, kind, text)
    }

    /// Tells the client why it has no answer (RFC 9209 for programs, JSON for people).
    fn explain(&self, unanswered: &Unanswered) -> Response<Any> {
        let Unanswered { trouble, why } = unanswered;
        self.metrics.trouble(*trouble);
        tracing::debug!(trouble = trouble.name(), why, "no answer");
        let (status, word) = match trouble {
            Trouble::Bad => (StatusCode::BAD_REQUEST, "http_request_error"),
            Trouble::Refused => (StatusCode::FORBIDDEN, "http_request_denied"),
            Trouble::Dns => (StatusCode::BAD_GATEWAY, "dns_error"),
            Trouble::Connect => (StatusCode::BAD_GATEWAY, "destination_unavailable"),
            Trouble::Tls => (StatusCode::BAD_GATEWAY, "tls_protocol_error"),
            Trouble::Exchange => (StatusCode::BAD_GATEWAY, "connection_terminated"),
            Trouble::Time => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout"),
            Trouble::Full => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached"),
        };
        let text = json!({"error": why, "why": trouble.name()}).to_string();
        let mut answer = reply(status, "application/json", text);
        if let Ok(value) = HeaderValue::from_str(&format!("enclave-sidecar; error={word}")) {
            answer.headers_mut().insert("proxy-status", value);
        }
        answer
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Any> {
    let mut answer = Response::new(body::text(text));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
