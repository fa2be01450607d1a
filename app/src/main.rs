//! What runs inside the enclave: attestation, KMS and the example services. Nothing of it is
//! written yet; the crate holds its place in the workspace.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("enclave-app has no services yet; run your own program: enclave-netd -- PROGRAM");
    ExitCode::FAILURE
}
