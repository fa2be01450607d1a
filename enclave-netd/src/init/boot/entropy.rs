//! Randomness from the hypervisor.
//!
//! An enclave has no disk, no keyboard and nearly no interrupts, so its kernel gathers entropy
//! slowly, and kernels before 5.6 keep programs waiting for it. `/dev/nsm` belongs to the
//! hypervisor, which an enclave has to trust anyway, so its bytes count in full.
//!
//! A request to it is CBOR (RFC 8949), here the text `GetRandom`. The answer is
//! `{"GetRandom": {"random": bytes}}`, always in its shortest encoding; whatever else comes is
//! an error. That is too little for a library of CBOR; the one that AWS's crate takes, serde_cbor, is
//! not maintained (RUSTSEC-2021-0127).

use super::lack::Lack;
use super::sys;
use crate::limits::{NSM_COMPLAINT, NSM_RESPONSE, SEED, SEED_REQUESTS};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::path::Path;

/// The device of the Nitro Secure Module.
pub(super) const NSM: &str = "/dev/nsm";

const REQUEST: &[u8] = b"\x69GetRandom";
const RESPONSE: &[u8] = b"\xa1\x69GetRandom\xa1\x66random";
const ERROR: &[u8] = b"\xa1\x65Error";

const FOLLOWS: &str = "the kernel's random numbers rest on what it gathers itself, and programs may \
                       wait for them";

/// Seeds the kernel from the NSM. Returns how many bits were credited, if there is one.
pub(super) fn seed(lacks: &mut Vec<Lack>) -> Option<u32> {
    if !Path::new(NSM).exists() {
        return None;
    }
    let seeded = || -> Result<u32> {
        let seed = read(NSM)?;
        let random = File::options().write(true).open("/dev/random");
        let random = random.context("cannot open /dev/random")?;
        sys::add_entropy(&random, &seed).context("the kernel did not take it")
    };
    match seeded() {
        Ok(bits) => Some(bits),
        Err(error) => {
            lacks.push(Lack::new(
                "entropy of /dev/nsm",
                format!("{error:#}"),
                FOLLOWS,
            ));
            None
        }
    }
}

fn read(path: &str) -> Result<Vec<u8>> {
    let device = File::options().read(true).write(true).open(path);
    let device = device.context("cannot open it")?;
    let mut seed = Vec::with_capacity(SEED);
    let mut response = vec![0; NSM_RESPONSE];
    for _ in 0..SEED_REQUESTS {
        let length = sys::nsm(&device, REQUEST, &mut response).context("no answer")?;
        let random = decode(&response[..length])?;
        let wanted = SEED - seed.len();
        seed.extend(&random[..wanted.min(random.len())]);
        if seed.len() == SEED {
            return Ok(seed);
        }
    }
    bail!("only {} bytes in {SEED_REQUESTS} answers", seed.len());
}

/// The random bytes of an answer.
fn decode(response: &[u8]) -> Result<&[u8]> {
    if let Some(error) = response.strip_prefix(ERROR) {
        // A text's first byte tells how long it is.
        bail!(
            "it answers with the error {}",
            printable(error.get(1..).unwrap_or(&[]))
        );
    }
    let Some(string) = response.strip_prefix(RESPONSE) else {
        bail!("an answer to another question");
    };
    // RFC 8949, section 3: a byte string is major type 2; its length stands in the first byte, or
    // in one or two bytes behind it.
    let (length, bytes) = match *string {
        [head @ 0x40..=0x57, ref bytes @ ..] => (usize::from(head - 0x40), bytes),
        [0x58, length, ref bytes @ ..] => (usize::from(length), bytes),
        [0x59, high, low, ref bytes @ ..] => (usize::from(u16::from_be_bytes([high, low])), bytes),
        _ => bail!("an answer without a byte string"),
    };
    ensure!(
        length == bytes.len() && length > 0,
        "an answer of {} bytes that promises {length}",
        bytes.len()
    );
    Ok(bytes)
}

fn printable(text: &[u8]) -> String {
    text.iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .take(NSM_COMPLAINT)
        .map(|&byte| char::from(byte))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn response(head: &[u8], bytes: &[u8]) -> Vec<u8> {
        [RESPONSE, head, bytes].concat()
    }

    #[test]
    fn the_answer_of_a_nitro_machine_is_read() {
        let random: Vec<u8> = (0..=255).collect();
        let answer = response(&[0x59, 1, 0], &random);
        assert_eq!(decode(&answer).expect("well-formed"), random);
        assert_eq!(
            decode(&response(&[0x58, 32], &[7; 32])).expect("short"),
            [7; 32]
        );
        assert_eq!(decode(&response(&[0x44], &[7; 4])).expect("tiny"), [7; 4]);
    }

    #[test]
    fn an_error_is_told_without_what_terminals_obey() {
        let error = decode(b"\xa1\x65Error\x70InvalidOp\x1b[2Jeration").expect_err("an error");
        assert_eq!(
            error.to_string(),
            "it answers with the error InvalidOp2Jeration"
        );
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let whole = response(&[0x58, 32], &[7; 32]);
        for length in 0..whole.len() {
            decode(&whole[..length]).expect_err("cut short");
        }
        decode(&[&whole[..], &[0]].concat()).expect_err("one byte more");
        decode(&response(&[0x40], &[])).expect_err("no bytes");
        decode(&response(&[0x5f, 0x44], &[7; 4])).expect_err("of indefinite length");
    }

    proptest! {
        #[test]
        fn no_answer_breaks_it(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&tail);
            let answer = response(&[], &tail);
            if let Ok(random) = decode(&answer) {
                prop_assert!(!random.is_empty() && tail.ends_with(random));
            }
        }
    }
}
