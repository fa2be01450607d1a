//! What travels on the queues: a card that is encrypted, and what is answered.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::card::LastFour;
use crate::kms::Context;
use crate::limits::cards as limits;

/// A card for the enclave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: String,
    pub(super) ciphertext: Vec<u8>,
}

/// As it travels.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    id: String,
    card: String,
}

/// What is wrong with a message, for ever: it is answered so, and deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub(super) enum Rejection {
    #[error("longer than any card's message")]
    TooLong,
    #[error("not JSON with an id and a card")]
    Message,
    #[error("the card is not base64, or of no ciphertext's length")]
    Ciphertext,
    #[error("KMS does not open it with this key and this id")]
    Decryption,
    #[error("what was encrypted is not the number of a card")]
    Card,
}

impl Request {
    /// What is bound to a card's ciphertext: what it is for, and which one it is. So no ciphertext of
    /// another kind opens here, and none under another one's id.
    pub(super) fn context(id: &str) -> Context {
        let entries = [("purpose", "enclave-app cards"), ("id", id)];
        entries
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    /// The text of a message.
    pub(super) fn encode(&self) -> String {
        let raw = Raw {
            id: self.id.clone(),
            card: BASE64_STANDARD.encode(&self.ciphertext),
        };
        // Two strings cannot fail.
        serde_json::to_string(&raw).unwrap_or_default()
    }

    /// Reads a message, which anybody may have written.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(body: &str) -> Result<Request, Rejection> {
        if body.len() > limits::MESSAGE {
            return Err(Rejection::TooLong);
        }
        let raw: Raw = serde_json::from_str(body).map_err(|_| Rejection::Message)?;
        if !is_id(&raw.id) {
            return Err(Rejection::Message);
        }
        let ciphertext = BASE64_STANDARD
            .decode(raw.card)
            .map_err(|_| Rejection::Ciphertext)?;
        if !(1..=limits::CIPHERTEXT).contains(&ciphertext.len()) {
            return Err(Rejection::Ciphertext);
        }
        Ok(Request {
            id: raw.id,
            ciphertext,
        })
    }
}

/// Short, and of characters that mean nothing in any log.
fn is_id(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=limits::ID).contains(&text.len()) && text.bytes().all(is_plain)
}

/// What is answered: the last four digits or what was wrong, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answer {
    /// What SQS called the message.
    pub(super) message_id: String,
    /// What its sender called the card, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_four: Option<LastFour>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Rejection>,
}

impl Answer {
    /// To a card.
    pub(super) fn seen(message_id: &str, id: String, last_four: LastFour) -> Answer {
        Answer {
            message_id: message_id.to_owned(),
            id: Some(id),
            last_four: Some(last_four),
            error: None,
        }
    }

    /// To what is none.
    pub(super) fn rejected(message_id: &str, id: Option<String>, error: Rejection) -> Answer {
        Answer {
            message_id: message_id.to_owned(),
            id,
            last_four: None,
            error: Some(error),
        }
    }

    /// The text of a message.
    pub(super) fn encode(&self) -> String {
        // Strings and names cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads an answer; what is none, is not for us.
    pub(super) fn parse(body: &str) -> Option<Answer> {
        let answer: Answer = serde_json::from_str(body).ok()?;
        (answer.last_four.is_some() != answer.error.is_some()).then_some(answer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_sent_is_read() {
        let request = Request {
            id: "a-Z_0.9".to_owned(),
            ciphertext: vec![0, 1, 255],
        };
        assert_eq!(request.encode(), r#"{"id":"a-Z_0.9","card":"AAH/"}"#);
        assert_eq!(Request::parse(&request.encode()), Ok(request));
    }

    #[test]
    fn the_longest_of_each_is_read_and_nothing_longer() {
        let longest = Request {
            id: "x".repeat(limits::ID),
            ciphertext: vec![7; limits::CIPHERTEXT],
        };
        assert_eq!(Request::parse(&longest.encode()).as_ref(), Ok(&longest));
        let mut long = longest.clone();
        long.id.push('x');
        assert_eq!(Request::parse(&long.encode()), Err(Rejection::Message));
        let mut long = longest.clone();
        long.ciphertext.push(7);
        assert_eq!(Request::parse(&long.encode()), Err(Rejection::Ciphertext));
        let text = longest.encode();
        let padded = |length: usize| format!("{text}{}", " ".repeat(length - text.len()));
        assert_eq!(Request::parse(&padded(limits::MESSAGE)), Ok(longest));
        let long = padded(limits::MESSAGE + 1);
        assert_eq!(Request::parse(&long), Err(Rejection::TooLong));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, rejection) in [
            ("", Rejection::Message),
            ("4000000000000002", Rejection::Message),
            ("[]", Rejection::Message),
            ("{}", Rejection::Message),
            (r#"{"id":"1"}"#, Rejection::Message),
            (r#"{"card":"AAAA"}"#, Rejection::Message),
            (r#"{"id":1,"card":"AAAA"}"#, Rejection::Message),
            (r#"{"id":"1","card":null}"#, Rejection::Message),
            (r#"{"id":"1","card":"AAAA","more":1}"#, Rejection::Message),
            (r#"{"id":"1","id":"2","card":"AAAA"}"#, Rejection::Message),
            (r#"{"id":"1","card":"AAAA"}{}"#, Rejection::Message),
            (r#"{"id":"","card":"AAAA"}"#, Rejection::Message),
            (r#"{"id":"a b","card":"AAAA"}"#, Rejection::Message),
            (r#"{"id":"a\n","card":"AAAA"}"#, Rejection::Message),
            (r#"{"id":"ä","card":"AAAA"}"#, Rejection::Message),
            (r#"{"id":"1","card":""}"#, Rejection::Ciphertext),
            (r#"{"id":"1","card":"AAA"}"#, Rejection::Ciphertext),
            (r#"{"id":"1","card":"A A A"}"#, Rejection::Ciphertext),
        ] {
            assert_eq!(Request::parse(text), Err(rejection), "{text}");
        }
    }

    #[test]
    fn an_answer_says_one_thing() {
        let seen: LastFour = "0002".to_owned().try_into().unwrap();
        let answer = Answer::seen("m", "1".to_owned(), seen);
        let text = r#"{"message_id":"m","id":"1","last_four":"0002"}"#;
        assert_eq!(answer.encode(), text);
        assert_eq!(Answer::parse(text), Some(answer));
        let answer = Answer::rejected("m", None, Rejection::TooLong);
        let text = r#"{"message_id":"m","error":"too_long"}"#;
        assert_eq!(answer.encode(), text);
        assert_eq!(Answer::parse(text), Some(answer));
        for text in [
            r#"{"message_id":"m"}"#,
            r#"{"id":"1","last_four":"0002"}"#,
            r#"{"message_id":"m","last_four":"0002","error":"card"}"#,
            r#"{"message_id":"m","last_four":"00002"}"#,
            r#"{"message_id":"m","last_four":"000x"}"#,
            r#"{"message_id":"m","error":"other"}"#,
            r#"{"message_id":"m","error":"card","why":"x"}"#,
        ] {
            assert_eq!(Answer::parse(text), None, "{text}");
        }
    }

    #[test]
    fn each_card_has_a_context_of_its_own() {
        let context = Request::context("1");
        assert_eq!(context["id"], "1");
        assert_eq!(context["purpose"], "enclave-app cards");
        assert_ne!(context, Request::context("2"));
    }

    proptest! {
        #[test]
        fn whatever_is_read_could_have_been_sent(body in ".{0,200}|\\{\"id\":\"[a-z]{0,70}\",\"card\":\"[A-D=]{0,12}\"\\}") {
            if let Ok(request) = Request::parse(&body) {
                prop_assert_eq!(Request::parse(&request.encode()), Ok(request));
            }
        }
    }
}
