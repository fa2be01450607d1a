//! The enclave's side.

use std::pin::pin;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::Common;
use super::card::Number;
use super::message::{Answer, Rejection, Request};
use super::queue::{Message, Queue, QueueName};
use crate::aws;
use crate::error::{Failure, What};
use crate::kms::{Kms, Stock};
use crate::limits::cards as limits;
use crate::limits::net::GRACE;
use crate::net::backoff::Backoff;
use crate::net::stop_signal;
use crate::nsm::Place;

/// Arguments of `cards serve`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    common: Common,
    /// The queue for the answers: its URL or its name
    #[arg(long, value_name = "QUEUE")]
    results: QueueName,
    /// Outside an enclave: let KMS answer without sealing its answers
    #[arg(long)]
    plain: bool,
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// When it cannot begin: settings, or a queue that is not there.
pub async fn serve(args: ServeArgs, place: Place) -> Result<(), Failure> {
    let Common { queue, key, region } = args.common;
    let stock = Stock::of(&place);
    let kms = Kms::in_region(place, args.plain, Some(key.region().to_owned())).await?;
    let kms = kms.with_stock(&stock);
    let sqs = aws_sdk_sqs::Client::new(&aws::settings(region).await?);
    let mut stop = pin!(stop_signal()?);
    let mut rest = Backoff::new(limits::REST);
    let (cards, results) = loop {
        let both = async {
            let cards = Queue::open(&sqs, &queue).await?;
            Ok((cards, Queue::open(&sqs, &args.results).await?))
        };
        let failure: Failure = tokio::select! {
            opened = both => match opened {
                Ok(opened) => break opened,
                Err(failure) => failure,
            },
            () = &mut stop => return Ok(()),
        };
        // An enclave may be up before its network is, and credentials may come by the network.
        if !matches!(failure.what, What::Network | What::Credentials) {
            return Err(failure);
        }
        let wait = rest.wait();
        tracing::warn!(%failure, again_in = ?wait, "the queues are not found");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = &mut stop => return Ok(()),
        }
    };
    tracing::info!(queue = cards.url(), results = results.url(), "serving");
    let desk = Arc::new(Desk {
        kms,
        key: key.as_str().to_owned(),
        cards,
        results,
    });
    desk.run(stop).await;
    Ok(())
}

/// Where messages are answered.
struct Desk {
    kms: Kms,
    key: String,
    cards: Queue,
    results: Queue,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its answer is sent.
    Answered,
    /// It comes again.
    Left,
}

impl Desk {
    /// Receives messages and answers them, until `stop`.
    async fn run(self: Arc<Self>, mut stop: impl Future<Output = ()> + Unpin) {
        let mut rest = Backoff::new(limits::REST);
        loop {
            let received = tokio::select! {
                received = self.cards.receive(limits::WAIT, limits::VISIBILITY) => received,
                () = &mut stop => {
                    return finish(JoinSet::new()).await;
                }
            };
            let is_well = match received {
                Ok(messages) => {
                    let mut under_way = JoinSet::new();
                    for message in messages {
                        under_way.spawn(Arc::clone(&self).handle(message));
                    }
                    tokio::select! {
                        is_well = all(&mut under_way) => is_well,
                        () = &mut stop => return finish(under_way).await,
                    }
                }
                Err(failure) => {
                    tracing::warn!(%failure, "no messages can be received");
                    false
                }
            };
            if is_well {
                rest.reset();
                continue;
            }
            let wait = rest.wait();
            tracing::info!(?wait, "resting");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = &mut stop => {
                    return finish(JoinSet::new()).await;
                }
            }
        }
    }

    /// Answers a message and deletes it, or leaves it to come again.
    async fn handle(self: Arc<Self>, message: Message) -> Fate {
        let message_id = &message.id;
        tracing::debug!(message_id, receives = message.receives, "received");
        let sent = match self.answer(&message).await {
            Ok(answer) => {
                if let Some(error) = answer.error {
                    tracing::info!(message_id, id = answer.id, %error, "rejected");
                }
                self.results.send(answer.encode()).await
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = sent {
            let waits = message.receives.saturating_sub(1);
            let wait = Backoff::new(limits::AGAIN).after(waits).wait();
            tracing::warn!(message_id, %failure, again_in = ?wait, "left in the queue");
            if let Err(failure) = self.cards.again(&message, wait).await {
                // It comes again by itself, when its visibility time-out is over.
                tracing::debug!(message_id, %failure, "its time cannot be changed");
            }
            return Fate::Left;
        }
        if let Err(failure) = self.cards.delete(&message).await {
            // It comes again and is answered again, which does no harm.
            tracing::warn!(message_id, %failure, "answered and not deleted");
        }
        tracing::debug!(message_id, "answered");
        Fate::Answered
    }

    /// What a message is answered.
    ///
    /// # Errors
    /// What failed, if it is not the message.
    async fn answer(&self, message: &Message) -> Result<Answer, Failure> {
        let rejected = |id, error| Ok(Answer::rejected(&message.id, id, error));
        let Request { id, ciphertext } = match Request::parse(&message.body) {
            Ok(request) => request,
            Err(error) => return rejected(None, error),
        };
        let context = Request::context(&id);
        let opened = self.kms.decrypt(ciphertext, Some(&self.key), &context);
        let plaintext = match opened.await {
            Ok(plaintext) => plaintext,
            Err(failure) if failure.what == What::Decryption => {
                return rejected(Some(id), Rejection::Decryption);
            }
            Err(failure) => return Err(failure),
        };
        match Number::parse(plaintext) {
            Some(number) => Ok(Answer::seen(&message.id, id, number.last_four())),
            None => rejected(Some(id), Rejection::Card),
        }
    }
}

/// Waits for all; whether one was answered, or none was there.
async fn all(under_way: &mut JoinSet<Fate>) -> bool {
    let mut is_well = under_way.is_empty();
    while let Some(fate) = under_way.join_next().await {
        match fate {
            Ok(fate) => is_well |= fate == Fate::Answered,
            Err(error) => tracing::error!(%error, "a message broke its task"),
        }
    }
    is_well
}

/// Waits for what is under way, and cuts what takes too long.
async fn finish(mut under_way: JoinSet<Fate>) {
    tracing::info!(
        under_way = under_way.len(),
        "ending: no more messages are received"
    );
    if tokio::time::timeout(GRACE, all(&mut under_way))
        .await
        .is_err()
    {
        tracing::warn!(
            cut = under_way.len(),
            "messages were still under way: they come again"
        );
    }
}
