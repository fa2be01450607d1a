//! Attestation documents: reading and verifying them.

use crate::error::Failure;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {}

/// Runs one command.
///
/// # Errors
/// What failed and why.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {}
}
