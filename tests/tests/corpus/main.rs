//! Replays the kept inputs of the fuzz targets, on a stable compiler and without any privilege.

mod operations;
mod seeds;

use netd_tests::fuzz::TARGETS;
use std::fs;
use std::path::{Path, PathBuf};

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Hands every kept input to its target, and truncated and damaged forms of it.
fn replay(name: &str) {
    let named = TARGETS.iter().find(|(target, _)| *target == name);
    let (_, target) = named.expect("a target");
    let mut inputs = 0;
    for entry in fs::read_dir(corpora().join(name)).expect("each target has a corpus") {
        let path = entry.expect("readable").path();
        let input = fs::read(&path).expect("readable");
        // Shows which one when it panics.
        eprintln!("{}", path.display());
        target(&input);
        inputs += 1;
        for cut in [1, 2, 3, 5, 8, 13, 21, 34] {
            target(&input[..input.len().saturating_sub(cut)]);
            let mut damaged = input.clone();
            if let Some(byte) = damaged.get_mut(cut) {
                *byte ^= 0x55;
            }
            target(&damaged);
        }
    }
    assert!(inputs >= 3, "the corpus of {name} has {inputs} inputs");
}

#[test]
fn configurations() {
    replay("config");
}

#[test]
fn dns_messages() {
    replay("dns");
}

#[test]
fn engine_operations() {
    replay("engine");
}

#[test]
fn frames() {
    replay("frame");
}

#[test]
fn guard_operations() {
    replay("guard");
}

#[test]
fn handshakes() {
    replay("handshake");
}

#[test]
fn packets() {
    replay("packet");
}

#[test]
fn policies() {
    replay("policy");
}

#[test]
fn every_corpus_has_a_target_and_every_target_a_test() {
    let mut kept: Vec<String> = fs::read_dir(corpora())
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name())
        .map(|name| name.into_string().expect("a name of ours"))
        .collect();
    kept.sort();
    assert_eq!(kept, TARGETS.map(|(name, _)| name));
    let tests = include_str!("main.rs");
    for name in kept {
        assert!(tests.contains(&format!("replay(\"{name}\")")), "{name}");
    }
}

/// Writes the seeds: `cargo test -p netd-tests --test corpus -- --ignored`.
#[test]
#[ignore = "writes files of the repository"]
fn write_seeds() {
    for (target, name, bytes) in seeds::all() {
        let dir = corpora().join(target);
        fs::create_dir_all(&dir).expect("can be made");
        fs::write(dir.join(name), bytes).expect("can be written");
    }
}
