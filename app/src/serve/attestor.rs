//! Who makes attestation documents.

use crate::error::Failure;
use crate::nsm::Place;

/// Makes attestation documents; the enclave's security module, or a stand-in in tests.
pub(super) trait Attestor: Send + Sync + 'static {
    /// A document with this nonce and user data. It takes milliseconds and blocks.
    fn attest(&self, nonce: &[u8], user_data: Option<&[u8]>) -> Result<Vec<u8>, Failure>;
}

impl Attestor for Place {
    fn attest(&self, nonce: &[u8], user_data: Option<&[u8]>) -> Result<Vec<u8>, Failure> {
        Place::attest(self, Some(nonce), user_data, None)
    }
}
