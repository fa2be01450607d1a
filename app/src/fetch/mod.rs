//! An HTTPS client with a report of each request.

use crate::error::{Failure, What};

/// Arguments of `fetch`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the service until it is told to stop.
///
/// # Errors
/// What failed and why.
pub async fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::new(What::Other, "fetch is not there yet"))
}
