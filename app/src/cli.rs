//! The command line: one binary, a subcommand for each thing it does.

use clap::{Parser, Subcommand};

use crate::error::Failure;
use crate::nsm::Place;
use crate::{attest, cards, crypto, fetch, kms, nsm, serve, sidecar, volume};

/// What runs inside an AWS Nitro Enclave: attestation, KMS and services.
#[derive(Debug, Parser)]
#[command(name = "enclave-app", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Calls to the Nitro Secure Module; answers are JSON
    #[command(subcommand)]
    Nsm(nsm::Command),
    /// Attestation documents
    #[command(subcommand)]
    Attest(attest::Command),
    /// AWS KMS; inside an enclave every answer is sealed for it
    #[command(subcommand)]
    Kms(kms::Command),
    /// An HTTP server that greets and attests
    Serve(serve::Args),
    /// Decryption and encryption for a parent application
    Crypto(crypto::Args),
    /// The payment-card example: cards by SQS, decrypted in the enclave
    #[command(subcommand)]
    Cards(cards::Command),
    /// An HTTP proxy that makes TLS inside the enclave
    Sidecar(sidecar::Args),
    /// An HTTPS client that reports how each request went
    Fetch(fetch::Args),
    /// A folder that lasts: an NFSv4 export of the parent
    #[command(subcommand)]
    Volume(volume::Command),
}

/// Runs what the command line asks for, to its end. `place` tells where this is: the program looks
/// for `/dev/nsm`, a test brings a secure module of its own.
///
/// # Errors
/// What failed and why; `main` prints it.
pub async fn run(cli: Cli, place: impl FnOnce() -> Result<Place, Failure>) -> Result<(), Failure> {
    match cli.command {
        Command::Nsm(command) => nsm::run(command, &place()?),
        Command::Attest(command) => attest::run(command),
        Command::Kms(command) => kms::run(command, &place()?).await,
        Command::Serve(args) => serve::run(args, place()?).await,
        Command::Crypto(args) => crypto::run(args, place()?).await,
        Command::Cards(cards::Command::Send(args)) => cards::send(args).await,
        Command::Cards(cards::Command::Serve(args)) => cards::serve(args, place()?).await,
        Command::Sidecar(args) => sidecar::run(args).await,
        Command::Fetch(args) => fetch::run(args).await,
        Command::Volume(command) => volume::run(command).await,
    }
}
