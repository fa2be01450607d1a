//! `enclave-app nsm`: every call of the secure module, answered in JSON.

use std::fs;
use std::path::PathBuf;

use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Error, Place, Request, Response};
use crate::bytes::{Bytes, answer, base64};
use crate::error::{Failure, What};
use crate::limits;

/// What to ask the secure module. BYTES are hex:…, base64:…, file:PATH (- for standard input) or
/// text:….
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Its name, version, number of PCRs and which are locked
    Describe,
    /// The value of a PCR and whether it is locked
    DescribePcr {
        /// 0 to 31
        index: u16,
    },
    /// Hashes data into a PCR (16 to 31 are the program's own)
    ExtendPcr {
        /// 16 to 31
        index: u16,
        /// What to hash in
        #[arg(long, value_name = "BYTES")]
        data: Bytes,
    },
    /// Makes a PCR read-only until the enclave ends
    LockPcr {
        /// 16 to 31
        index: u16,
    },
    /// Makes the PCRs from 0 up to, and without, RANGE read-only
    LockPcrs {
        /// 1 to 32
        range: u16,
    },
    /// Random bytes, in hex
    Random {
        /// How many, up to 4,096
        #[arg(long, default_value_t = 32)]
        bytes: usize,
    },
    /// A signed attestation document, in base64
    Attest {
        /// What the verifier sent, so that it knows the document is fresh
        #[arg(long, value_name = "BYTES")]
        nonce: Option<Bytes>,
        /// Anything the document shall vouch for
        #[arg(long, value_name = "BYTES")]
        user_data: Option<Bytes>,
        /// A public key the document shall vouch for, in DER
        #[arg(long, value_name = "BYTES")]
        public_key: Option<Bytes>,
        /// Writes the document to this file, raw, instead
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Runs one command.
///
/// # Errors
/// Outside an enclave, when the secure module refuses, and when the answer cannot be written.
pub fn run(command: Command, place: &Place) -> Result<(), Failure> {
    answer(&call(command, place)?)
}

fn call(command: Command, place: &Place) -> Result<Value, Failure> {
    let request = match command {
        Command::Describe => Request::DescribeNSM,
        Command::DescribePcr { index } => Request::DescribePCR { index },
        Command::ExtendPcr { index, ref data } => Request::ExtendPCR {
            index,
            data: ByteBuf::from(data.to_vec()),
        },
        Command::LockPcr { index } => Request::LockPCR { index },
        Command::LockPcrs { range } => Request::LockPCRs { range },
        Command::Random { bytes } => return random(bytes, place),
        Command::Attest {
            nonce,
            user_data,
            public_key,
            out,
        } => {
            let document = place.attest(
                nonce.as_deref(),
                user_data.as_deref(),
                public_key.as_deref(),
            )?;
            let Some(path) = out else {
                return Ok(json!({ "document": base64(&document) }));
            };
            fs::write(&path, &document).map_err(|error| {
                Failure::new(What::Other, format!("{}: {error}", path.display()))
            })?;
            return Ok(json!({ "file": path, "bytes": document.len() }));
        }
    };
    let response = place.ask(&request)?;
    Ok(match (request, response) {
        (
            Request::DescribeNSM,
            Response::DescribeNSM {
                version_major,
                version_minor,
                version_patch,
                module_id,
                max_pcrs,
                locked_pcrs,
                digest,
            },
        ) => json!({
            "module_id": module_id,
            "version": format!("{version_major}.{version_minor}.{version_patch}"),
            "max_pcrs": max_pcrs,
            "locked_pcrs": locked_pcrs,
            "digest": digest,
        }),
        (Request::DescribePCR { index }, Response::DescribePCR { lock, data }) => {
            json!({ "index": index, "locked": lock, "value": hex::encode(data) })
        }
        (Request::ExtendPCR { index, .. }, Response::ExtendPCR { data }) => {
            json!({ "index": index, "value": hex::encode(data) })
        }
        (Request::LockPCR { index }, Response::LockPCR) => {
            json!({ "index": index, "locked": true })
        }
        (Request::LockPCRs { range }, Response::LockPCRs) => {
            json!({ "range": range, "locked": true })
        }
        _ => return Err(Error::Answer.into()),
    })
}

/// The module gives as many bytes a call as it likes.
fn random(bytes: usize, place: &Place) -> Result<Value, Failure> {
    if !(1..=limits::RANDOM).contains(&bytes) {
        let why = format!("--bytes takes 1 to {}", limits::RANDOM);
        return Err(Failure::usage(why));
    }
    let mut collected = Zeroizing::new(Vec::with_capacity(bytes));
    while collected.len() < bytes {
        let Response::GetRandom { random } = place.ask(&Request::GetRandom)? else {
            return Err(Error::Answer.into());
        };
        let random = Zeroizing::new(random.into_vec());
        if random.is_empty() {
            return Err(Error::Answer.into());
        }
        let wanted = random.len().min(bytes - collected.len());
        collected.extend_from_slice(&random[..wanted]);
    }
    Ok(json!({ "random": hex::encode(&*collected) }))
}
