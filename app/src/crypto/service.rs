//! One message in, one message out, whatever it is.

use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::keeper::Keeper;
use super::message::{Answer, Asked, Encoding, Secret, request_id};
use super::tenants::Tenants;
use crate::error::Failure;
use crate::limits::crypto as limits;

/// Answers messages.
pub(super) struct Service<K> {
    keeper: K,
    tenants: Tenants,
    /// When health was last looked at, and what was seen: attestation, KMS.
    health: Mutex<Option<(Instant, bool, bool)>>,
}

impl<K: Keeper> Service<K> {
    pub(super) fn new(keeper: K, tenants: Tenants) -> Self {
        Service {
            keeper,
            tenants,
            health: Mutex::new(None),
        }
    }

    /// The answer to a message. What is wrong with it is told in the answer.
    pub(super) async fn answer(&self, message: &[u8]) -> Answer {
        let id = request_id(message);
        let done = match serde_json::from_slice::<Asked>(message) {
            Ok(asked) => self.act(asked).await,
            // The text of the error may quote the message, which may hold plaintext.
            Err(error) => {
                let place = format!("line {}, column {}", error.line(), error.column());
                let what = match error.classify() {
                    serde_json::error::Category::Data => {
                        "the message has not the fields that are expected, or of another kind"
                    }
                    _ => "the message is not JSON",
                };
                Err(Failure::usage(format!("{what}, at {place}")))
            }
        };
        let mut answer = done.unwrap_or_else(|failure| Answer::error(failure.to_string()));
        if let Some(error) = &answer.error {
            tracing::info!(request_id = id, error, "refused");
        }
        answer.request_id = id;
        answer
    }

    async fn act(&self, asked: Asked) -> Result<Answer, Failure> {
        match asked.action.as_str() {
            "decrypt" => self.decrypt(asked).await,
            "encrypt" => self.encrypt(asked).await,
            "health" => Ok(self.health().await),
            other => {
                let shown: String = other.chars().take(40).collect();
                Err(Failure::usage(format!(
                    "action {shown:?} is none of decrypt, encrypt and health"
                )))
            }
        }
    }

    async fn decrypt(&self, asked: Asked) -> Result<Answer, Failure> {
        let (tenant, key) = (asked.tenant_id.as_deref(), asked.kms_key_arn.as_deref());
        let (key, context) = self.tenants.key(tenant, key)?;
        let payload = asked
            .encrypted_payload
            .ok_or_else(|| missing("encrypted_payload"))?;
        let ciphertext = BASE64_STANDARD
            .decode(payload)
            .map_err(|error| Failure::usage(format!("encrypted_payload is not base64: {error}")))?;
        let plaintext = self.keeper.decrypt(key, ciphertext, context).await?;
        let text = match asked.encoding {
            Encoding::Base64 => Zeroizing::new(BASE64_STANDARD.encode(&*plaintext)),
            Encoding::Text => std::str::from_utf8(&plaintext)
                .map(|text| Zeroizing::new(text.to_owned()))
                .map_err(|_| {
                    Failure::usage("the plaintext is not UTF-8: ask with \"encoding\": \"base64\"")
                })?,
        };
        Ok(Answer {
            success: true,
            plaintext: Some(text),
            ..Answer::default()
        })
    }

    async fn encrypt(&self, asked: Asked) -> Result<Answer, Failure> {
        let (tenant, key) = (asked.tenant_id.as_deref(), asked.kms_key_arn.as_deref());
        let (key, context) = self.tenants.key(tenant, key)?;
        let Secret(text) = asked
            .plaintext_result
            .ok_or_else(|| missing("plaintext_result"))?;
        let plaintext = match asked.encoding {
            Encoding::Text => text.as_bytes().to_vec(),
            // Without the error: it would quote the plaintext.
            Encoding::Base64 => BASE64_STANDARD
                .decode(text.as_bytes())
                .map_err(|_| Failure::usage("plaintext_result is not base64"))?,
        };
        let made = self
            .keeper
            .encrypt(key, Zeroizing::new(plaintext), context)
            .await?;
        let encrypted_response = Some(BASE64_STANDARD.encode(made));
        Ok(Answer {
            success: true,
            encrypted_response,
            ..Answer::default()
        })
    }

    async fn health(&self) -> Answer {
        let mut known = self.health.lock().await;
        let (attestation, kms) = match *known {
            Some((when, attestation, kms)) if when.elapsed() < limits::HEALTH => (attestation, kms),
            _ => {
                let (attestation, kms) =
                    tokio::join!(self.keeper.attestation_ready(), self.keeper.kms_ready());
                *known = Some((Instant::now(), attestation, kms));
                (attestation, kms)
            }
        };
        Answer {
            success: true,
            status: Some(if attestation && kms {
                "healthy"
            } else {
                "degraded"
            }),
            attestation_ready: Some(attestation),
            kms_ready: Some(kms),
            ..Answer::default()
        }
    }
}

fn missing(field: &str) -> Failure {
    Failure::usage(format!("{field} is missing"))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::super::tenants::Context;
    use super::super::tenants::tests::{ONE, TWO, tenants};
    use super::*;
    use crate::aws::KeyArn;
    use crate::error::What;
    use serde_json::{Value, json};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Ciphertexts are key, tenant and plaintext, readable by all.
    #[derive(Clone, Default)]
    pub(in super::super) struct Open {
        asked_for_health: Arc<AtomicU32>,
    }

    fn prefix(key: &KeyArn, context: &Context) -> Vec<u8> {
        let mut bound: Vec<_> = context.iter().collect();
        bound.sort();
        format!("{} {bound:?} ", key.as_str()).into_bytes()
    }

    impl Keeper for Open {
        async fn decrypt(
            &self,
            key: &KeyArn,
            ciphertext: Vec<u8>,
            context: &Context,
        ) -> Result<Zeroizing<Vec<u8>>, Failure> {
            let opened = ciphertext.strip_prefix(prefix(key, context).as_slice());
            opened
                .map(|plain| Zeroizing::new(plain.to_vec()))
                .ok_or_else(|| {
                    Failure::new(
                        What::Decryption,
                        "it does not open with this key and context",
                    )
                })
        }

        async fn encrypt(
            &self,
            key: &KeyArn,
            plaintext: Zeroizing<Vec<u8>>,
            context: &Context,
        ) -> Result<Vec<u8>, Failure> {
            Ok([prefix(key, context).as_slice(), &plaintext].concat())
        }

        async fn attestation_ready(&self) -> bool {
            self.asked_for_health.fetch_add(1, Ordering::Relaxed);
            true
        }

        async fn kms_ready(&self) -> bool {
            false
        }
    }

    async fn ask(service: &Service<Open>, message: Value) -> Value {
        let answer = service.answer(message.to_string().as_bytes()).await;
        serde_json::from_slice(&answer.encode()).unwrap()
    }

    fn service() -> Service<Open> {
        Service::new(Open::default(), tenants())
    }

    #[tokio::test]
    async fn what_was_encrypted_is_decrypted_for_its_tenant_and_key_alone() {
        let service = service();
        let made = ask(
            &service,
            json!({
                "action": "encrypt", "plaintext_result": "a card", "tenant_id": "acme",
                "kms_key_arn": ONE, "request_id": "1", "unknown": true,
            }),
        )
        .await;
        assert_eq!(made["success"], true, "{made}");
        assert_eq!(made["request_id"], "1");
        let payload = &made["encrypted_response"];
        let opened = ask(
            &service,
            json!({
                "action": "decrypt", "encrypted_payload": payload, "tenant_id": "acme",
                "kms_key_arn": ONE,
            }),
        )
        .await;
        assert_eq!(opened, json!({"success": true, "plaintext": "a card"}));

        let other = ask(
            &service,
            json!({
                "action": "decrypt", "encrypted_payload": payload, "tenant_id": "both",
                "kms_key_arn": ONE,
            }),
        )
        .await;
        assert!(
            other["error"].as_str().unwrap().starts_with("decryption: "),
            "{other}"
        );
        let other = ask(
            &service,
            json!({
                "action": "decrypt", "encrypted_payload": payload, "tenant_id": "acme",
                "kms_key_arn": TWO,
            }),
        )
        .await;
        assert!(
            other["error"].as_str().unwrap().starts_with("permission: "),
            "{other}"
        );
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_go_in_base64() {
        let service = service();
        let bytes = BASE64_STANDARD.encode([0xff, 0, 0xfe]);
        let made = ask(
            &service,
            json!({
                "action": "encrypt", "plaintext_result": bytes, "tenant_id": "acme",
                "encoding": "base64",
            }),
        )
        .await;
        let decrypt = |encoding: &str| {
            json!({
                "action": "decrypt", "encrypted_payload": made["encrypted_response"],
                "tenant_id": "acme", "encoding": encoding,
            })
        };
        let opened = ask(&service, decrypt("base64")).await;
        assert_eq!(opened["plaintext"], Value::from(bytes));
        let refused = ask(&service, decrypt("utf-8")).await;
        assert!(
            refused["error"].as_str().unwrap().contains("not UTF-8"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn what_is_wrong_is_told_and_no_plaintext_with_it() {
        let service = service();
        for (message, named) in [
            ("", "not JSON"),
            ("secret", "not JSON"),
            (r#"{"action": "decrypt""#, "not JSON"),
            (r#"["secret"]"#, "fields"),
            ("{}", "fields"),
            (
                r#"{"action": "encrypt", "plaintext_result": ["secret"]}"#,
                "fields",
            ),
            (
                r#"{"action": "encrypt", "tenant_id": "acme", "encoding": "secret"}"#,
                "fields",
            ),
            (r#"{"action": "steal"}"#, "\"steal\" is none of"),
            (r#"{"action": "decrypt"}"#, "tenant_id is missing"),
            (
                r#"{"action": "decrypt", "tenant_id": "acme"}"#,
                "encrypted_payload is missing",
            ),
            (
                r#"{"action": "encrypt", "tenant_id": "acme"}"#,
                "plaintext_result is missing",
            ),
            (
                r#"{"action": "encrypt", "tenant_id": "none"}"#,
                "no tenant \"none\"",
            ),
            (
                r#"{"action": "decrypt", "tenant_id": "acme", "encrypted_payload": "!"}"#,
                "not base64",
            ),
            (
                r#"{"action": "encrypt", "tenant_id": "acme", "encoding": "base64",
                    "plaintext_result": "secret!"}"#,
                "not base64",
            ),
        ] {
            let answer = service.answer(message.as_bytes()).await;
            assert!(!answer.success, "{message}");
            let error = answer.error.unwrap();
            assert!(error.contains(named), "{message}: {error}");
            assert!(!error.contains("secret"), "{message}: {error}");
        }
    }

    #[tokio::test]
    async fn health_is_told_and_not_asked_for_each_time() {
        let keeper = Open::default();
        let service = Service::new(keeper.clone(), tenants());
        for _ in 0..5 {
            let health = ask(&service, json!({"action": "health", "request_id": "h"})).await;
            assert_eq!(
                health,
                json!({
                    "success": true, "status": "degraded", "attestation_ready": true,
                    "kms_ready": false, "request_id": "h",
                })
            );
        }
        assert_eq!(keeper.asked_for_health.load(Ordering::Relaxed), 1);
    }
}
