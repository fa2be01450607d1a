//! The `enclave-netd` program; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    enclave_netd::main()
}
