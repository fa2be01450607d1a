//! An HTTP server that greets, tells its health and attests itself.

use crate::error::{Failure, What};
use crate::nsm::Place;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the service until it is told to stop.
///
/// # Errors
/// What failed and why.
pub async fn run(_args: Args, _place: Place) -> Result<(), Failure> {
    Err(Failure::new(What::Other, "serve is not there yet"))
}
