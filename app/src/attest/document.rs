//! What an attestation document is, read strictly.
//!
//! A document is a COSE_Sign1 (RFC 9052): an array of the protected header, an unprotected one, the
//! payload and a signature; the payload is a map of the measurements and of what the program handed
//! in. Reading it takes nothing for granted: only the fields that AWS specifies, each once, each of
//! its type and within AWS's bounds, and all of it in the one shortest encoding, so that no two
//! readers see different things in the same bytes. That last rule is held by encoding again what
//! was read, and comparing.
//!
//! Nothing read here is to be believed before [`super::verify()`] has checked who signed it.

use std::collections::BTreeMap;

use ciborium::Value;

use crate::limits;

/// COSE's number of ES384: ECDSA with SHA-384 on the curve P-384.
const ES384: i64 = -35;
/// COSE's tag of a COSE_Sign1; AWS leaves it out.
const SIGN1_TAG: u64 = 18;
/// Two numbers of 48 bytes.
const SIGNATURE: usize = 96;

/// Why bytes are not an attestation document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More than a secure module answers.
    #[error("longer than {} bytes: not an attestation document", limits::DOCUMENT)]
    TooLong,
    /// Not CBOR, or cut off.
    #[error("{0}: cut off, or not an attestation document")]
    Cbor(&'static str),
    /// Something stands behind it.
    #[error("{0}: bytes stand behind the end")]
    Trailing(&'static str),
    /// Not the one encoding.
    #[error("{0}: not encoded in the shortest form")]
    Encoding(&'static str),
    /// A field is of another type.
    #[error("{0}: {1}")]
    Field(&'static str, &'static str),
    /// A field is there twice.
    #[error("the payload has the field {0:?} twice")]
    Twice(String),
    /// A field is not one of AWS's.
    #[error("the payload has a field {0:?}, which this version does not know")]
    Unknown(String),
    /// A field is missing.
    #[error("the payload has no field {0:?}")]
    Missing(&'static str),
    /// An emulated secure module signs nothing.
    #[error("the signature is all zeros")]
    Unsigned,
    /// Signed by another algorithm.
    #[error("the protected header asks for another algorithm than ES384 alone")]
    Algorithm,
}

/// The payload: what the secure module says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The secure module's name: instance and enclave.
    pub module_id: String,
    /// When it was made, in milliseconds since 1970.
    pub timestamp: u64,
    /// The measurements.
    pub pcrs: BTreeMap<u8, [u8; limits::PCR]>,
    /// The certificate of the key that signed, in DER.
    pub certificate: Vec<u8>,
    /// The certificates above it, in DER, the root's first.
    pub bundle: Vec<Vec<u8>>,
    /// A public key that the program handed in.
    pub public_key: Option<Vec<u8>>,
    /// What else the program handed in.
    pub user_data: Option<Vec<u8>>,
    /// What a verifier sent to the program.
    pub nonce: Option<Vec<u8>>,
}

/// A document with its signature, nothing of which is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified {
    /// What it says.
    pub document: Document,
    /// The bytes that the signature is over.
    pub signed: Vec<u8>,
    /// Two numbers of 48 bytes.
    pub signature: [u8; SIGNATURE],
}

impl Unverified {
    /// Reads one.
    ///
    /// # Errors
    /// When it is anything but a document as AWS specifies it.
    pub fn read(bytes: &[u8]) -> Result<Unverified, Error> {
        if bytes.len() > limits::DOCUMENT {
            return Err(Error::TooLong);
        }
        let whole = match strict("document", bytes)? {
            Value::Tag(SIGN1_TAG, inner) => *inner,
            other => other,
        };
        let parts = whole
            .into_array()
            .map_err(|_| Error::Field("document", "not an array"))?;
        let [protected, unprotected, payload, signature] = <[Value; 4]>::try_from(parts)
            .map_err(|_| Error::Field("document", "not four parts"))?;
        let protected = byte_string("protected header", protected)?;
        let payload = byte_string("payload", payload)?;
        let signature = byte_string("signature", signature)?;
        // Before its length and the algorithm: QEMU's has 64 bytes, and names none that exists.
        if signature.iter().all(|&byte| byte == 0) {
            return Err(Error::Unsigned);
        }
        let signature = signature
            .try_into()
            .map_err(|_| Error::Field("signature", "not 96 bytes"))?;
        if unprotected.as_map().is_none_or(|map| !map.is_empty()) {
            return Err(Error::Field("unprotected header", "not an empty map"));
        }
        let es384 = Value::Map(vec![(1.into(), ES384.into())]);
        if strict("protected header", &protected)? != es384 {
            return Err(Error::Algorithm);
        }
        Ok(Unverified {
            document: Document::read(&payload)?,
            signed: to_be_signed(protected, payload),
            signature,
        })
    }
}

impl Document {
    fn read(payload: &[u8]) -> Result<Document, Error> {
        let mut fields = Fields::read(payload)?;
        let digest = fields.text("digest")?;
        if digest != "SHA384" {
            return Err(Error::Field("digest", "not SHA384"));
        }
        let module_id = fields.text("module_id")?;
        if !(1..=limits::MODULE_ID).contains(&module_id.len()) {
            return Err(Error::Field("module_id", "empty or too long"));
        }
        let timestamp = fields
            .take("timestamp")?
            .as_integer()
            .and_then(|number| u64::try_from(number).ok())
            .filter(|&number| number > 0)
            .ok_or(Error::Field("timestamp", "not a time"))?;
        let document = Document {
            module_id,
            timestamp,
            pcrs: pcrs(fields.take("pcrs")?)?,
            certificate: certificate("certificate", fields.take("certificate")?)?,
            bundle: bundle(fields.take("cabundle")?)?,
            public_key: fields.optional("public_key", 1, limits::PUBLIC_KEY)?,
            user_data: fields.optional("user_data", 0, limits::USER_DATA)?,
            nonce: fields.optional("nonce", 0, limits::USER_DATA)?,
        };
        fields.end()?;
        Ok(document)
    }

    /// Whether the enclave ran in debug mode, where the parent reads its console and the secure
    /// module measures nothing: the PCRs of image, boot and application are zero.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        (0..3).all(|index| {
            self.pcrs
                .get(&index)
                .is_none_or(|pcr| *pcr == [0; limits::PCR])
        })
    }
}

/// The payload's fields that nobody took yet.
struct Fields(BTreeMap<String, Value>);

impl Fields {
    fn read(payload: &[u8]) -> Result<Fields, Error> {
        let map = strict("payload", payload)?
            .into_map()
            .map_err(|_| Error::Field("payload", "not a map"))?;
        let mut fields = BTreeMap::new();
        for (key, value) in map {
            let key = key
                .into_text()
                .map_err(|_| Error::Field("payload", "a field's name is not text"))?;
            if fields.contains_key(&key) {
                return Err(Error::Twice(key));
            }
            fields.insert(key, value);
        }
        Ok(Fields(fields))
    }

    fn take(&mut self, name: &'static str) -> Result<Value, Error> {
        self.0.remove(name).ok_or(Error::Missing(name))
    }

    fn text(&mut self, name: &'static str) -> Result<String, Error> {
        self.take(name)?
            .into_text()
            .map_err(|_| Error::Field(name, "not text"))
    }

    /// A field that may be missing, or null.
    fn optional(
        &mut self,
        name: &'static str,
        least: usize,
        most: usize,
    ) -> Result<Option<Vec<u8>>, Error> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bytes(bytes)) if (least..=most).contains(&bytes.len()) => Ok(Some(bytes)),
            Some(Value::Bytes(_)) => Err(Error::Field(name, "empty or too long")),
            Some(_) => Err(Error::Field(name, "not bytes")),
        }
    }

    fn end(self) -> Result<(), Error> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::Unknown(name)),
        }
    }
}

/// Reads all of `bytes`, which must be in the shortest form.
fn strict(part: &'static str, bytes: &[u8]) -> Result<Value, Error> {
    let mut rest = bytes;
    let value: Value =
        ciborium::de::from_reader_with_recursion_limit(&mut rest, limits::CBOR_DEPTH)
            .map_err(|_| Error::Cbor(part))?;
    if !rest.is_empty() {
        return Err(Error::Trailing(part));
    }
    if encoded(&value) != bytes {
        return Err(Error::Encoding(part));
    }
    Ok(value)
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory cannot fail; if it did, nothing would compare equal to the rest.
    let _ = ciborium::into_writer(value, &mut bytes);
    bytes
}

/// RFC 9052, section 4.4: what the signature is over. The header's and the payload's own bytes,
/// not what was read from them.
fn to_be_signed(protected: Vec<u8>, payload: Vec<u8>) -> Vec<u8> {
    encoded(&Value::Array(vec![
        "Signature1".into(),
        Value::Bytes(protected),
        Value::Bytes(Vec::new()),
        Value::Bytes(payload),
    ]))
}

fn byte_string(name: &'static str, value: Value) -> Result<Vec<u8>, Error> {
    value
        .into_bytes()
        .map_err(|_| Error::Field(name, "not bytes"))
}

fn pcrs(value: Value) -> Result<BTreeMap<u8, [u8; limits::PCR]>, Error> {
    let failed = |why| Error::Field("pcrs", why);
    let map = value.into_map().map_err(|_| failed("not a map"))?;
    let mut pcrs = BTreeMap::new();
    for (index, value) in map {
        let index = index
            .as_integer()
            .and_then(|index| u8::try_from(index).ok())
            .filter(|&index| index < limits::PCRS)
            .ok_or(failed("an index is not 0 to 31"))?;
        let value = byte_string("pcrs", value)?
            .try_into()
            .map_err(|_| failed("a value is not 48 bytes"))?;
        if pcrs.insert(index, value).is_some() {
            return Err(failed("an index is there twice"));
        }
    }
    if pcrs.is_empty() {
        return Err(failed("empty"));
    }
    Ok(pcrs)
}

fn certificate(name: &'static str, value: Value) -> Result<Vec<u8>, Error> {
    let bytes = byte_string(name, value)?;
    if !(1..=limits::CERTIFICATE).contains(&bytes.len()) {
        return Err(Error::Field(name, "a certificate is empty or too long"));
    }
    Ok(bytes)
}

fn bundle(value: Value) -> Result<Vec<Vec<u8>>, Error> {
    let list = value
        .into_array()
        .map_err(|_| Error::Field("cabundle", "not a list"))?;
    if !(1..=limits::BUNDLE).contains(&list.len()) {
        return Err(Error::Field("cabundle", "empty or too long"));
    }
    list.into_iter()
        .map(|value| certificate("cabundle", value))
        .collect()
}
