//! An HTTP forward proxy that makes TLS inside the enclave.

use crate::error::{Failure, What};

/// Arguments of `sidecar`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the service until it is told to stop.
///
/// # Errors
/// What failed and why.
pub async fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::new(What::Other, "sidecar is not there yet"))
}
