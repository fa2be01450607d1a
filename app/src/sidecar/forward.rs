//! Requests to sites, and their answers.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{HOST, HeaderMap, HeaderValue, MAX_FORWARDS};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::body::{Any, Way, empty, watched};
use super::config::Config;
use super::headers;
use super::metrics::{Metrics, Trouble};
use super::reach::{Reach, Unanswered};
use super::retry::Attempts;
use crate::error::Failure;
use crate::net::tls;

/// How long an idle connection to a site is kept; servers close theirs after 60 to 75 s.
const KEPT: Duration = Duration::from_secs(50);

/// Sends requests on. Connections to sites are kept and used again.
pub(super) struct Forwarder {
    client: Client<HttpsConnector<Reach>, Any>,
    config: Config,
    metrics: Arc<Metrics>,
    /// How this proxy calls itself in `Via`: another name for each, so that a request that comes
    /// back is known, and one that passes two of them is not mistaken for that.
    pseudonym: String,
}

impl Forwarder {
    pub(super) fn new(
        config: &Config,
        reach: Reach,
        metrics: &Arc<Metrics>,
        pseudonym: String,
    ) -> Result<Forwarder, Failure> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client(&config.roots, config.tls_oldest)?)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(reach);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .pool_max_idle_per_host(config.kept_per_host)
            .build(connector);
        let (config, metrics) = (config.clone(), Arc::clone(metrics));
        Ok(Forwarder {
            client,
            config,
            metrics,
            pseudonym,
        })
    }

    /// Sends a request on, again if it may be, and hands its answer back. Bodies flow through.
    pub(super) async fn forward(
        &self,
        request: Request<Incoming>,
        url: Uri,
    ) -> Result<Response<Any>, Unanswered> {
        let (mut parts, body) = request.into_parts();
        if headers::passed_by(&parts.headers, &self.pseudonym) {
            return Err(Unanswered::new(
                Trouble::Bad,
                "the request comes back to this proxy",
            ));
        }
        if !may_go_on(&parts.method, &mut parts.headers) {
            return Ok(last_hop());
        }
        headers::strip(&mut parts.headers);
        // The URL says it, and a client that names another host in it is not believed (RFC 9112,
        // 3.2.2).
        parts.headers.remove(HOST);
        headers::pass_by(&mut parts.headers, parts.version, &self.pseudonym);
        parts.uri = url;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();

        let (most, backoff) = (self.config.attempts, self.config.backoff);
        let mut attempts = Attempts::of(&parts.method, !body.is_end_stream(), most, backoff);
        // Whatever is tried again has none.
        let mut body = Some(body);
        loop {
            let body = body.take().filter(|body| !body.is_end_stream());
            let body = body.map_or_else(empty, |body| self.watched(body, Way::ToSite));
            let request = Request::from_parts(parts.clone(), body);
            let wait = match self.attempt(request).await {
                Ok(answer) => match attempts.after_answer(answer.status(), answer.headers()) {
                    None => return Ok(self.pass_back(answer)),
                    Some(wait) => wait,
                },
                Err(unanswered) => attempts
                    .after_trouble(unanswered.trouble)
                    .ok_or(unanswered)?,
            };
            self.metrics.retries.fetch_add(1, Relaxed);
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, request: Request<Any>) -> Result<Response<Incoming>, Unanswered> {
        let time = self.config.answer_time;
        match tokio::time::timeout(time, self.client.request(request)).await {
            // Upgrades are not passed on, so nobody asked for one.
            Ok(Ok(answer)) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => Err(
                Unanswered::new(Trouble::Exchange, "the site switches protocols unasked"),
            ),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Unanswered::of(&error)),
            Err(_) => {
                let why = format!("no answer within {} s", time.as_secs());
                Err(Unanswered::new(Trouble::Time, why))
            }
        }
    }

    fn pass_back(&self, answer: Response<Incoming>) -> Response<Any> {
        let (mut parts, body) = answer.into_parts();
        headers::strip(&mut parts.headers);
        headers::pass_by(&mut parts.headers, parts.version, &self.pseudonym);
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        Response::from_parts(parts, self.watched(body, Way::ToClient))
    }

    fn watched(&self, body: Incoming, way: Way) -> Any {
        watched(body, way, &self.metrics, self.config.idle_time)
    }
}

/// Counts a hop off the requests that want it counted (RFC 9110, 7.6.2); tells whether any is left.
fn may_go_on(method: &Method, headers: &mut HeaderMap) -> bool {
    if method != Method::OPTIONS && method != Method::TRACE {
        return true;
    }
    let hops = headers
        .get(MAX_FORWARDS)
        .and_then(|hops| hops.to_str().ok()?.trim().parse().ok());
    match hops {
        None => true,
        Some(0_u64) => false,
        Some(hops) => {
            headers.insert(MAX_FORWARDS, HeaderValue::from(hops - 1));
            true
        }
    }
}

/// The answer of the one at whom a request ends that was to go no further.
fn last_hop() -> Response<Any> {
    let mut answer = Response::new(empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn hops_are_counted_where_they_mean_something() {
        let with = |hops: &str| HeaderMap::from_iter([(MAX_FORWARDS, hops.parse().unwrap())]);
        let mut headers = with("2");
        assert!(may_go_on(&Method::OPTIONS, &mut headers));
        assert_eq!(headers, with("1"));
        assert!(!may_go_on(&Method::TRACE, &mut with("0")));
        assert!(may_go_on(&Method::GET, &mut with("0")));
        assert!(may_go_on(&Method::OPTIONS, &mut with("many")));
    }
}
