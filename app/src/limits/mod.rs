//! Every bound, and why it is what it is: those of the secure module, of documents and of KMS here, the
//! others by their module.

pub mod aws;
pub mod cards;
pub mod crypto;
pub mod net;
pub mod volume;

/// The longest request to the secure module: its driver takes no more.
pub const NSM_REQUEST: usize = 0x1000;
/// The longest answer of the secure module: its driver gives no more.
pub const NSM_RESPONSE: usize = 0x3000;
/// How many random bytes `nsm random` collects at most: 16 calls of 256 bytes.
pub const RANDOM: usize = 4096;

/// The longest attestation document. The secure module's whole answer fits in [`NSM_RESPONSE`].
pub const DOCUMENT: usize = NSM_RESPONSE;
/// The longest text or file that is read where a document, a key or a ciphertext is expected: the
/// largest, a KMS ciphertext with its context in base64, is below 16 KiB.
pub const INPUT: usize = 64 * 1024;
/// How deep the CBOR of a document may nest: it has an array, a map and a list in the map.
pub const CBOR_DEPTH: usize = 8;
/// The highest PCR and the number of them.
pub const PCRS: u8 = 32;
/// The length of a PCR: a SHA-384 digest.
pub const PCR: usize = 48;
/// The longest certificate in a document (AWS's own rule).
pub const CERTIFICATE: usize = 1024;
/// The most certificates above the signer's: AWS makes four, the TLS library follows six.
pub const BUNDLE: usize = 6;
/// The longest public key in a document (AWS's own rule).
pub const PUBLIC_KEY: usize = 1024;
/// The longest user data and the longest nonce in a document (AWS's own rule).
pub const USER_DATA: usize = 512;
/// The longest name of a secure module; real ones have 39 characters.
pub const MODULE_ID: usize = 256;
/// How far in the future a document may have been made, in seconds: what clocks differ by.
pub const CLOCK_SKEW: u64 = 300;

/// The longest plaintext that KMS encrypts by itself.
pub const KMS_PLAINTEXT: usize = 4096;
/// The most random bytes KMS gives in one call.
pub const KMS_RANDOM: u32 = 1024;
/// The longest envelope that KMS answers with: [`KMS_PLAINTEXT`] and what is around it.
pub const ENVELOPE: usize = 8 * 1024;
/// Key pairs that a service has made ahead: the calls that come at once, without waiting for one.
/// Each takes a few KiB, and a tenth of a second of a processor when there is nothing else to do.
pub const KEY_PAIRS: usize = 32;
