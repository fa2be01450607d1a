//! AWS KMS from inside an enclave.
//!
//! Every call that can bring a secret out of KMS carries a `Recipient` there: a fresh attestation
//! document over the public half of a key pair that this call alone uses. KMS checks the document
//! against the key's policy and seals its answer for that pair, so that the plaintext exists in the
//! enclave alone. An answer that is not sealed is an error, never a fallback.
//!
//! Whether a call is attested follows from where it is made, not from a setting: inside an enclave
//! always. Outside, the same calls work only when asked to be plain (`--plain`), and inside that
//! word is refused, so that no command line makes an enclave's secrets travel unsealed.

mod command;
mod encryptor;
mod envelope;
mod policy;
mod recipient;
mod stock;

use std::collections::HashMap;

use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeyEncryptionMechanism, RecipientInfo};
use zeroize::Zeroizing;

use crate::aws::{self, failure};
use crate::error::{Failure, What};
use crate::limits;
use crate::nsm::Place;

pub use command::{Command, run};
pub use encryptor::Encryptor;
pub use envelope::{Envelope, Error as EnvelopeError};
pub use policy::{PcrValues, policy};
pub use recipient::{Error as RecipientError, Recipient};
pub use stock::Stock;

/// The encryption context: bound to a ciphertext, and needed to open it again.
pub type Context = HashMap<String, String>;

/// A key to encrypt data with, and the same encrypted, to keep.
#[derive(Debug)]
pub struct DataKey {
    /// The key.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// What [`Kms::decrypt`] makes the key of again.
    pub ciphertext: Vec<u8>,
}

/// KMS, asked from this place.
#[derive(Debug, Clone)]
pub struct Kms {
    client: aws_sdk_kms::Client,
    place: Place,
    stock: Option<Stock>,
}

impl Kms {
    /// A client by the SDK's default chain of settings and credentials. Inside an enclave every
    /// answer with a secret is sealed for it; outside, that must be given up by `plain`.
    ///
    /// # Errors
    /// Outside an enclave without `plain`, inside with it, and without a region.
    pub async fn new(place: Place, plain: bool) -> Result<Kms, Failure> {
        Kms::in_region(place, plain, None).await
    }

    /// The same in this region, if there is one.
    ///
    /// # Errors
    /// As [`Kms::new`].
    pub async fn in_region(
        place: Place,
        plain: bool,
        region: Option<String>,
    ) -> Result<Kms, Failure> {
        match (&place, plain) {
            (Place::Outside, false) => {
                return Err(Failure::new(
                    What::Attestation,
                    "there is no /dev/nsm here, so KMS cannot seal its answer for an enclave; \
                     outside an enclave, --plain asks for answers that are not sealed",
                ));
            }
            (Place::Enclave(_), true) => {
                let why = "--plain is for use outside an enclave; inside, every answer is sealed";
                return Err(Failure::usage(why));
            }
            (Place::Outside, true) => {
                tracing::warn!("--plain: KMS answers without sealing; TLS alone protects it");
            }
            (Place::Enclave(_), false) => {}
        }
        Ok(Kms {
            client: aws_sdk_kms::Client::new(&aws::settings(region).await?),
            place,
            stock: None,
        })
    }

    /// The same with key pairs made ahead: for services. One stock does for all their regions.
    #[must_use]
    pub fn with_stock(self, stock: &Stock) -> Kms {
        Kms {
            stock: Some(stock.clone()),
            ..self
        }
    }

    /// Decrypts. With a key, a ciphertext of another one is refused.
    ///
    /// # Errors
    /// What failed and why.
    pub async fn decrypt(
        &self,
        ciphertext: Vec<u8>,
        key: Option<&str>,
        context: &Context,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let seal = self.seal().await?;
        let answer = self
            .client
            .decrypt()
            .ciphertext_blob(Blob::new(ciphertext))
            .set_key_id(key.map(str::to_owned))
            .set_encryption_context(optional(context))
            .set_recipient(seal.recipient_info())
            .send()
            .await
            .map_err(|error| failure(&error, seal.is_attested()))?;
        seal.open(answer.ciphertext_for_recipient, answer.plaintext)
    }

    /// As [`Encryptor::encrypt`].
    ///
    /// # Errors
    /// What failed and why.
    pub async fn encrypt(
        &self,
        plaintext: &[u8],
        key: &str,
        context: &Context,
    ) -> Result<Vec<u8>, Failure> {
        let client = self.client.clone();
        Encryptor { client }.encrypt(plaintext, key, context).await
    }

    /// Makes a data key of this many bytes.
    ///
    /// # Errors
    /// What failed and why.
    pub async fn generate_data_key(
        &self,
        key: &str,
        bytes: u32,
        context: &Context,
    ) -> Result<DataKey, Failure> {
        let seal = self.seal().await?;
        let answer = self
            .client
            .generate_data_key()
            .key_id(key)
            .number_of_bytes(count(bytes)?)
            .set_encryption_context(optional(context))
            .set_recipient(seal.recipient_info())
            .send()
            .await
            .map_err(|error| failure(&error, seal.is_attested()))?;
        let plaintext = seal.open(answer.ciphertext_for_recipient, answer.plaintext)?;
        let ciphertext = answer
            .ciphertext_blob
            .map(Blob::into_inner)
            .ok_or_else(|| Failure::new(What::Request, "KMS answered without a ciphertext"))?;
        of_length(plaintext, bytes).map(|plaintext| DataKey {
            plaintext,
            ciphertext,
        })
    }

    /// Random bytes from the HSMs behind KMS.
    ///
    /// # Errors
    /// What failed and why.
    pub async fn generate_random(&self, bytes: u32) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let seal = self.seal().await?;
        let answer = self
            .client
            .generate_random()
            .number_of_bytes(count(bytes)?)
            .set_recipient(seal.recipient_info())
            .send()
            .await
            .map_err(|error| failure(&error, seal.is_attested()))?;
        of_length(
            seal.open(answer.ciphertext_for_recipient, answer.plaintext)?,
            bytes,
        )
    }

    /// A seal for one call.
    async fn seal(&self) -> Result<Seal, Failure> {
        if matches!(self.place, Place::Outside) {
            return Ok(Seal::Plain);
        }
        let place = self.place.clone();
        let ready = self.stock.as_ref().and_then(Stock::take);
        // Making a pair takes a processor for a tenth of a second.
        tokio::task::spawn_blocking(move || {
            let recipient = ready
                .map_or_else(Recipient::generate, Ok)
                .map_err(|_| Failure::new(What::Other, "cannot make an RSA key pair"))?;
            let document = place.attest(None, None, Some(recipient.public_key()))?;
            Ok(Seal::Attested {
                recipient,
                document,
            })
        })
        .await
        .map_err(|_| Failure::new(What::Other, "making an RSA key pair broke off"))?
    }
}

/// What an answer is sealed with.
enum Seal {
    Plain,
    Attested {
        recipient: Recipient,
        document: Vec<u8>,
    },
}

impl Seal {
    fn is_attested(&self) -> bool {
        matches!(self, Seal::Attested { .. })
    }

    fn recipient_info(&self) -> Option<RecipientInfo> {
        let Seal::Attested { document, .. } = self else {
            return None;
        };
        Some(
            RecipientInfo::builder()
                .key_encryption_algorithm(KeyEncryptionMechanism::RsaesOaepSha256)
                .attestation_document(Blob::new(document.clone()))
                .build(),
        )
    }

    /// The secret of an answer.
    fn open(
        self,
        sealed: Option<Blob>,
        plain: Option<Blob>,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let plain = plain.map(|blob| Zeroizing::new(blob.into_inner()));
        match self {
            Seal::Plain => {
                plain.ok_or_else(|| Failure::new(What::Request, "KMS answered without a plaintext"))
            }
            Seal::Attested { recipient, .. } => {
                // KMS leaves the plaintext out, or empty.
                if plain.is_some_and(|plain| !plain.is_empty()) {
                    return Err(Failure::new(
                        What::Attestation,
                        "KMS answered in plain text where a sealed answer was asked for: whoever \
                         answered ignores attestation, and the answer is not used",
                    ));
                }
                let sealed = sealed.ok_or_else(|| {
                    Failure::new(What::Attestation, "KMS answered without a sealed answer")
                })?;
                // Not `Decryption`: nothing is said of the ciphertext that was asked for.
                recipient
                    .open(sealed.as_ref())
                    .map_err(|error| Failure::new(What::Attestation, error.to_string()))
            }
        }
    }
}

/// KMS tells an empty context from a missing one in its logs alone.
fn optional(context: &Context) -> Option<Context> {
    (!context.is_empty()).then(|| context.clone())
}

fn count(bytes: u32) -> Result<i32, Failure> {
    i32::try_from(bytes)
        .ok()
        .filter(|_| (1..=limits::KMS_RANDOM).contains(&bytes))
        .ok_or_else(|| {
            let why = format!("KMS makes 1 to {} bytes", limits::KMS_RANDOM);
            Failure::usage(why)
        })
}

/// An answer of another length is not the answer to this call.
fn of_length(secret: Zeroizing<Vec<u8>>, bytes: u32) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if usize::try_from(bytes) != Ok(secret.len()) {
        let why = format!("asked for {bytes} bytes, KMS sealed {}", secret.len());
        return Err(Failure::new(What::Request, why));
    }
    Ok(secret)
}
