//! Which enclaves a key is for: measurements, and the key policy that asks for them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::bytes::read;
use crate::error::Failure;
use crate::limits;

/// What may only be done with an attestation document. The document's measurements are conditions
/// on these alone; Encrypt and GenerateRandom bring no plaintext of others out of KMS.
const ATTESTED: [&str; 2] = ["kms:Decrypt", "kms:GenerateDataKey"];
/// What the key's administrators may do: all but to use it.
const ADMINISTRATION: [&str; 12] = [
    "kms:CancelKeyDeletion",
    "kms:DescribeKey",
    "kms:DisableKey*",
    "kms:EnableKey*",
    "kms:GetKey*",
    "kms:ListKeyPolicies",
    "kms:ListResourceTags",
    "kms:PutKeyPolicy",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateKeyDescription",
];

/// The measurements of an image, as `build-enclave` and `nitro-cli` write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrValues(pub BTreeMap<u8, [u8; limits::PCR]>);

/// `nitro-cli` puts them into a table of their own, beside what is no measurement.
#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    Nested {
        #[serde(rename = "Measurements")]
        measurements: BTreeMap<String, Value>,
    },
    Flat(BTreeMap<String, Value>),
}

impl PcrValues {
    /// Reads `{"PCR0": "HEX", …}`, or the same within `"Measurements"`.
    ///
    /// # Errors
    /// When there is no such file, or something in it is no measurement.
    pub fn read(path: &str) -> Result<PcrValues, Failure> {
        PcrValues::parse(&read(path)?).map_err(|why| Failure::usage(format!("{path}: {why}")))
    }

    fn parse(bytes: &[u8]) -> Result<PcrValues, String> {
        let entries = match serde_json::from_slice(bytes).map_err(|error| error.to_string())? {
            File::Nested { measurements } | File::Flat(measurements) => measurements,
        };
        let mut values = BTreeMap::new();
        for (name, value) in entries {
            let Some(number) = name.strip_prefix("PCR") else {
                continue;
            };
            let index = number
                .parse()
                .ok()
                .filter(|&index| index < limits::PCRS)
                .ok_or_else(|| format!("{name}: the PCRs are PCR0 to PCR31"))?;
            let mut bytes = [0; limits::PCR];
            value
                .as_str()
                .and_then(|text| hex::decode_to_slice(text, &mut bytes).ok())
                .ok_or_else(|| format!("{name}: a value is a string of 96 hex digits"))?;
            values.insert(index, bytes);
        }
        if values.is_empty() {
            return Err("no PCR0, PCR1 or PCR2 in it".into());
        }
        Ok(PcrValues(values))
    }
}

/// A key policy: `principal` may use the key from an enclave with these measurements alone, and may
/// encrypt from anywhere; `admin` may administer the key and not use it.
///
/// # Errors
/// When a measurement is zero: that is every enclave in debug mode.
pub fn policy(pcrs: &PcrValues, principal: &str, admin: &str) -> Result<Value, Failure> {
    let mut condition = BTreeMap::new();
    for (index, value) in &pcrs.0 {
        if *value == [0; limits::PCR] {
            let why = format!(
                "PCR{index} is zero: every enclave in debug mode has it; build the image's values anew"
            );
            return Err(Failure::usage(why));
        }
        condition.insert(
            format!("kms:RecipientAttestation:PCR{index}"),
            hex::encode(value),
        );
    }
    let statement = |sid: &str, who: &str, actions: &[&str]| {
        json!({
            "Sid": sid,
            "Effect": "Allow",
            "Principal": { "AWS": who },
            "Action": actions,
            "Resource": "*",
        })
    };
    let mut attested = statement("OnlyThisEnclave", principal, &ATTESTED);
    attested["Condition"] = json!({ "StringEqualsIgnoreCase": condition });
    Ok(json!({
        "Version": "2012-10-17",
        "Statement": [
            attested,
            statement("Encrypt", principal, &["kms:Encrypt"]),
            statement("Administration", admin, &ADMINISTRATION),
        ],
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(pcr0: &str) -> String {
        format!("{{\"PCR0\": \"{pcr0}\"}}")
    }

    #[test]
    fn both_forms_of_the_file_are_read() {
        let value = "Ab".repeat(48);
        let nested = format!(
            r#"{{"Measurements": {{"HashAlgorithm": "Sha384 {{ ... }}", "PCR0": "{value}"}}}}"#
        );
        let flat = PcrValues::parse(file(&value).as_bytes()).unwrap();
        assert_eq!(flat, PcrValues::parse(nested.as_bytes()).unwrap());
        assert_eq!(flat.0[&0], [0xab; 48]);
    }

    #[test]
    fn what_is_no_measurement_is_refused() {
        for (text, why) in [
            ("{}".to_owned(), "no PCR0"),
            (file("ab"), "96 hex digits"),
            (file(&"zz".repeat(48)), "96 hex digits"),
            (file(&"ab".repeat(48)).replace("PCR0", "PCR32"), "PCR31"),
            ("[]".to_owned(), ""),
        ] {
            let error = PcrValues::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_policy_binds_use_to_the_measurements_and_nothing_else() {
        let pcrs = PcrValues(BTreeMap::from([(0, [0xab; 48]), (2, [0xcd; 48])]));
        let policy = policy(&pcrs, "arn:aws:iam::1:role/enclave", "arn:aws:iam::1:root").unwrap();
        let [attested, encrypt, admin] = &policy["Statement"].as_array().unwrap()[..] else {
            panic!("three statements");
        };
        assert_eq!(
            attested["Condition"]["StringEqualsIgnoreCase"],
            json!({
                "kms:RecipientAttestation:PCR0": "ab".repeat(48),
                "kms:RecipientAttestation:PCR2": "cd".repeat(48),
            })
        );
        assert_eq!(attested["Action"], json!(ATTESTED));
        assert_eq!(encrypt["Action"], json!(["kms:Encrypt"]));
        for action in ADMINISTRATION {
            for used in [
                "kms:Decrypt",
                "kms:GenerateDataKey",
                "kms:CreateGrant",
                "kms:ReEncryptFrom",
            ] {
                assert!(!used.starts_with(action.trim_end_matches('*')), "{action}");
            }
        }
        assert_eq!(admin["Principal"]["AWS"], "arn:aws:iam::1:root");
    }

    #[test]
    fn a_debug_enclaves_measurement_makes_no_policy() {
        let pcrs = PcrValues(BTreeMap::from([(0, [0; 48])]));
        assert!(policy(&pcrs, "p", "a").unwrap_err().why.contains("debug"));
    }
}
