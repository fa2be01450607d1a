//! The program `enclave-app`; see the library.

use std::process::ExitCode;

use clap::Parser;
use enclave_app::cli::{self, Cli};
use enclave_app::error::{Failure, What};
use enclave_app::log;
use enclave_app::nsm::Place;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::start();
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
