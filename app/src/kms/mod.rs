//! AWS KMS from inside an enclave.

use std::collections::HashMap;

use zeroize::Zeroizing;

use crate::error::{Failure, What};
use crate::nsm::Place;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {}

/// The encryption context: bound to a ciphertext, and needed to open it again.
pub type Context = HashMap<String, String>;

/// KMS, asked from this place.
#[derive(Debug, Clone)]
pub struct Kms {}

impl Kms {
    /// A client by the SDK's default chain of settings and credentials. Inside an enclave every
    /// answer with a secret is sealed for it; outside, that must be given up by `plain`.
    ///
    /// # Errors
    /// Outside an enclave without `plain`; inside with it.
    pub async fn new(_place: Place, _plain: bool) -> Result<Kms, Failure> {
        Ok(Kms {})
    }

    /// Decrypts. With a key, a ciphertext of another one is refused.
    ///
    /// # Errors
    /// What failed and why.
    pub async fn decrypt(
        &self,
        _ciphertext: Vec<u8>,
        _key: Option<&str>,
        _context: &Context,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        Err(Failure::new(What::Other, "kms is not there yet"))
    }

    /// Encrypts up to 4,096 bytes.
    ///
    /// # Errors
    /// What failed and why.
    pub async fn encrypt(
        &self,
        _plaintext: &[u8],
        _key: &str,
        _context: &Context,
    ) -> Result<Vec<u8>, Failure> {
        Err(Failure::new(What::Other, "kms is not there yet"))
    }
}

/// Runs one command.
///
/// # Errors
/// What failed and why.
pub async fn run(command: Command, _place: &Place) -> Result<(), Failure> {
    match command {}
}
