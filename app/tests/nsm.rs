//! The secure module's calls, through the program as people run it.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use clap::Parser;
use enclave_app::cli::Cli;
use enclave_app::nsm::{ErrorCode, Request, Response};
use serde_bytes::ByteBuf;

fn app(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enclave-app"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn outside_an_enclave_each_call_says_so_and_nothing_else() {
    for call in [
        &["describe"][..],
        &["describe-pcr", "0"],
        &["extend-pcr", "16", "--data", "text:x"],
        &["lock-pcr", "16"],
        &["lock-pcrs", "16"],
        &["random"],
        &["attest", "--nonce", "hex:00ff"],
    ] {
        let done = app(&[&["nsm"], call].concat());
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(7), "{call:?}: {said}");
        assert!(said.contains("there is no /dev/nsm"), "{call:?}: {said}");
        assert!(done.stdout.is_empty());
    }
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_asked() {
    for (call, why) in [
        (&["extend-pcr", "16", "--data", "x"][..], "hex:, base64:"),
        (&["extend-pcr", "16", "--data", "hex:0"], "hex:0"),
        (&["random", "--bytes", "0"], "1 to 4096"),
        (&["random", "--bytes", "4097"], "1 to 4096"),
        (&["describe-pcr", "-1"], "unexpected argument"),
        (&["attest", "--nonce", "file:/nonexistent"], "No such file"),
    ] {
        let done = app(&[&["nsm"], call].concat());
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{call:?}: {said}");
        assert!(said.contains(why), "{call:?}: {said}");
    }
    let long = format!("text:{}", "x".repeat(513));
    let done = app(&["nsm", "attest", "--nonce", &long]);
    assert_eq!(done.status.code(), Some(2));
}

/// What goes to the device and comes from it, byte for byte as AWS's driver has it.
#[test]
fn requests_and_responses_have_the_encoding_of_the_device() {
    let encoded = |request: &Request| {
        let mut bytes = Vec::new();
        ciborium::into_writer(request, &mut bytes).unwrap();
        hex::encode(bytes)
    };
    let text = |text: &str| hex::encode(text);
    assert_eq!(
        encoded(&Request::GetRandom),
        format!("69{}", text("GetRandom"))
    );
    assert_eq!(
        encoded(&Request::DescribePCR { index: 3 }),
        format!("a16b{}a165{}03", text("DescribePCR"), text("index"))
    );
    assert_eq!(
        encoded(&Request::Attestation {
            user_data: None,
            nonce: Some(ByteBuf::from([0xff])),
            public_key: None,
        }),
        format!(
            "a16b{}a369{}f665{}41ff6a{}f6",
            text("Attestation"),
            text("user_data"),
            text("nonce"),
            text("public_key")
        )
    );
    let decoded = |hexed: String| -> Response {
        ciborium::from_reader(&hex::decode(hexed).unwrap()[..]).unwrap()
    };
    assert_eq!(
        decoded(format!("a165{}6d{}", text("Error"), text("ReadOnlyIndex"))),
        Response::Error(ErrorCode::ReadOnlyIndex)
    );
    assert_eq!(
        decoded(format!(
            "a169{}a166{}420102",
            text("GetRandom"),
            text("random")
        )),
        Response::GetRandom {
            random: ByteBuf::from([1, 2])
        }
    );
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
    assert!(Cli::try_parse_from(["enclave-app", "nsm", "describe"]).is_ok());
}
