//! A card's number: digits that add up (Luhn; ISO/IEC 7812-1, annex B).

use aws_lc_rs::rand;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Failure, What};
use crate::limits::cards as limits;

/// What test cards begin with: payment providers document numbers of this kind for tests, and no bank
/// gives them out.
const TEST: &[u8] = b"400000";

/// Digits of a test card.
const LENGTH: usize = 16;

/// The number of a card, in ASCII digits; wiped after use.
pub(super) struct Number(Zeroizing<Vec<u8>>);

impl Number {
    /// Of a test card, any one.
    ///
    /// # Errors
    /// Without randomness.
    pub(super) fn random() -> Result<Number, Failure> {
        // At its full length from the start: growing would leave copies behind.
        let mut digits = Zeroizing::new(Vec::with_capacity(LENGTH));
        digits.extend(TEST);
        while digits.len() < LENGTH - 1 {
            let mut byte = [0];
            rand::fill(&mut byte).map_err(|_| Failure::new(What::Other, "no randomness"))?;
            // Above 249 the lower digits would come more often.
            if byte[0] < 250 {
                digits.push(b'0' + byte[0] % 10);
            }
        }
        digits.push(b'0');
        let last = (10 - luhn(&digits)) % 10;
        digits[LENGTH - 1] = b'0' + last;
        Ok(Number(digits))
    }

    /// What was decrypted, if it is the number of a card.
    pub(super) fn parse(digits: Zeroizing<Vec<u8>>) -> Option<Number> {
        let is_number = limits::DIGITS.contains(&digits.len())
            && digits.iter().all(u8::is_ascii_digit)
            && luhn(&digits) == 0;
        is_number.then_some(Number(digits))
    }

    /// All of it.
    pub(super) fn digits(&self) -> &[u8] {
        &self.0
    }

    /// What may be told of it.
    pub(super) fn last_four(&self) -> LastFour {
        let digits = &self.0[self.0.len() - 4..];
        LastFour(digits.iter().copied().map(char::from).collect())
    }
}

/// The sum of ASCII digits, every second of them doubled, modulo 10: 0 for the number of a card.
fn luhn(digits: &[u8]) -> u8 {
    let sum = digits.iter().rev().enumerate().fold(0, |sum, (at, digit)| {
        let value = digit - b'0';
        let doubled = match (at % 2, value * 2) {
            (0, _) => value,
            (_, small @ 0..10) => small,
            (_, large) => large - 9,
        };
        (sum + doubled) % 10
    });
    sum % 10
}

/// The last four digits of a card's number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct LastFour(String);

impl TryFrom<String> for LastFour {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(LastFour(text))
        } else {
            Err("four digits")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    fn parse(text: &str) -> Option<Number> {
        Number::parse(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn numbers_that_add_up_are_cards() {
        // Test numbers that payment providers document.
        for (text, last) in [
            ("4000000000000002", "0002"),
            ("4242424242424242", "4242"),
            ("378282246310005", "0005"),
            ("6304000000000000", "0000"),
            ("6011111111111117", "1117"),
            ("501800000009", "0009"),
            ("6304000000000000000", "0000"),
        ] {
            let number = parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(number.last_four(), LastFour(last.to_owned()));
            assert_eq!(number.digits(), text.as_bytes());
        }
    }

    #[test]
    fn each_wrong_digit_and_most_swaps_are_noticed() {
        let right = "4000056655665556";
        assert!(parse(right).is_some());
        for at in 0..right.len() {
            for digit in b'0'..=b'9' {
                let mut wrong = right.as_bytes().to_vec();
                if std::mem::replace(&mut wrong[at], digit) != digit {
                    assert!(
                        Number::parse(Zeroizing::new(wrong)).is_none(),
                        "{at} {digit}"
                    );
                }
            }
        }
        assert!(parse("4000065655665556").is_none());
    }

    #[test]
    fn nothing_else_is_a_card() {
        for text in [
            "",
            "0",
            "0000",
            "00000000000",
            "00000000000000000000",
            "4000 0000 0000 0002",
            "400000000000000a",
            "-000000000000002",
            "4000000000000002\n",
            "\u{664}\u{664}\u{664}\u{664}\u{664}\u{664}\u{664}\u{664}",
        ] {
            assert!(parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_random_card_is_a_test_card_and_no_two_are_the_same() {
        let numbers: Vec<_> = (0..100).map(|_| Number::random().unwrap()).collect();
        for number in &numbers {
            assert!(number.digits().starts_with(TEST));
            assert_eq!(number.digits().len(), LENGTH);
            assert!(Number::parse(Zeroizing::new(number.digits().to_vec())).is_some());
        }
        let mut distinct: Vec<_> = numbers.iter().map(Number::digits).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), numbers.len());
    }
}
