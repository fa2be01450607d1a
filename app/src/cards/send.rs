//! The sender's side.

use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use serde_json::{Value, json};

use super::Common;
use super::card::{LastFour, Number};
use super::message::{Answer, Request};
use super::queue::{Queue, QueueName};
use crate::aws;
use crate::bytes::answer;
use crate::error::{Failure, What};
use crate::kms::Encryptor;
use crate::limits::cards as limits;

/// Arguments of `cards send`.
#[derive(Debug, clap::Args)]
pub struct SendArgs {
    #[command(flatten)]
    common: Common,
    /// How many cards, up to 1,000
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::COUNT)))]
    count: u32,
    /// Wait for the answers on this queue: its URL or its name
    #[arg(long, value_name = "QUEUE")]
    results: Option<QueueName>,
    /// How long to wait for all answers
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        requires = "results"
    )]
    timeout: u64,
}

/// A card that is on its way.
struct Sent {
    id: String,
    message_id: String,
    expected: LastFour,
    answer: Option<Answer>,
}

/// Sends cards, waits for the answers if it is to, and prints what is known of them.
///
/// # Errors
/// What failed; which cards were not answered, or not as they should be.
pub async fn send(args: SendArgs) -> Result<(), Failure> {
    let Common { queue, key, region } = args.common;
    let kms = Encryptor::in_region(Some(key.region().to_owned())).await?;
    let sqs = aws_sdk_sqs::Client::new(&aws::settings(region).await?);
    let cards = Queue::open(&sqs, &queue).await?;
    let results = match &args.results {
        Some(name) => Some(Queue::open(&sqs, name).await?),
        None => None,
    };
    let mut sent = Vec::new();
    let done = async {
        for _ in 0..args.count {
            sent.push(one(&kms, key.as_str(), &cards).await?);
        }
        match &results {
            Some(results) => {
                collect(results, &mut sent, Duration::from_secs(args.timeout)).await?;
                judge(&sent, args.timeout)
            }
            None => Ok(()),
        }
    };
    let done = done.await;
    // Whatever happened: these are on the queue.
    report(&sent)?;
    done
}

/// Makes a card and puts it on the queue.
async fn one(kms: &Encryptor, key: &str, cards: &Queue) -> Result<Sent, Failure> {
    let number = Number::random()?;
    let id = new_id()?;
    let context = Request::context(&id);
    let ciphertext = kms.encrypt(number.digits(), key, &context).await?;
    let request = Request { id, ciphertext };
    let message_id = cards.send(request.encode()).await?;
    Ok(Sent {
        id: request.id,
        message_id,
        expected: number.last_four(),
        answer: None,
    })
}

/// Sixteen random bytes: nobody else has the same.
fn new_id() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Failure::new(What::Other, "no randomness"))?;
    Ok(hex::encode(bytes))
}

/// Takes answers until all are there or the time is over. What answers somebody else stays.
async fn collect(results: &Queue, sent: &mut [Sent], time: Duration) -> Result<(), Failure> {
    let begin = Instant::now();
    while sent.iter().any(|card| card.answer.is_none()) {
        let left = time.saturating_sub(begin.elapsed());
        if left.is_zero() {
            break;
        }
        // SQS counts whole seconds; the last of them are asked for without waiting.
        let wait = left.min(limits::WAIT);
        for message in results.receive(wait, limits::GLANCE).await? {
            let Some(answer) = Answer::parse(&message.body) else {
                continue;
            };
            let Some(card) = sent.iter_mut().find(|card| card.is_answered_by(&answer)) else {
                continue;
            };
            card.answer.get_or_insert(answer);
            results.delete(&message).await?;
        }
    }
    Ok(())
}

impl Sent {
    fn is_answered_by(&self, answer: &Answer) -> bool {
        match &answer.id {
            Some(id) => *id == self.id,
            None => answer.message_id == self.message_id,
        }
    }
}

/// Prints what is known of the cards, which is never their numbers.
fn report(sent: &[Sent]) -> Result<(), Failure> {
    let cards = sent.iter().map(|card| {
        let mut line = json!({ "id": card.id, "message_id": card.message_id });
        if let Some(answer) = &card.answer {
            match (&answer.last_four, &answer.error) {
                (Some(last_four), _) => line["last_four"] = json!(last_four),
                (None, error) => line["error"] = json!(error),
            }
        }
        line
    });
    answer(&json!({ "cards": cards.collect::<Vec<Value>>() }))
}

/// Whether every card was answered, and each with its own digits.
fn judge(sent: &[Sent], seconds: u64) -> Result<(), Failure> {
    let count = |is_so: fn(&Sent) -> bool| sent.iter().filter(|card| is_so(card)).count();
    let missing = count(|card| card.answer.is_none());
    let wrong = count(|card| {
        let digits = card.answer.as_ref().map(|answer| answer.last_four.as_ref());
        digits.is_some_and(|digits| digits != Some(&card.expected))
    });
    let all = sent.len();
    if wrong > 0 {
        let why = format!("{wrong} of {all} cards were answered with an error or other digits");
        return Err(Failure::new(What::Request, why));
    }
    if missing > 0 {
        let why = format!(
            "{missing} of {all} cards were not answered within {seconds} s: does `cards serve` run, \
             on the same queues and with the same key? its log tells what it cannot do"
        );
        return Err(Failure::new(What::Network, why));
    }
    Ok(())
}
