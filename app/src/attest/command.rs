//! `enclave-app attest`: whether to believe a document, in JSON.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use der::DateTime;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::document::{Document, Unverified};
use super::root::Root;
use super::verify::{self, Expected, Verified, time, verify};
use crate::bytes::{Bytes, answer, base64, raw_or_base64, read};
use crate::error::{Failure, What};
use crate::kms::PcrValues;
use crate::limits;

/// What to do with a document.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Verifies a document offline and prints what was checked
    Verify(Box<Verify>),
}

/// What to verify a document for. BYTES are hex:…, base64:…, file:PATH or text:….
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The document, raw or in base64; - reads standard input
    #[arg(value_name = "DOC")]
    document: String,
    /// The time its certificates shall be valid at: `now`, seconds since 1970, a date such as
    /// 2025-01-06T16:07:05Z, or `document` for its own time, which says nothing of its age
    #[arg(long, default_value = "now", value_name = "TIME")]
    at: At,
    /// A measurement it must have, such as 0=8bb159…; may be repeated
    #[arg(long = "pcr", value_name = "N=HEX")]
    pcr: Vec<OnePcr>,
    /// The measurements it must have, as `build-enclave` and `nitro-cli` write them
    #[arg(long, value_name = "FILE")]
    pcrs: Option<String>,
    /// The nonce it must have
    #[arg(long, value_name = "BYTES")]
    nonce: Option<Bytes>,
    /// The user data it must have
    #[arg(long, value_name = "BYTES")]
    user_data: Option<Bytes>,
    /// The public key it must have, in DER
    #[arg(long, value_name = "BYTES")]
    public_key: Option<Bytes>,
    /// Believes enclaves in debug mode, which measure nothing
    #[arg(long)]
    allow_debug: bool,
    /// Believes this root, in PEM or DER, instead of AWS's: for tests
    #[arg(long, value_name = "FILE")]
    root: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Now,
    Document,
    Seconds(u64),
}

impl FromStr for At {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "now" => Ok(At::Now),
            "document" => Ok(At::Document),
            _ => text
                .parse()
                .ok()
                .or_else(|| {
                    let date = DateTime::from_str(text).ok()?;
                    Some(date.unix_duration().as_secs())
                })
                .map(At::Seconds)
                .ok_or("now, document, seconds since 1970, or a date such as 2025-01-06T16:07:05Z"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct OnePcr(u8, [u8; limits::PCR]);

impl FromStr for OnePcr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (index, value) = text.split_once('=').ok_or("NUMBER=HEX")?;
        let index = index
            .parse()
            .ok()
            .filter(|&index| index < limits::PCRS)
            .ok_or("the number is 0 to 31")?;
        let mut bytes = [0; limits::PCR];
        hex::decode_to_slice(value, &mut bytes).map_err(|_| "the value is 96 hex digits")?;
        Ok(OnePcr(index, bytes))
    }
}

/// Runs one command.
///
/// # Errors
/// When the document is not to be believed, and when a file cannot be read.
pub fn run(command: Command) -> Result<(), Failure> {
    let Command::Verify(arguments) = command;
    let bytes = raw_or_base64(&read(&arguments.document)?, |first| !first.is_ascii())?;
    let root = match &arguments.root {
        None => Root::aws(),
        Some(path) => other_root(path)?,
    };
    let mut warnings = Vec::new();
    if !root.is_aws() {
        warnings.push("--root: believed is not AWS's root; this proves nothing about AWS hardware");
    }
    if arguments.allow_debug {
        warnings.push("--allow-debug: an enclave in debug mode has no secrets from its parent");
    }
    let at = match arguments.at {
        At::Seconds(seconds) => Some(seconds),
        At::Now => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .map(|since| since.as_secs()),
        At::Document => {
            warnings.push("--at document: verified at its own time; it may be old");
            Unverified::read(&bytes)
                .ok()
                .map(|unverified| unverified.document.timestamp / 1000)
        }
    }
    // One that cannot be read fails below, with the reason.
    .unwrap_or_default();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let expected = expected(&arguments)?;
    let result = verify(&bytes, &root, at, &expected);
    answer(&report(&result, &root, at, &expected, &warnings))?;
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(What::Attestation, error.to_string())),
    }
}

fn other_root(path: &str) -> Result<Root, Failure> {
    let bytes = read(path)?;
    if !bytes.starts_with(b"-----") {
        return Ok(Root::other(bytes.to_vec()));
    }
    let der = CertificateDer::from_pem_slice(&bytes)
        .map_err(|error| Failure::usage(format!("{path}: {error:?}")))?;
    Ok(Root::other(der.to_vec()))
}

fn expected(arguments: &Verify) -> Result<Expected, Failure> {
    let mut pcrs = BTreeMap::new();
    if let Some(path) = &arguments.pcrs {
        pcrs = PcrValues::read(path)?.0;
    }
    for OnePcr(index, value) in &arguments.pcr {
        if pcrs.insert(*index, *value).is_some_and(|old| old != *value) {
            let why = format!("two different values are given for PCR{index}");
            return Err(Failure::usage(why));
        }
    }
    let own = |bytes: &Option<Bytes>| bytes.as_deref().map(<[u8]>::to_vec);
    Ok(Expected {
        pcrs,
        nonce: own(&arguments.nonce),
        user_data: own(&arguments.user_data),
        public_key: own(&arguments.public_key),
        allow_debug: arguments.allow_debug,
    })
}

fn report(
    result: &Result<Verified, verify::Error>,
    root: &Root,
    at: u64,
    expected: &Expected,
    warnings: &[&str],
) -> Value {
    let mut report = json!({
        "verified": result.is_ok(),
        "at": time(at),
        "root": { "fingerprint": root.fingerprint(), "aws": root.is_aws() },
        "warnings": warnings,
    });
    match result {
        Ok(verified) => {
            report["checked"] = json!(verified.checks);
            report["not_checked"] = json!(not_checked(expected));
            report["chain"] = json!(verified.chain);
            report["document"] = contents(&verified.document);
        }
        Err(error) => report["reason"] = json!(error.to_string()),
    }
    report
}

fn not_checked(expected: &Expected) -> Vec<&'static str> {
    [
        ("PCRs: any image would do", expected.pcrs.is_empty()),
        (
            "nonce: it may have been made for another question",
            expected.nonce.is_none(),
        ),
        ("user data", expected.user_data.is_none()),
        ("public key", expected.public_key.is_none()),
    ]
    .into_iter()
    .filter_map(|(what, is_missing)| is_missing.then_some(what))
    .collect()
}

fn contents(document: &Document) -> Value {
    let pcrs: BTreeMap<u8, String> = document
        .pcrs
        .iter()
        .map(|(&index, value)| (index, hex::encode(value)))
        .collect();
    let optional = |field: &Option<Vec<u8>>| field.as_deref().map(base64);
    json!({
        "module_id": document.module_id,
        "timestamp": time(document.timestamp / 1000),
        "pcrs": pcrs,
        "debug": document.is_debug(),
        "public_key": optional(&document.public_key),
        "user_data": optional(&document.user_data),
        "nonce": optional(&document.nonce),
    })
}
