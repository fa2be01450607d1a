//! Standard output, for a process that was started without.

use super::lack::Lack;
use nix::sys::stat::fstat;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::fs::File;
use std::io::{self, stderr, stdin, stdout};
use std::os::fd::AsFd;

/// Lets standard streams that lead nowhere lead to the console.
///
/// A kernel that finds no `/dev/console` in its image starts process 1 with closed streams, and
/// Rust's runtime opens `/dev/null` in their places.
pub(super) fn open(lacks: &mut Vec<Lack>) {
    let nowhere = [
        leads_nowhere(stdin()),
        leads_nowhere(stdout()),
        leads_nowhere(stderr()),
    ];
    if let Err(error) = connect(nowhere) {
        lacks.push(Lack::new(
            "/dev/console",
            error,
            "what programs write is seen on the parent only",
        ));
    }
}

fn connect([input, output, errors]: [bool; 3]) -> io::Result<()> {
    if !output && !errors {
        return Ok(());
    }
    // Without a controlling terminal: nobody's Ctrl-C ends the enclave.
    let console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    if input {
        dup2_stdin(&console)?;
    }
    if output {
        dup2_stdout(&console)?;
    }
    if errors {
        dup2_stderr(&console)?;
    }
    Ok(())
}

/// Whether a stream is closed, or `/dev/null`.
fn leads_nowhere(stream: impl AsFd) -> bool {
    const NULL: u64 = nix::libc::makedev(1, 3);
    match fstat(stream) {
        Ok(stat) => stat.st_rdev == NULL,
        Err(_) => true,
    }
}
