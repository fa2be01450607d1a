//! A queue of SQS: named on the command line, asked by the SDK.

use std::error::Error as StdError;
use std::str::FromStr;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::MessageSystemAttributeName::ApproximateReceiveCount;

use crate::aws::failure;
use crate::error::{Failure, What};
use crate::limits::aws::{ATTEMPT, CALL};
use crate::limits::cards as limits;

/// A queue by its URL, or by its name in the account and region of who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum QueueName {
    Url(String),
    Name(String),
}

impl FromStr for QueueName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.ends_with(".fifo") {
            return Err("FIFO queues are not used here: name a standard queue");
        }
        // Where it leads is of no matter: requests go to the region's endpoint, with this in them.
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(QueueName::Url(text.to_owned()));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if (1..=80).contains(&text.len()) && text.bytes().all(is_plain) {
            return Ok(QueueName::Name(text.to_owned()));
        }
        Err("a queue's URL, or its name: up to 80 letters, digits, hyphens and underscores")
    }
}

/// A queue, ready to be used.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    client: Client,
    url: String,
}

/// A message that was received and is to be deleted.
#[derive(Debug)]
pub(super) struct Message {
    /// What SQS calls it.
    pub(super) id: String,
    pub(super) body: String,
    /// How often it was received, this time included.
    pub(super) receives: u32,
    receipt: String,
}

impl Queue {
    /// Finds a queue.
    ///
    /// # Errors
    /// When a name is asked for, and not answered.
    pub(super) async fn open(client: &Client, name: &QueueName) -> Result<Queue, Failure> {
        let url = match name {
            QueueName::Url(url) => url.clone(),
            QueueName::Name(name) => client
                .get_queue_url()
                .queue_name(name)
                .send()
                .await
                .map_err(|error| failed(name, &error))?
                .queue_url
                .ok_or_else(|| Failure::new(What::Request, "SQS answered without a URL"))?,
        };
        Ok(Queue {
            client: client.clone(),
            url,
        })
    }

    /// Its URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The next messages, if any come within `wait`; for `hidden` nobody else is given them.
    ///
    /// # Errors
    /// What failed and why.
    pub(super) async fn receive(
        &self,
        wait: Duration,
        hidden: Duration,
    ) -> Result<Vec<Message>, Failure> {
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(wait + ATTEMPT)
            .operation_timeout(wait + CALL)
            .build();
        let answer = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(limits::AT_ONCE)
            .wait_time_seconds(seconds(wait))
            .visibility_timeout(seconds(hidden))
            .message_system_attribute_names(ApproximateReceiveCount)
            .customize()
            .config_override(aws_sdk_sqs::Config::builder().timeout_config(timeouts))
            .send()
            .await
            .map_err(|error| failed(&self.url, &error))?;
        let messages = answer.messages.unwrap_or_default().into_iter();
        Ok(messages.filter_map(Message::read).collect())
    }

    /// Sends a message; SQS's name for it.
    ///
    /// # Errors
    /// What failed and why.
    pub(super) async fn send(&self, body: String) -> Result<String, Failure> {
        let sent = self.client.send_message().queue_url(&self.url);
        let sent = sent.message_body(body).send().await;
        let sent = sent.map_err(|error| failed(&self.url, &error))?;
        sent.message_id
            .ok_or_else(|| Failure::new(What::Request, "SQS answered without a message's id"))
    }

    /// Deletes a message, which otherwise comes again.
    ///
    /// # Errors
    /// What failed and why.
    pub(super) async fn delete(&self, message: &Message) -> Result<(), Failure> {
        let call = self.client.delete_message().queue_url(&self.url);
        let done = call.receipt_handle(&message.receipt).send().await;
        done.map(|_| ()).map_err(|error| failed(&self.url, &error))
    }

    /// Lets a message come again, after some time.
    ///
    /// # Errors
    /// What failed and why.
    pub(super) async fn again(&self, message: &Message, after: Duration) -> Result<(), Failure> {
        let call = self.client.change_message_visibility();
        let call = call.queue_url(&self.url).receipt_handle(&message.receipt);
        let done = call.visibility_timeout(seconds(after)).send().await;
        done.map(|_| ()).map_err(|error| failed(&self.url, &error))
    }
}

impl Message {
    fn read(message: aws_sdk_sqs::types::Message) -> Option<Message> {
        let receives = message
            .attributes()
            .and_then(|all| all.get(&ApproximateReceiveCount)?.parse().ok());
        Some(Message {
            // Other services than AWS's may not count.
            receives: receives.unwrap_or(1),
            id: message.message_id?,
            body: message.body?,
            receipt: message.receipt_handle?,
        })
    }
}

/// In whole seconds, as SQS counts.
fn seconds(time: Duration) -> i32 {
    i32::try_from(time.as_secs()).unwrap_or(i32::MAX)
}

/// What failed, and with which queue.
fn failed<E>(queue: &str, error: &SdkError<E, HttpResponse>) -> Failure
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    let Failure { what, why } = failure(error, false);
    Failure::new(what, format!("queue {queue}: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn a_queue_is_a_url_or_a_name() {
        let url = "https://sqs.us-east-1.amazonaws.com/123456789012/cards";
        assert_eq!(url.parse(), Ok(QueueName::Url(url.to_owned())));
        for name in ["cards", "Cards-2_x", &"x".repeat(80)] {
            assert_eq!(name.parse(), Ok(QueueName::Name(name.to_owned())));
        }
        for wrong in [
            "",
            "a queue",
            "arn:aws:sqs:us-east-1:123456789012:cards",
            &"x".repeat(81),
            "cards.fifo",
            "https://sqs.us-east-1.amazonaws.com/123456789012/cards.fifo",
        ] {
            assert!(wrong.parse::<QueueName>().is_err(), "{wrong}");
        }
    }
}
