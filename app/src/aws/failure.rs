//! Which of network, TLS, credentials, permission, attestation and decryption failed: told from
//! what the SDK knows of an error. Its texts name services, hosts, keys and accounts, never secrets.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use rustls::CertificateError;

use crate::error::{Failure, What, chain};

/// What failed in a call to an AWS service.
pub fn failure<E>(error: &SdkError<E, HttpResponse>, is_attested: bool) -> Failure
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    match error {
        SdkError::ServiceError(refused) => match refused.err().code() {
            Some(code) => refusal(code, refused.err().message(), is_attested),
            None => {
                let why = format!(
                    "an answer with status {} that is none of the service's; does something else \
                     answer in its name?",
                    refused.raw().status().as_u16()
                );
                Failure::new(What::Request, why)
            }
        },
        _ => unanswered(error),
    }
}

/// What the service said no to.
fn refusal(code: &str, message: Option<&str>, is_attested: bool) -> Failure {
    let message = message.unwrap_or("no reason given");
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
        "AWS.SimpleQueueService.NonExistentQueue" | "QueueDoesNotExist" => {
            why.push_str("; queues live in one region (AWS_REGION) and one account");
        }
        "NotFoundException" => why.push_str("; keys live in one region (AWS_REGION)"),
        _ => {}
    }
    Failure::new(what, why)
}

/// What kept a call from getting any answer, or all of it.
fn unanswered<E>(error: &SdkError<E, HttpResponse>) -> Failure
where
    E: StdError + 'static,
{
    let mut tls = None;
    let mut is_credentials = false;
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        is_credentials |= cause.is::<CredentialsError>();
        tls = tls.or_else(|| cause.downcast_ref::<rustls::Error>());
        // An I/O error may hold another without naming it as its cause.
        next = match cause.downcast_ref::<std::io::Error>() {
            Some(error) if error.get_ref().is_some() => error.get_ref().map(|inner| inner as _),
            _ => cause.source(),
        };
    }
    let what = match (error, tls) {
        _ if is_credentials => What::Credentials,
        (_, Some(_)) => What::Tls,
        (SdkError::ConstructionFailure(_), _) => What::Usage,
        (
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_),
            _,
        ) => What::Network,
        _ => What::Request,
    };
    let mut why = chain(error);
    if let Some(rustls::Error::InvalidCertificate(reason)) = tls
        && is_of_time(reason)
    {
        why.push_str("; is this machine's clock right?");
    }
    Failure::new(what, why)
}

fn is_of_time(reason: &CertificateError) -> bool {
    matches!(
        reason,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}
