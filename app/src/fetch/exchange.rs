//! One request: its steps, how long each took, and which one failed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, LOCATION};
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConnection;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use super::certificate::{Described, describe};
use super::milliseconds;
use super::plan::{Http, Plan};
use crate::error::chain;
use crate::limits::net as limits;
use crate::net::dial;

/// The steps of a request, in their order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// Looking the name up.
    #[default]
    Dns,
    /// Connecting.
    Connect,
    /// The TLS handshake.
    Tls,
    /// Sending the request and waiting for the first byte of the answer.
    Request,
    /// Reading the rest of the answer.
    Body,
    /// Judging the answer's status.
    Status,
}

/// Why a request failed, and in which step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct StepError {
    pub(super) step: Step,
    pub(super) message: String,
}

/// What was learnt of one request. A step that was not reached, or not needed on a connection that
/// was there already, has no time.
#[derive(Debug, Default, Serialize)]
pub(super) struct Exchange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<StepError>,
    pub(super) address: Option<SocketAddr>,
    pub(super) reused: bool,
    pub(super) times: Times,
    pub(super) tls: Option<Tls>,
    pub(super) http: Option<&'static str>,
    pub(super) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) location: Option<String>,
    pub(super) bytes: u64,
    pub(super) sha256: Option<String>,
}

/// How long each step took, in milliseconds; `total` is from the first step to the last byte.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(super) struct Times {
    pub(super) dns: Option<f64>,
    pub(super) connect: Option<f64>,
    pub(super) tls: Option<f64>,
    /// From sending the request to the answer's headers.
    pub(super) first_byte: Option<f64>,
    /// The rest of the answer.
    pub(super) body: Option<f64>,
    pub(super) total: Option<f64>,
}

/// What the handshake agreed on.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Tls {
    pub(super) version: String,
    pub(super) cipher: String,
    pub(super) key_exchange: String,
    /// The protocol agreed on (ALPN).
    pub(super) alpn: Option<String>,
    /// The server's own; it was verified up to a trusted root, and for the URL's name.
    pub(super) certificate: Option<Described>,
}

/// A connection on which requests can be sent; closed when dropped.
pub(super) struct Connection {
    sender: Sender,
    driver: AbortHandle,
    address: SocketAddr,
    tls: Option<Tls>,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Makes one request, on the connection that was kept if it is still there.
pub(super) async fn run(plan: &Plan, kept: &mut Option<Connection>) -> Exchange {
    let mut exchange = Exchange::default();
    let mut step = Step::default();
    let begin = Instant::now();
    let all = go(plan, kept, &mut exchange, &mut step);
    let message = match tokio::time::timeout(plan.timeout, all).await {
        Ok(Ok(())) => None,
        Ok(Err(message)) => Some(message),
        Err(_) => Some(format!("not done within {} s", plan.timeout.as_secs())),
    };
    exchange.times.total = Some(milliseconds(begin.elapsed()));
    if let Some(message) = message {
        exchange.error = Some(StepError { step, message });
        *kept = None;
    }
    exchange
}

/// All the steps; `step` is the one at which it stands.
async fn go(
    plan: &Plan,
    kept: &mut Option<Connection>,
    exchange: &mut Exchange,
    step: &mut Step,
) -> Result<(), String> {
    if kept.as_ref().is_some_and(|it| !it.sender.is_open()) {
        *kept = None;
    }
    exchange.reused = kept.is_some();
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(open(plan, &mut exchange.times, step).await?),
    };
    exchange.address = Some(connection.address);
    exchange.tls.clone_from(&connection.tls);

    *step = Step::Request;
    let mut clock = Clock::start();
    let answer = connection
        .sender
        .send(plan)
        .await
        .map_err(|error| chain(&error))?;
    exchange.times.first_byte = clock.lap();
    exchange.status = Some(answer.status().as_u16());
    exchange.http = Some(match answer.version() {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    });
    let location = answer.headers().get(LOCATION);
    exchange.location = location.map(|url| String::from_utf8_lossy(url.as_bytes()).into_owned());

    *step = Step::Body;
    let mut body = answer.into_body();
    let mut hash = digest::Context::new(&digest::SHA256);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| chain(&error))?.into_data() {
            exchange.bytes += data.len() as u64;
            hash.update(&data);
        }
    }
    exchange.times.body = clock.lap();
    exchange.sha256 = Some(hex::encode(hash.finish()));

    *step = Step::Status;
    match plan.expect {
        Some(wanted) if exchange.status != Some(wanted) => {
            let status = exchange.status.unwrap_or_default();
            Err(format!("the answer's status is {status}, not {wanted}"))
        }
        _ => Ok(()),
    }
}

/// Makes a connection.
async fn open(plan: &Plan, times: &mut Times, step: &mut Step) -> Result<Connection, String> {
    *step = Step::Dns;
    let mut clock = Clock::start();
    let addresses = dial::look_up(&plan.host, plan.port)
        .await
        .map_err(|error| chain(&error))?;
    times.dns = clock.lap();

    *step = Step::Connect;
    let stream = dial::connect(&addresses, limits::CONNECT_TIME).await?;
    let address = stream.peer_addr().map_err(|error| error.to_string())?;
    times.connect = clock.lap();

    let Some((config, name)) = &plan.tls else {
        *step = Step::Request;
        if plan.http == Http::Two {
            let (sender, driver) = two(stream).await?;
            return Ok(Connection {
                sender,
                driver,
                address,
                tls: None,
            });
        }
        let (sender, driver) = one(stream).await?;
        return Ok(Connection {
            sender,
            driver,
            address,
            tls: None,
        });
    };
    *step = Step::Tls;
    let connector = TlsConnector::from(config.clone());
    let stream = connector
        .connect(name.clone(), stream)
        .await
        .map_err(|error| chain(&error))?;
    times.tls = clock.lap();
    let tls = agreed(stream.get_ref().1);

    *step = Step::Request;
    let is_two = match tls.alpn.as_deref() {
        Some(alpn) => alpn == "h2",
        None => plan.http == Http::Two,
    };
    let (sender, driver) = if is_two {
        two(stream).await?
    } else {
        one(stream).await?
    };
    Ok(Connection {
        sender,
        driver,
        address,
        tls: Some(tls),
    })
}

/// What a finished handshake agreed on.
fn agreed(connection: &ClientConnection) -> Tls {
    let name = |debug: Option<String>| debug.unwrap_or_default();
    let version = name(
        connection
            .protocol_version()
            .map(|version| format!("{version:?}")),
    );
    let suite = connection.negotiated_cipher_suite();
    let group = connection.negotiated_key_exchange_group();
    let certificate = connection
        .peer_certificates()
        .and_then(|chain| chain.first());
    Tls {
        // rustls writes TLSv1_3 and TLS13_AES_128_GCM_SHA256 where others write TLSv1.3 and
        // TLS_AES_128_GCM_SHA256.
        version: version.replace('_', "."),
        cipher: name(suite.map(|suite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_"))),
        key_exchange: name(group.map(|group| format!("{:?}", group.name()))),
        alpn: (connection.alpn_protocol()).map(|it| String::from_utf8_lossy(it).into_owned()),
        certificate: certificate.map(|it| describe(it)),
    }
}

async fn one<S>(stream: S) -> Result<(Sender, AbortHandle), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| chain(&error))?;
    // Its errors come out of the sender as well.
    let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
    Ok((Sender::One(sender), driver))
}

async fn two<S>(stream: S) -> Result<(Sender, AbortHandle), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| chain(&error))?;
    let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
    Ok((Sender::Two(sender), driver))
}

impl Sender {
    fn is_open(&self) -> bool {
        match self {
            Sender::One(sender) => !sender.is_closed(),
            Sender::Two(sender) => !sender.is_closed(),
        }
    }

    async fn send(&mut self, plan: &Plan) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::new(Full::new(plan.body.clone()));
        *request.method_mut() = plan.method.clone();
        *request.headers_mut() = plan.headers.clone();
        match self {
            Sender::One(sender) => {
                let path = plan.url.path_and_query().cloned();
                *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Two(sender) => {
                // The URL says it (RFC 9113, 8.3.1).
                request.headers_mut().remove(HOST);
                *request.uri_mut() = plan.url.clone();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// Times steps that follow each other.
struct Clock(Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now())
    }

    /// The time since the last lap, as a report holds it.
    #[allow(
        clippy::unnecessary_wraps,
        reason = "the fields of a report are absent until known"
    )]
    fn lap(&mut self) -> Option<f64> {
        let now = Instant::now();
        let lap: Duration = now - std::mem::replace(&mut self.0, now);
        Some(milliseconds(lap))
    }
}
