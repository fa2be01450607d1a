//! What can go wrong, by who can mend it. Every subcommand ends with one of these: its word opens
//! the message and its number is the exit code, so that scripts need not read the message.

use std::process::ExitCode;

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Anything else: a file, a device, this program.
    Other,
    /// The arguments, the configuration or the input.
    Usage,
    /// A name was not found, a connection not made, or an answer did not come in time.
    Network,
    /// The peer's certificate or the TLS handshake.
    Tls,
    /// No credentials, or the peer does not know or no longer accepts them.
    Credentials,
    /// The credentials are good, but the policy does not allow this.
    Permission,
    /// There is no attestation document, it is not believed, or the answer is not sealed for it.
    Attestation,
    /// A ciphertext does not open with this key and context.
    Decryption,
    /// The service understood and refused for another reason: no such key, a disabled key.
    Request,
}

impl What {
    /// The word that opens the message.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            What::Other => "error",
            What::Usage => "usage",
            What::Network => "network",
            What::Tls => "tls",
            What::Credentials => "credentials",
            What::Permission => "permission",
            What::Attestation => "attestation",
            What::Decryption => "decryption",
            What::Request => "request",
        }
    }

    /// The exit code of a subcommand that fails so.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            What::Other => 1,
            What::Usage => 2,
            What::Network => 3,
            What::Tls => 4,
            What::Credentials => 5,
            What::Permission => 6,
            What::Attestation => 7,
            What::Decryption => 8,
            What::Request => 9,
        }
    }
}

/// Why a subcommand ends without having done its work. The text never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", what.word())]
pub struct Failure {
    /// What failed.
    pub what: What,
    /// Why, and what to do about it.
    pub why: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(what: What, why: impl Into<String>) -> Self {
        Self {
            what,
            why: why.into(),
        }
    }

    /// What was asked for is wrong: a setting, an option, a file.
    pub fn usage(why: impl Into<String>) -> Self {
        Failure::new(What::Usage, why)
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        ExitCode::from(failure.what.code())
    }
}

/// An error and its causes in one line. Libraries differ in whether an error's text repeats its
/// cause's: what is there already is left out.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
