//! `enclave-app kms`: the calls, answered in JSON.

use serde_json::json;

use super::{Context, Kms, PcrValues, policy};
use crate::bytes::{Bytes, answer, base64};
use crate::error::Failure;
use crate::nsm::Place;

/// What to ask KMS. BYTES are hex:…, base64:…, file:PATH (- for standard input) or text:….
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Decrypts what KMS encrypted
    Decrypt {
        /// What to decrypt
        #[arg(long, value_name = "BYTES")]
        ciphertext: Bytes,
        /// The key that must have encrypted it
        #[arg(long, value_name = "ARN")]
        key: Option<String>,
        /// What all calls share
        #[command(flatten)]
        common: Common,
    },
    /// Encrypts up to 4,096 bytes
    Encrypt {
        /// What to encrypt
        #[arg(long, value_name = "BYTES")]
        plaintext: Bytes,
        /// The key to encrypt with
        #[arg(long, value_name = "ARN")]
        key: String,
        /// What all calls share
        #[command(flatten)]
        common: Common,
    },
    /// Makes a key to encrypt data with: in plaintext, and encrypted to be kept
    GenerateDataKey {
        /// The key to encrypt it with
        #[arg(long, value_name = "ARN")]
        key: String,
        /// Its length: 32 for AES-256
        #[arg(long, default_value_t = 32)]
        bytes: u32,
        /// What all calls share
        #[command(flatten)]
        common: Common,
    },
    /// Random bytes from KMS
    GenerateRandom {
        /// How many, up to 1,024
        #[arg(long, default_value_t = 32)]
        bytes: u32,
        /// What all calls share
        #[command(flatten)]
        common: Common,
    },
    /// Prints the key policy that lets only an image with these measurements use a key
    Policy {
        /// pcr-values.json of build-enclave, or what nitro-cli build-enclave printed
        #[arg(long, value_name = "FILE")]
        pcrs: String,
        /// Who uses the key from the enclave: the role of the parent instance
        #[arg(long, value_name = "ARN")]
        principal: String,
        /// Who administers the key, and cannot use it
        #[arg(long, value_name = "ARN")]
        admin: String,
    },
}

/// What all calls share.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// An entry of the encryption context; may be repeated
    #[arg(long = "context", value_name = "KEY=VALUE", value_parser = entry)]
    context: Vec<(String, String)>,
    /// Where the key is; AWS_REGION otherwise
    #[arg(long)]
    region: Option<String>,
    /// Outside an enclave: takes answers that are not sealed for one
    #[arg(long)]
    plain: bool,
}

fn entry(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE"),
    }
}

impl Common {
    async fn connect(self, place: &Place) -> Result<(Kms, Context), Failure> {
        let mut context = Context::new();
        for (key, value) in self.context {
            if context.contains_key(&key) {
                let why = format!("the context has the key {key:?} twice");
                return Err(Failure::usage(why));
            }
            context.insert(key, value);
        }
        let kms = Kms::in_region(place.clone(), self.plain, self.region).await?;
        Ok((kms, context))
    }
}

/// Runs one command.
///
/// # Errors
/// What failed and why.
pub async fn run(command: Command, place: &Place) -> Result<(), Failure> {
    let value = match command {
        Command::Decrypt {
            ciphertext,
            key,
            common,
        } => {
            let (kms, context) = common.connect(place).await?;
            let plaintext = kms
                .decrypt(ciphertext.to_vec(), key.as_deref(), &context)
                .await?;
            json!({ "plaintext": base64(&plaintext) })
        }
        Command::Encrypt {
            plaintext,
            key,
            common,
        } => {
            let (kms, context) = common.connect(place).await?;
            let ciphertext = kms.encrypt(&plaintext, &key, &context).await?;
            json!({ "ciphertext": base64(&ciphertext) })
        }
        Command::GenerateDataKey { key, bytes, common } => {
            let (kms, context) = common.connect(place).await?;
            let made = kms.generate_data_key(&key, bytes, &context).await?;
            json!({ "plaintext": base64(&made.plaintext), "ciphertext": base64(&made.ciphertext) })
        }
        Command::GenerateRandom { bytes, common } => {
            let (kms, context) = common.connect(place).await?;
            if !context.is_empty() {
                let why = "random bytes have no encryption context";
                return Err(Failure::usage(why));
            }
            json!({ "random": base64(&kms.generate_random(bytes).await?) })
        }
        Command::Policy {
            pcrs,
            principal,
            admin,
        } => policy(&PcrValues::read(&pcrs)?, &principal, &admin)?,
    };
    answer(&value)
}
