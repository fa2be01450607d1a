//! Configuration: files, command lines, and the words in them.

use host_netd::publish::Publish;
use netd_proto::address::LinkAddress;
use netd_proto::policy::Rule;
use std::fmt::Display;
use std::str::FromStr;

/// The first byte says what the rest is: a file or a command line of either daemon, a resolv.conf,
/// or words. What is valid means the same when it is read again, and printed words can be read.
/// What is not is answered with one line that says where.
pub fn config(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else {
        return;
    };
    if kind % 6 == 5 {
        is_stable(
            || host_netd::dns::fuzzing::read_resolv_conf(rest),
            &["name"],
        );
        return;
    }
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    match kind % 6 {
        0 => is_stable(
            || enclave_netd::fuzzing::read_config(text),
            &["line ", "parent", "network.", "dns.", "publish", "rules"],
        ),
        1 => host(["host-netd", "--config", "netd.toml"], text),
        // One word a line.
        2 => host(["host-netd"].into_iter().chain(text.split('\n')), ""),
        3 => {
            for word in text.split('\n') {
                is_word::<Publish>(word);
                is_word::<LinkAddress>(word);
            }
        }
        _ => {
            for line in text.split('\n') {
                is_word::<Rule>(line);
            }
        }
    }
}

fn host<'a>(words: impl IntoIterator<Item = &'a str> + Clone, text: &str) {
    let read = || {
        host_netd::config::Config::parse(words.clone(), text)
            .map(|config| format!("{config:?}"))
            .map_err(|error| format!("{error:#}"))
    };
    is_stable(
        read,
        &["line ", "key '", "--", "host-netd ", "value ", "argument"],
    );
}

/// Reads twice, which makes the same of it; an error is one line that names one of `places`.
fn is_stable(read: impl Fn() -> Result<String, String>, places: &[&str]) {
    let outcome = read();
    assert_eq!(outcome, read());
    if let Err(error) = outcome {
        let line = error.trim();
        assert!(!line.is_empty(), "an error without words");
        assert!(!line.contains('\n'), "more than a line: {line}");
        assert!(
            places.iter().any(|place| line.contains(place)),
            "says nothing about where: {line}"
        );
    }
}

/// A word that can be read is printed such that it means the same.
fn is_word<T>(word: &str)
where
    T: FromStr<Err: Display> + Display + PartialEq + std::fmt::Debug,
{
    match word.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            let again = printed.parse::<T>();
            assert_eq!(
                again.ok(),
                Some(value),
                "'{word}' is printed as '{printed}'"
            );
        }
        Err(error) => assert!(error.to_string().contains("write"), "{error}"),
    }
}
