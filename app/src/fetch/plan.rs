//! What to ask for, from the arguments: parsed once, before anything is sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Uri};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use super::Args;
use crate::error::Failure;
use crate::net::{dial, tls};

/// Which versions of HTTP are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Http {
    /// HTTP/2 if the server wants it, HTTP/1.1 otherwise
    Any,
    /// HTTP/1.1
    #[value(name = "1.1")]
    One,
    /// HTTP/2
    #[value(name = "2")]
    Two,
}

/// A request, ready to be sent many times.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) url: Uri,
    pub(super) host: String,
    pub(super) port: u16,
    /// Absent for http://.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) http: Http,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) timeout: Duration,
    pub(super) expect: Option<u16>,
    pub(super) concurrency: u32,
}

impl Plan {
    pub(super) fn new(args: &Args) -> Result<Plan, Failure> {
        let url = parse_url(&args.url)?;
        let encrypted = url.scheme_str() == Some("https");
        let host = dial::bare(url.host().unwrap_or_default()).to_owned();
        let port = url.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let tls = if encrypted {
            let mut config = tls::client(&args.roots.clone().unwrap_or_default(), args.tls)?;
            config.alpn_protocols = match args.http {
                Http::Any => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
                Http::One => vec![b"http/1.1".to_vec()],
                Http::Two => vec![b"h2".to_vec()],
            };
            // Every handshake is a whole one: a resumed one shows no certificate.
            config.resumption = rustls::client::Resumption::disabled();
            let name = ServerName::try_from(host.clone())
                .map_err(|_| Failure::usage(format!("{host:?} is no name or address for TLS")))?;
            Some((Arc::new(config), name))
        } else {
            None
        };
        let body = match args
            .data
            .as_deref()
            .map(|data| (data, data.strip_prefix('@')))
        {
            None => Bytes::new(),
            Some((_, Some(path))) => std::fs::read(path)
                .map_err(|error| Failure::usage(format!("cannot read --data {path}: {error}")))?
                .into(),
            Some((text, None)) => text.to_owned().into(),
        };
        let method = match (&args.method, &args.data) {
            (Some(name), _) => Method::from_bytes(name.as_bytes())
                .map_err(|_| Failure::usage(format!("{name:?} is no method")))?,
            (None, Some(_)) => Method::POST,
            (None, None) => Method::GET,
        };
        if method == Method::CONNECT {
            return Err(Failure::usage(
                "CONNECT asks for a tunnel; fetch asks for answers".to_owned(),
            ));
        }
        Ok(Plan {
            headers: headers(args, &url)?,
            url,
            host,
            port,
            tls,
            http: args.http,
            method,
            body,
            timeout: Duration::from_secs(args.timeout),
            expect: args.expect,
            concurrency: args.concurrency,
        })
    }
}

fn parse_url(text: &str) -> Result<Uri, Failure> {
    let wanted = "--help tells more; a URL looks like https://example.com/path";
    let url: Uri = text
        .parse()
        .map_err(|error| Failure::usage(format!("{text:?} is no URL ({error}): {wanted}")))?;
    let authority = url.authority().map(hyper::http::uri::Authority::as_str);
    match (url.scheme_str(), authority) {
        (Some("https" | "http"), Some(authority)) if !authority.contains('@') => Ok(url),
        (Some("https" | "http"), Some(_)) => Err(Failure::usage(
            "a URL with a user is not sent: use --header 'Authorization: ...'".to_owned(),
        )),
        _ => Err(Failure::usage(format!(
            "{text:?} has no https:// or http://: {wanted}"
        ))),
    }
}

fn headers(args: &Args, url: &Uri) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for line in &args.headers {
        let wrong = || {
            Failure::usage(format!(
                "--header {line:?} is not of the form 'Name: value'"
            ))
        };
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
        headers.append(name, value);
    }
    let mut default = |name: HeaderName, value: &str| {
        if let (false, Ok(value)) = (headers.contains_key(&name), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    };
    default(
        HOST,
        url.authority().map_or("", |authority| authority.as_str()),
    );
    default(
        USER_AGENT,
        concat!("enclave-app/", env!("CARGO_PKG_VERSION")),
    );
    if args.data.is_some() {
        default(CONTENT_TYPE, "application/octet-stream");
    }
    Ok(headers)
}
