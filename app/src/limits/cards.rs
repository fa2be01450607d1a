//! Limits of `cards`, with their reasons.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::aws::CALL;

/// The longest message that is read: a [`CIPHERTEXT`] in base64 is half of it. SQS itself carries
/// 1 MiB, so that what is received at once is 10 MiB at most.
pub const MESSAGE: usize = 16 * 1024;

/// The longest identifier of a card: a UUID has 36 characters.
pub const ID: usize = 64;

/// The longest ciphertext that KMS takes. A card's has some 170 bytes.
pub const CIPHERTEXT: usize = 6144;

/// Digits of a card's number (ISO/IEC 7812).
pub const DIGITS: RangeInclusive<usize> = 12..=19;

/// Messages that are received, and under way, at once: as many as SQS gives in one answer. Each costs
/// a key pair, a tenth of a second of a processor.
pub const AT_ONCE: i32 = 10;

/// How long SQS keeps a request waiting for messages: the longest it allows. An empty queue costs three
/// requests a minute.
pub const WAIT: Duration = Duration::from_secs(20);

/// For how long nobody else is given a message that was received. To decrypt it, to answer it and to
/// delete it are three calls; who takes longer is given up, and the message comes again.
pub const VISIBILITY: Duration = Duration::from_secs(120);
const _: () = assert!(VISIBILITY.as_secs() > 3 * CALL.as_secs());

/// When a message comes again that could not be decrypted or answered: the bound doubles each time it
/// is received. 15 minutes are short against the 4 days that SQS keeps a message by default.
pub const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(15 * 60));

/// How long the service rests when nothing could be received or answered, at first and at most. What is
/// mended is noticed within this time.
pub const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The most cards that `send` makes at once: each is two calls, one after the other.
pub const COUNT: u32 = 1000;

/// For how long `send` keeps an answer to somebody else's card from others: no longer than it takes to
/// see that it is not its own.
pub const GLANCE: Duration = Duration::from_secs(5);
