//! What the secure module is asked and answers: the types of AWS's interface, in CBOR as serde
//! writes enums (a variant with fields is a map of one entry, one without is its name). AWS's own
//! crate is not used: it carries `serde_cbor`, which nobody maintains, and hides why a call failed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// A call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of AWS's interface")]
pub enum Request {
    /// The value of a PCR, and whether it is locked.
    DescribePCR { index: u16 },
    /// Hashes data into a PCR.
    ExtendPCR { index: u16, data: ByteBuf },
    /// Makes a PCR read-only until the enclave ends.
    LockPCR { index: u16 },
    /// The same for the PCRs from 0 up to, and without, `range`.
    LockPCRs { range: u16 },
    /// What the module is.
    DescribeNSM,
    /// A signed document over the PCRs and what is handed in.
    Attestation {
        user_data: Option<ByteBuf>,
        nonce: Option<ByteBuf>,
        public_key: Option<ByteBuf>,
    },
    /// Random bytes.
    GetRandom,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of AWS's interface")]
pub enum Response {
    DescribePCR {
        lock: bool,
        data: ByteBuf,
    },
    ExtendPCR {
        data: ByteBuf,
    },
    LockPCR,
    LockPCRs,
    DescribeNSM {
        version_major: u16,
        version_minor: u16,
        version_patch: u16,
        module_id: String,
        max_pcrs: u16,
        locked_pcrs: BTreeSet<u16>,
        digest: String,
    },
    Attestation {
        document: ByteBuf,
    },
    GetRandom {
        random: ByteBuf,
    },
    Error(ErrorCode),
}

/// Why the module refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ErrorCode {
    /// The interface names it; it is never an answer.
    #[error("no error, and no answer")]
    Success,
    /// An argument is not valid.
    #[error("an argument is not valid")]
    InvalidArgument,
    /// There is no such PCR.
    #[error("there is no such PCR")]
    InvalidIndex,
    /// The answer belongs to another call.
    #[error("the answer belongs to another call")]
    InvalidResponse,
    /// The PCR is locked.
    #[error("the PCR is locked")]
    ReadOnlyIndex,
    /// The module cannot do this.
    #[error("this module cannot do this")]
    InvalidOperation,
    /// The answer did not fit.
    #[error("the answer does not fit")]
    BufferTooSmall,
    /// The request is too large.
    #[error("the request is too large")]
    InputTooLarge,
    /// The module failed.
    #[error("the module failed")]
    InternalError,
}
