//! Which of network, TLS, credentials, permission, attestation and decryption failed: told from
//! what the SDK knows of an error. Its texts name services, hosts, keys and accounts, never secrets.

use std::error::Error as StdError;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::{DateTime, DateTimeFormat};

use crate::error::{Failure, What, chain};

/// How far a clock may be off before it is worth a word, in seconds: AWS takes five minutes.
const CLOCK: i64 = 240;

/// What failed in a call to an AWS service.
pub fn failure<E>(error: &SdkError<E, HttpResponse>, is_attested: bool) -> Failure
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    match error {
        SdkError::ServiceError(refused) => {
            let mut failure = refusal(refused.err(), is_attested);
            if failure.what == What::Credentials
                && let Some(hint) = clock_hint(refused.raw())
            {
                failure.why.push_str(&hint);
            }
            failure
        }
        _ => Failure::new(kind(error), chain(error)),
    }
}

/// What the service said no to.
fn refusal<E>(error: &E, is_attested: bool) -> Failure
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    let code = error.code().unwrap_or("no error code");
    let message = error.message().unwrap_or("no reason given");
    let what = match code {
        "AccessDeniedException" | "AccessDenied" => What::Permission,
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "AuthFailure" => What::Credentials,
        "InvalidCiphertextException" | "IncorrectKeyException" => What::Decryption,
        _ if message.to_ascii_lowercase().contains("attestation") => What::Attestation,
        _ => What::Request,
    };
    let mut why = format!("{code}: {message}");
    match code {
        "AccessDeniedException" if is_attested => why.push_str(
            "; if the credentials may use this key, its policy asks for other PCR values than this \
             enclave's (compare `enclave-app nsm describe-pcr 0`)",
        ),
        "InvalidCiphertextException" => {
            why.push_str("; a ciphertext opens only with the encryption context it was made with");
        }
        "NotFoundException" => why.push_str("; keys live in one region (AWS_REGION)"),
        _ => {}
    }
    Failure::new(what, why)
}

/// What kept a call from getting any answer.
fn kind<E>(error: &SdkError<E, HttpResponse>) -> What
where
    E: StdError + 'static,
{
    let mut is_tls = false;
    let mut is_credentials = false;
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        is_credentials |= cause.is::<CredentialsError>();
        // An I/O error holds another without naming it as its cause.
        let inner = cause
            .downcast_ref::<std::io::Error>()
            .and_then(|error| error.get_ref());
        is_tls |=
            cause.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>());
        next = cause.source();
    }
    match error {
        _ if is_credentials => What::Credentials,
        _ if is_tls => What::Tls,
        SdkError::ConstructionFailure(_) => What::Usage,
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => What::Network,
        _ => What::Request,
    }
}

/// Whether the service's clock differs from ours, which makes signatures worthless.
fn clock_hint(response: &HttpResponse) -> Option<String> {
    let date = response.headers().get("date")?;
    let theirs = DateTime::from_str(date, DateTimeFormat::HttpDate)
        .ok()?
        .secs();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let off = i64::try_from(now.as_secs()).ok()? - theirs;
    (off.abs() > CLOCK).then(|| {
        let side = if off > 0 { "ahead of" } else { "behind" };
        format!(
            "; this machine's clock is {} s {side} the service's",
            off.abs()
        )
    })
}
