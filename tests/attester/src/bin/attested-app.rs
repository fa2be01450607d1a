//! enclave-app in an enclave that is a test's: `TEST_AUTHORITY` is the folder of an authority,
//! `TEST_PCR0` the image's measurement in hex. Everything else is the shipped program's own code.
#![allow(clippy::unwrap_used)]

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use enclave_app::cli::{self, Cli};
use enclave_app::nsm::Place;
use test_attester::{Attester, Authority};

fn main() -> ExitCode {
    let authority = env::var("TEST_AUTHORITY").expect("TEST_AUTHORITY: a folder");
    let pcr0 = env::var("TEST_PCR0").expect("TEST_PCR0: 96 hex digits");
    let pcr0 = hex::decode(pcr0).unwrap().try_into().expect("48 bytes");
    let attester = Attester::new(
        Authority::load(Path::new(&authority)),
        [pcr0, [1; 48], [2; 48]],
    );
    enclave_app::log::start();
    let place = Place::Enclave(Arc::new(attester));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match runtime.block_on(cli::run(Cli::parse(), || Ok(place))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("enclave-app: {failure}");
            failure.into()
        }
    }
}
