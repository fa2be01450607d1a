//! Which key is meant: by its ARN, since an alias can be pointed at another one.

use std::str::FromStr;

/// The ARN of a KMS key, in any of Amazon's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyArn {
    text: String,
    region: String,
}

impl KeyArn {
    /// As KMS takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where the key is.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }
}

impl FromStr for KeyArn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').collect();
        match parts[..] {
            ["arn", partition, "kms", region, account, resource]
                if partition.starts_with("aws")
                    && !region.is_empty()
                    && account.len() == 12
                    && account.bytes().all(|b| b.is_ascii_digit())
                    && resource
                        .strip_prefix("key/")
                        .is_some_and(|id| !id.is_empty()) =>
            {
                Ok(KeyArn {
                    text: text.to_owned(),
                    region: region.to_owned(),
                })
            }
            _ => Err(format!(
                "{text:?} is no key ARN; it looks like \
                 arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab \
                 (an alias can be pointed at another key)"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn a_key_is_named_by_its_arn_alone() {
        for region in ["eu-west-1", "us-gov-west-1"] {
            let text = format!("arn:aws-us-gov:kms:{region}:111122223333:key/one");
            let key: KeyArn = text.parse().unwrap();
            assert_eq!((key.as_str(), key.region()), (text.as_str(), region));
        }
        for wrong in [
            "",
            "alias/x",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:eu-west-1:111122223333:alias/x",
            "arn:aws:kms::111122223333:key/one",
            "arn:aws:kms:eu-west-1:11112222333:key/one",
            "arn:aws:kms:eu-west-1:11112222333x:key/one",
            "arn:aws:kms:eu-west-1:111122223333:key/",
            "arn:aws:sqs:eu-west-1:111122223333:key/one",
            "arn:aws:kms:eu-west-1:111122223333:key/one:two",
        ] {
            assert!(wrong.parse::<KeyArn>().is_err(), "{wrong}");
        }
    }
}
