//! What is asked and answered.

use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use crate::limits::crypto as limits;

/// A message as it comes: every field may be absent, and be of the wrong kind for its action. Fields
/// that are not known are passed over.
#[derive(Deserialize)]
pub(super) struct Asked {
    pub(super) action: String,
    pub(super) encrypted_payload: Option<String>,
    pub(super) plaintext_result: Option<Secret>,
    pub(super) kms_key_arn: Option<String>,
    pub(super) tenant_id: Option<String>,
    #[serde(default)]
    pub(super) encoding: Encoding,
}

/// What can be told of a message that is wrong otherwise.
#[derive(Default, Deserialize)]
struct Identified {
    #[serde(default)]
    request_id: Option<String>,
}

/// How plaintext stands in a message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Encoding {
    /// As it is: text alone can be carried.
    #[default]
    #[serde(rename = "utf-8")]
    Text,
    /// In base64: anything.
    #[serde(rename = "base64")]
    Base64,
}

/// Text that is wiped after use.
pub(super) struct Secret(pub(super) Zeroizing<String>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Zeroizing::new).map(Secret)
    }
}

/// What is answered. A field that has nothing to say is left out.
#[derive(Default, Serialize)]
pub(super) struct Answer {
    pub(super) success: bool,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "reveal")]
    pub(super) plaintext: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) encrypted_response: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attestation_ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kms_ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<String>,
}

fn reveal<S: serde::Serializer>(
    text: &Option<Zeroizing<String>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.serialize_str(text.as_ref().map_or("", |text| text))
}

impl Answer {
    /// That it did not work, and why.
    pub(super) fn error(why: impl Into<String>) -> Answer {
        Answer {
            error: Some(why.into()),
            ..Answer::default()
        }
    }

    /// Its bytes. They may hold plaintext: room is made for all of it at once, since growing would
    /// leave copies behind.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let texts = [&self.encrypted_response, &self.error, &self.request_id];
        let length: usize = texts.into_iter().flatten().map(String::len).sum();
        let secret = self.plaintext.as_ref().map_or(0, |text| text.len());
        // A character can become six (\u0000).
        let mut bytes = Zeroizing::new(Vec::with_capacity(256 + 6 * (length + secret)));
        // Neither a vector nor these fields can fail.
        let _ = serde_json::to_writer(&mut *bytes, self);
        bytes
    }
}

/// The identifier of a message, whatever else it holds.
pub(super) fn request_id(message: &[u8]) -> Option<String> {
    let identified: Identified = serde_json::from_slice(message).unwrap_or_default();
    identified
        .request_id
        .filter(|id| id.len() <= limits::REQUEST_ID)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn answers_hold_what_they_have_to_say_alone() {
        let text = |answer: Answer| String::from_utf8(answer.encode().to_vec()).unwrap();
        let answer = Answer {
            success: true,
            plaintext: Some(Zeroizing::new("a \"quote\"\n".to_owned())),
            request_id: Some("7".to_owned()),
            ..Answer::default()
        };
        let expected = r#"{"success":true,"plaintext":"a \"quote\"\n","request_id":"7"}"#;
        assert_eq!(text(answer), expected);
        assert_eq!(
            text(Answer::error("no")),
            r#"{"success":false,"error":"no"}"#
        );
    }

    #[test]
    fn no_copy_is_left_where_an_answer_grew() {
        let plaintext = Some(Zeroizing::new("\0".repeat(10_000)));
        let answer = Answer {
            plaintext,
            ..Answer::default()
        };
        let bytes = answer.encode();
        assert_eq!(bytes.capacity(), 256 + 6 * 10_000);
        assert!(bytes.len() > 6 * 10_000);
    }

    #[test]
    fn an_identifier_is_found_in_what_is_wrong_otherwise() {
        let id = |text: &str| request_id(text.as_bytes());
        assert_eq!(id(r#"{"request_id":"a","action":5}"#).as_deref(), Some("a"));
        assert_eq!(id(r#"{"request_id":5}"#), None);
        assert_eq!(id("[]"), None);
        let long = format!(
            r#"{{"request_id":"{}"}}"#,
            "x".repeat(limits::REQUEST_ID + 1)
        );
        assert_eq!(id(&long), None);
    }
}
