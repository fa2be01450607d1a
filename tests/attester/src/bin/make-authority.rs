//! Makes an authority for secure modules in a folder: `make-authority DIR`. Its root certificate is
//! `bundle-0.der` there.

use std::fs;
use std::path::PathBuf;

use test_attester::Authority;

fn main() -> std::io::Result<()> {
    let dir: PathBuf = std::env::args_os().nth(1).unwrap_or_default().into();
    fs::create_dir_all(&dir)?;
    Authority::default().save(&dir);
    Ok(())
}
