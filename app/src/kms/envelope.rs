//! The envelope that KMS seals an answer in: CMS EnvelopedData (RFC 5652, section 6).
//!
//! KMS writes BER with indefinite lengths, version 2, the recipient named by a key identifier, and
//! the content in one or more octet strings; emulators write DER, version 0, the recipient named by
//! issuer and serial number. Both are read, and nothing else: one recipient by RSAES-OAEP, content
//! by AES-256-CBC. The recipient's name is not compared with anything: there is one key, and it
//! opens the envelope or does not. Neither are OAEP's parameters: the key is used with SHA-256
//! whatever they say.
//!
//! The envelope proves nothing about who sealed it. That it comes from KMS is what TLS, which ends
//! in the enclave, vouches for.

use cms::cert::x509::der::asn1::{ObjectIdentifier, OctetStringRef};
use cms::content_info::{CmsVersion, ContentInfo};
use cms::enveloped_data::{EnvelopedData, RecipientInfo};
use der::{Decode, Encode};
use zeroize::Zeroizing;

use crate::limits;

const ENVELOPED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.3");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const RSAES_OAEP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");
const AES_256_CBC: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.1.42");

/// Why bytes are not such an envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More than the longest answer needs.
    #[error("longer than {} bytes", limits::ENVELOPE)]
    TooLong,
    /// Not BER or DER, or not of the form.
    #[error("not a CMS envelope: {0}")]
    Encoding(String),
    /// Something in it is of another kind.
    #[error("its {0} is not {1}")]
    Other(&'static str, &'static str),
}

/// What is in an envelope.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The content's key, encrypted for the recipient.
    pub encrypted_key: Vec<u8>,
    /// What the content's encryption began with.
    pub iv: [u8; 16],
    /// The content, encrypted; it becomes the plaintext in place.
    pub content: Zeroizing<Vec<u8>>,
}

impl Envelope {
    /// Reads one.
    ///
    /// # Errors
    /// When it is anything but an envelope as KMS seals it.
    pub fn read(bytes: &[u8]) -> Result<Envelope, Error> {
        if bytes.len() > limits::ENVELOPE {
            return Err(Error::TooLong);
        }
        let encoding = |error: der::Error| Error::Encoding(error.to_string());
        let outer = ContentInfo::from_ber(bytes).map_err(encoding)?;
        if outer.content_type != ENVELOPED_DATA {
            return Err(Error::Other("type", "EnvelopedData"));
        }
        let inner = outer.content.to_der().map_err(encoding)?;
        let data = EnvelopedData::from_ber(&inner).map_err(encoding)?;
        let recipient = match data.recip_infos.0.as_slice() {
            [RecipientInfo::Ktri(recipient)] => recipient,
            _ => return Err(Error::Other("recipient", "one alone with an RSA key")),
        };
        if !matches!(
            (data.version, recipient.version),
            (CmsVersion::V0, CmsVersion::V0) | (CmsVersion::V2, CmsVersion::V2)
        ) {
            return Err(Error::Other("version", "0 or 2"));
        }
        if recipient.key_enc_alg.oid != RSAES_OAEP {
            return Err(Error::Other("key's encryption", "RSAES-OAEP"));
        }
        let sealed = data.encrypted_content;
        if sealed.content_type != DATA || sealed.content_enc_alg.oid != AES_256_CBC {
            return Err(Error::Other("content's encryption", "AES-256-CBC of data"));
        }
        let iv = sealed
            .content_enc_alg
            .parameters
            .as_ref()
            .and_then(|iv| iv.decode_as::<&OctetStringRef>().ok())
            .and_then(|iv| iv.as_bytes().try_into().ok())
            .ok_or(Error::Other("initialization vector", "16 bytes"))?;
        let content = sealed
            .encrypted_content
            .ok_or(Error::Other("content", "there"))?;
        Ok(Envelope {
            encrypted_key: recipient.enc_key.as_bytes().to_vec(),
            iv,
            content: Zeroizing::new(content.into_bytes().into_vec()),
        })
    }
}
