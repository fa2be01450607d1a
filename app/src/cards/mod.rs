//! The payment-card example: an enclave that takes its work from a queue.
//!
//! # Theory of operation
//! `send` makes a test card, lets KMS encrypt its number, and puts that on an SQS queue with an
//! identifier; it runs anywhere, since encrypting needs no attestation. `serve` runs in the enclave. It
//! takes messages from SQS itself, over TLS that ends in the enclave; KMS opens each for this enclave
//! alone ([`crate::kms`]); and the last four digits go to a second queue. Nothing else of a card leaves
//! the enclave: not in an answer, not in the log.
//!
//! A ciphertext is bound to its identifier and to this purpose by the encryption context, and only the
//! key that was given opens it: whoever holds the queue cannot exchange one card for another, nor have
//! something else opened here.
//!
//! A message is deleted when its answer is sent, and not before, so that none is lost. What can be
//! received twice can be answered twice: the answers are the same. What is wrong with a message for
//! ever is answered as such (`message::Rejection`). What is wrong with something else (KMS refuses this
//! enclave, a queue is gone, the network is) leaves the message where it is, to come again after a wait
//! that grows; then the service rests as well, and goes on by itself once it is mended.

mod card;
mod message;
mod queue;
mod send;
mod serve;

use crate::aws::KeyArn;
use queue::QueueName;

pub use send::{SendArgs, send};
pub use serve::{ServeArgs, serve};

/// What to do with cards.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Encrypts test cards and puts them on a queue
    Send(SendArgs),
    /// In the enclave: answers the last four digits of the cards on a queue
    Serve(ServeArgs),
}

/// What both sides share.
#[derive(Debug, clap::Args)]
struct Common {
    /// The queue with the cards: its URL or its name
    #[arg(long, value_name = "QUEUE")]
    queue: QueueName,
    /// The key that encrypts and decrypts them
    #[arg(long, value_name = "ARN")]
    key: KeyArn,
    /// Where the queues are; AWS_REGION otherwise
    #[arg(long)]
    region: Option<String>,
}
