//! Bytes on the command line and in answers.

use std::fs::File;
use std::io::{Read, Write};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::error::{Failure, What};
use crate::limits;

/// Bytes as an argument tells them: `hex:…`, `base64:…`, `file:PATH`, `file:-` for standard input,
/// or the text itself after `text:`. What is secret belongs in a file: arguments are seen by all.
#[derive(Clone)]
pub struct Bytes(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text
            .split_once(':')
            .ok_or("start with hex:, base64:, file: or text:")?;
        let bytes = match kind {
            "hex" => hex::decode(rest).map_err(|error| error.to_string())?,
            "base64" => STANDARD.decode(rest).map_err(|error| error.to_string())?,
            "file" => return Ok(Bytes(read(rest).map_err(|failure| failure.why)?)),
            "text" => rest.as_bytes().to_vec(),
            _ => return Err("start with hex:, base64:, file: or text:".into()),
        };
        Ok(Bytes(Zeroizing::new(bytes)))
    }
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// When it cannot be read, or is longer than anything expected here.
pub fn read(path: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |why: String| Failure::usage(format!("{path}: {why}"));
    let source: Box<dyn Read> = match path {
        "-" => Box::new(std::io::stdin()),
        _ => Box::new(File::open(path).map_err(|error| failed(error.to_string()))?),
    };
    // At its full length from the start: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limits::INPUT + 1));
    source
        .take(limits::INPUT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(error.to_string()))?;
    if bytes.len() > limits::INPUT {
        return Err(failed(format!("longer than {} bytes", limits::INPUT)));
    }
    Ok(bytes)
}

/// In base64.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads what may be raw or in base64, as documents and ciphertexts travel in both forms. `is_raw`
/// looks at the first byte.
///
/// # Errors
/// When it is neither.
pub fn raw_or_base64(bytes: &[u8], is_raw: impl Fn(u8) -> bool) -> Result<Vec<u8>, Failure> {
    if bytes.first().is_some_and(|&first| is_raw(first)) {
        return Ok(bytes.to_vec());
    }
    let text: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    STANDARD
        .decode(text)
        .map_err(|error| Failure::usage(format!("neither raw nor base64: {error}")))
}

/// Writes an answer to standard output.
///
/// # Errors
/// When nobody takes it.
pub fn answer(value: &Value) -> Result<(), Failure> {
    let mut text = Zeroizing::new(format!("{value:#}"));
    text.push('\n');
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::new(What::Other, format!("standard output: {error}")))
}
