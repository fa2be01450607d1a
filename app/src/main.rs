//! The program `enclave-app`; see the library.

use std::process::ExitCode;

use clap::Parser;
use enclave_app::cli::{self, Cli};
use enclave_app::error::{Failure, What};
use enclave_app::nsm::Place;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Answers go to standard output; everything said about them goes to standard error.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            EnvFilter::try_from_env("ENCLAVE_APP_LOG")
                .unwrap_or_else(|_| EnvFilter::new("info,aws_config=error")),
        )
        .init();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(What::Other, format!("cannot start threads: {error}")))
        .and_then(|runtime| runtime.block_on(cli::run(cli, Place::find)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("enclave-app: {failure}");
            failure.into()
        }
    }
}
