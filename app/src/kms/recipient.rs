//! Whom KMS seals an answer for: a key pair that lives for one call.
//!
//! The public half goes into an attestation document, and KMS encrypts its answer to it: nobody on
//! the way, and nobody on the parent, can open it. The private half never leaves this module.
//! aws-lc wipes all memory that it frees, so the key goes with its owner; what is decrypted here is
//! held in buffers that are wiped as well.

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use zeroize::Zeroizing;

use super::envelope::{self, Envelope};

/// What KMS seals with: RSAES_OAEP_SHA_256 around a key of AES-256.
const CONTENT_KEY: usize = 32;

/// Why a sealed answer does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not the envelope that KMS makes.
    #[error("the sealed answer cannot be read: {0}")]
    Envelope(#[from] envelope::Error),
    /// It is for another key.
    #[error("the answer is sealed for another key than this call's")]
    Key,
    /// The content does not fit the key.
    #[error("the sealed answer was changed on its way")]
    Content,
}

/// A key pair for one call.
pub struct Recipient {
    key: OaepPrivateDecryptingKey,
    public: Vec<u8>,
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recipient")
    }
}

impl Recipient {
    /// Makes a pair, which takes a tenth of a second: RSA with 2,048 bits, since KMS takes no curve.
    ///
    /// # Errors
    /// When there is no memory or no entropy.
    pub fn generate() -> Result<Recipient, Unspecified> {
        Recipient::of(PrivateDecryptingKey::generate(KeySize::Rsa2048)?)
    }

    fn of(key: PrivateDecryptingKey) -> Result<Recipient, Unspecified> {
        let public: PublicKeyX509Der<'_> = key.public_key().as_der()?;
        Ok(Recipient {
            public: public.as_ref().to_vec(),
            key: OaepPrivateDecryptingKey::new(key)?,
        })
    }

    /// The public half, in DER, for the attestation document.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// Opens what was sealed for this pair, and ends the pair.
    ///
    /// # Errors
    /// When it is not the envelope that KMS makes, is for another key, or was changed.
    pub fn open(self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let Envelope {
            encrypted_key,
            iv,
            mut content,
        } = Envelope::read(sealed)?;
        let mut buffer = Zeroizing::new(vec![0; self.key.min_output_size()]);
        let content_key = self
            .key
            .decrypt(&OAEP_SHA256_MGF1SHA256, &encrypted_key, &mut buffer, None)
            .map_err(|_| Error::Key)?;
        if content_key.len() != CONTENT_KEY {
            return Err(Error::Key);
        }
        let plain = UnboundCipherKey::new(&AES_256, content_key)
            .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
            .and_then(|key| {
                key.decrypt(
                    &mut content,
                    DecryptionContext::Iv128(FixedLength::from(iv)),
                )
            })
            .map_err(|_| Error::Content)?
            .len();
        content.truncate(plain);
        Ok(content)
    }
}
