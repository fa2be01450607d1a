//! Who opens and closes ciphertexts: KMS, or a stand-in in tests.

use zeroize::Zeroizing;

use super::tenants::Context;
use crate::aws::KeyArn;
use crate::error::Failure;

/// KMS, as far as this service needs it.
pub(super) trait Keeper: Send + Sync + 'static {
    /// Opens a ciphertext that was made with this key and context.
    fn decrypt(
        &self,
        key: &KeyArn,
        ciphertext: Vec<u8>,
        context: &Context,
    ) -> impl Future<Output = Result<Zeroizing<Vec<u8>>, Failure>> + Send;

    /// Makes a ciphertext with this key and context.
    fn encrypt(
        &self,
        key: &KeyArn,
        plaintext: Zeroizing<Vec<u8>>,
        context: &Context,
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send;

    /// Whether the security module makes documents.
    fn attestation_ready(&self) -> impl Future<Output = bool> + Send;

    /// Whether KMS answers, to these credentials.
    fn kms_ready(&self) -> impl Future<Output = bool> + Send;
}
