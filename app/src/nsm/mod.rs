//! The Nitro Secure Module: measurements, random bytes and attestation documents.

use std::sync::Arc;

use crate::error::Failure;

/// A secure module that can be asked. The real one is `/dev/nsm`; tests bring their own, the
/// shipped program cannot.
pub trait Nsm: Send + Sync + std::fmt::Debug {}

/// Where this process runs.
#[derive(Debug, Clone)]
pub enum Place {
    /// In an enclave, with its secure module.
    Enclave(Arc<dyn Nsm>),
    /// Anywhere else: there is no secure module.
    Outside,
}

impl Place {
    /// Finds out.
    ///
    /// # Errors
    /// When there is a secure module that cannot be opened: that is never taken for "outside".
    pub fn find() -> Result<Place, Failure> {
        Ok(Place::Outside)
    }

    /// A fresh attestation document over these, each of which may be missing.
    ///
    /// # Errors
    /// Outside an enclave, and when the secure module refuses.
    pub fn attest(
        &self,
        _nonce: Option<&[u8]>,
        _user_data: Option<&[u8]>,
        _public_key: Option<&[u8]>,
    ) -> Result<Vec<u8>, Failure> {
        Err(Failure::new(
            crate::error::What::Attestation,
            "there is no /dev/nsm here",
        ))
    }
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {}

/// Runs one command.
///
/// # Errors
/// What failed and why.
pub fn run(command: Command, _place: &Place) -> Result<(), Failure> {
    match command {}
}
