//! Encrypting alone.

use aws_sdk_kms::primitives::Blob;

use super::{Context, optional};
use crate::aws::{self, failure};
use crate::error::{Failure, What};
use crate::limits;

/// KMS for encrypting: nothing secret comes back, so any place will do, inside an enclave or not.
#[derive(Debug, Clone)]
pub struct Encryptor {
    pub(super) client: aws_sdk_kms::Client,
}

impl Encryptor {
    /// A client by the SDK's default chain, in this region if there is one.
    ///
    /// # Errors
    /// Without a region.
    pub async fn in_region(region: Option<String>) -> Result<Encryptor, Failure> {
        let client = aws_sdk_kms::Client::new(&aws::settings(region).await?);
        Ok(Encryptor { client })
    }

    /// Encrypts up to 4,096 bytes.
    ///
    /// # Errors
    /// What failed and why.
    pub async fn encrypt(
        &self,
        plaintext: &[u8],
        key: &str,
        context: &Context,
    ) -> Result<Vec<u8>, Failure> {
        if !(1..=limits::KMS_PLAINTEXT).contains(&plaintext.len()) {
            return Err(Failure::usage(format!(
                "KMS encrypts 1 to {} bytes; encrypt more with a data key",
                limits::KMS_PLAINTEXT
            )));
        }
        let answer = self
            .client
            .encrypt()
            .plaintext(Blob::new(plaintext))
            .key_id(key)
            .set_encryption_context(optional(context))
            .send()
            .await
            .map_err(|error| failure(&error, false))?;
        answer
            .ciphertext_blob
            .map(Blob::into_inner)
            .ok_or_else(|| Failure::new(What::Request, "KMS answered without a ciphertext"))
    }
}
