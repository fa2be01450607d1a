//! Replays the kept inputs of the fuzz targets, on a stable compiler and without any privilege.

mod operations;
mod seeds;

use netd_tests::fuzz::TARGETS;
use std::fs;
use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

#[test]
fn every_kept_input_is_handled() {
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus(name)).expect("each target has a corpus") {
            let path = entry.expect("readable").path();
            let input = fs::read(&path).expect("readable");
            // Shows which one when it panics.
            eprintln!("{}", path.display());
            target(&input);
            inputs += 1;
            // Truncated and damaged forms of it are inputs as well.
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
}

/// Writes the seeds: `cargo test -p netd-tests --test corpus -- --ignored`.
#[test]
#[ignore = "writes files of the repository"]
fn write_seeds() {
    for (target, name, bytes) in seeds::all() {
        let dir = corpus(target);
        fs::create_dir_all(&dir).expect("can be made");
        fs::write(dir.join(name), bytes).expect("can be written");
    }
}
