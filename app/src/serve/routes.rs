//! What is answered.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::body::Body;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::attestor::Attestor;

/// The longest nonce that a document can hold.
const MOST_NONCE: usize = 512;
/// The longest body that is let in; no request here needs one.
const MOST_BODY: u64 = 64 * 1024;
/// Documents that are made at once: the security module makes one after the other.
const DOCUMENTS: usize = 4;
/// How long a request waits for its document when many want one.
const DOCUMENT_TIME: Duration = Duration::from_secs(10);

/// What the answers are made of.
pub(super) struct Service {
    pub(super) greeting: String,
    /// Of the key of the server's certificate, if it speaks TLS.
    pub(super) key_sha256: Option<String>,
    pub(super) attestor: Arc<dyn Attestor>,
}

struct Shared {
    service: Service,
    documents: Arc<Semaphore>,
}

pub(super) fn router(service: Service) -> Router {
    let shared = Shared {
        service,
        documents: Arc::new(Semaphore::new(DOCUMENTS)),
    };
    Router::new()
        .route("/", get(greet))
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/attestation", get(attest))
        .fallback(async || {
            refuse(
                StatusCode::NOT_FOUND,
                "there is /, /health and /attestation?nonce=",
            )
        })
        .layer(middleware::from_fn(bounded))
        .with_state(Arc::new(shared))
}

async fn greet(State(shared): State<Arc<Shared>>) -> String {
    format!("{}\n", shared.service.greeting)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    nonce: String,
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Cose,
}

async fn attest(
    State(shared): State<Arc<Shared>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let wanted = match wanted {
        Ok(Query(wanted)) => wanted,
        Err(error) => {
            let why = format!("{}; ask for /attestation?nonce=HEX", error.body_text());
            return refuse(StatusCode::BAD_REQUEST, &why);
        }
    };
    let nonce = match hex::decode(&wanted.nonce) {
        Ok(nonce) if (1..=MOST_NONCE).contains(&nonce.len()) => nonce,
        _ => {
            let why = format!("nonce must be 1 to {MOST_NONCE} bytes in hexadecimal digits");
            return refuse(StatusCode::BAD_REQUEST, &why);
        }
    };
    let user_data = (shared.service.key_sha256.as_ref()).map(|key| format!("tls-key-sha256:{key}"));
    let place = Arc::clone(&shared.documents).acquire_owned();
    let Ok(Ok(place)) = tokio::time::timeout(DOCUMENT_TIME, place).await else {
        return refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many ask for documents: try again",
        );
    };
    let (attestor, data) = (Arc::clone(&shared.service.attestor), user_data.clone());
    let document = spawn_blocking(move || {
        // Kept to the end of the call, which a client that has gone does not stop.
        let _place = place;
        attestor.attest(&nonce, data.as_deref().map(str::as_bytes))
    });
    let document = match document.await {
        Ok(Ok(document)) => document,
        Ok(Err(failure)) => {
            tracing::warn!(%failure, "no attestation document");
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &failure.to_string());
        }
        Err(_) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, "a bug; see the log"),
    };
    // Every document answers one question alone.
    let fresh = [(header::CACHE_CONTROL, "no-store")];
    match wanted.format {
        Format::Cose => {
            let kind = [(
                header::CONTENT_TYPE,
                "application/cose; cose-type=\"cose-sign1\"",
            )];
            (fresh, kind, document).into_response()
        }
        Format::Json => {
            let answer = json!({
                "document": BASE64_STANDARD.encode(document),
                "nonce": wanted.nonce,
                "user_data": user_data,
                "tls_key_sha256": shared.service.key_sha256,
            });
            (fresh, Json(answer)).into_response()
        }
    }
}

/// Refuses what brings a long body, before anything reads it.
async fn bounded(request: Request, next: Next) -> Response {
    if request.body().size_hint().lower() > MOST_BODY {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "nothing here takes a body");
    }
    next.run(request).await
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({"error": why}))).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;
    use crate::error::{Failure, What};
    use axum::body::{Body, to_bytes};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex};
    use tower_service::Service as _;

    /// Documents that say what they were made of.
    struct Plain;

    impl Attestor for Plain {
        fn attest(&self, nonce: &[u8], user_data: Option<&[u8]>) -> Result<Vec<u8>, Failure> {
            let user_data = user_data.map(String::from_utf8_lossy).unwrap_or_default();
            Ok(format!("{} {user_data}", hex::encode(nonce)).into_bytes())
        }
    }

    struct Nothing;

    impl Attestor for Nothing {
        fn attest(&self, _: &[u8], _: Option<&[u8]>) -> Result<Vec<u8>, Failure> {
            Err(Failure::new(What::Attestation, "no device"))
        }
    }

    async fn ask(attestor: impl Attestor, key: Option<&str>, path: &str) -> (StatusCode, String) {
        let mut router = router(Service {
            greeting: "hello".to_owned(),
            key_sha256: key.map(str::to_owned),
            attestor: Arc::new(attestor),
        });
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = router.call(request).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn it_greets_and_is_well() {
        assert_eq!(
            ask(Plain, None, "/").await,
            (StatusCode::OK, "hello\n".to_owned())
        );
        assert_eq!(ask(Plain, None, "/health").await.1, r#"{"status":"ok"}"#);
        assert_eq!(ask(Plain, None, "/other").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn documents_hold_the_nonce_and_the_key() {
        let (status, raw) = ask(Plain, Some("ab12"), "/attestation?nonce=00ff&format=cose").await;
        assert_eq!(
            (status, &*raw),
            (StatusCode::OK, "00ff tls-key-sha256:ab12")
        );
        let (_, raw) = ask(Plain, None, "/attestation?nonce=00ff&format=cose").await;
        assert_eq!(raw, "00ff ", "no TLS, no key");
        let (_, text) = ask(Plain, Some("ab12"), "/attestation?nonce=00FF").await;
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        let document = answer["document"].as_str().unwrap();
        let document = BASE64_STANDARD.decode(document).unwrap();
        assert_eq!(document, b"00ff tls-key-sha256:ab12");
        assert_eq!(answer["tls_key_sha256"], "ab12");
    }

    /// Each call waits for a word, and is counted.
    #[derive(Clone, Default)]
    struct Slow {
        begun: Arc<AtomicUsize>,
        go: Arc<(Mutex<bool>, Condvar)>,
    }

    impl Attestor for Slow {
        fn attest(&self, _: &[u8], _: Option<&[u8]>) -> Result<Vec<u8>, Failure> {
            self.begun.fetch_add(1, Ordering::Relaxed);
            let (may_go, told) = &*self.go;
            drop(told.wait_while(may_go.lock().unwrap(), |may_go| !*may_go));
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn clients_that_ask_and_go_cost_no_more_than_those_that_stay() {
        let slow = Slow::default();
        let mut router = router(Service {
            greeting: String::new(),
            key_sha256: None,
            attestor: Arc::new(slow.clone()),
        });
        for _ in 0..5 * DOCUMENTS {
            let request = Request::get("/attestation?nonce=00").body(Body::empty());
            let asked = router.call(request.unwrap());
            // The client goes before there is an answer.
            let gone = tokio::time::timeout(Duration::from_millis(20), asked).await;
            assert!(gone.is_err());
        }
        while slow.begun.load(Ordering::Relaxed) < DOCUMENTS {
            tokio::task::yield_now().await;
        }
        let begun = slow.begun.load(Ordering::Relaxed);
        // Calls that wait would keep the runtime from ending.
        *slow.go.0.lock().unwrap() = true;
        slow.go.1.notify_all();
        assert_eq!(begun, DOCUMENTS);
    }

    #[tokio::test]
    async fn what_is_wrong_is_told() {
        let long = format!("/attestation?nonce={}", "00".repeat(MOST_NONCE + 1));
        let wrong = [
            "/attestation",
            "/attestation?nonce=",
            "/attestation?nonce=xyz",
            &long,
        ];
        let odd = [
            "/attestation?nonce=00&format=xml",
            "/attestation?nonce=00&nonse=1",
        ];
        for path in wrong.into_iter().chain(odd) {
            let (status, text) = ask(Plain, None, path).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {text}");
            assert!(text.contains("nonce"), "{path}: {text}");
        }
        let longest = format!("/attestation?nonce={}", "00".repeat(MOST_NONCE));
        assert_eq!(ask(Plain, None, &longest).await.0, StatusCode::OK);
        let (status, text) = ask(Nothing, None, "/attestation?nonce=00").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("attestation: no device"), "{text}");
    }
}
