//! `volume mount` and `volume copy`.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::FileType;
use serde_json::json;

use super::attach::{Terms, Version, attach};
use super::copy::Copier;
use super::export::Export;
use super::place::Place;
use super::watch::watched;
use crate::bytes::answer;
use crate::error::{Failure, What};
use crate::limits::volume as limits;

/// A folder that lasts: an NFSv4 export of the parent.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Mounts an export on an empty folder, and runs a command if one is given
    Mount(MountArgs),
    /// Copies a folder or file between an export and the enclave
    Copy(CopyArgs),
}

#[derive(Debug, clap::Args)]
struct ServerArgs {
    /// The server's port
    #[arg(long, default_value_t = 2049, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The version of NFS to speak; no other one is tried
    #[arg(long = "nfs", value_enum, default_value_t = Version::One)]
    version: Version,
}

/// Arguments of `volume mount`.
#[derive(Debug, clap::Args)]
pub struct MountArgs {
    /// HOST:/PATH; 100.64.0.3 is the parent's loopback
    export: Export,
    /// An empty folder
    folder: PathBuf,
    #[command(flatten)]
    server: ServerArgs,
    /// Nothing on it can be changed
    #[arg(long)]
    read_only: bool,
    /// Programs get an error when the server cannot be reached for half a minute; otherwise they wait
    #[arg(long)]
    soft: bool,
    /// Let programs on it be run: they are the parent's
    #[arg(long)]
    exec: bool,
    /// Follow symbolic links on it: they lead where the parent wants, in the enclave too
    #[arg(long)]
    symlinks: bool,
    /// What to run once it is mounted, in the place of this program
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Arguments of `volume copy`.
#[derive(Debug, clap::Args)]
pub struct CopyArgs {
    /// A folder, whose content is copied, or a file: HOST:/PATH on an export, /PATH in the enclave
    from: String,
    /// The folder that it goes to: on an export it must be there, in the enclave it is made
    to: String,
    #[command(flatten)]
    server: ServerArgs,
    /// The most MiB that are copied into the enclave, whose files are in its memory
    #[arg(long, value_name = "MIB", default_value_t = limits::PULLED_MIB)]
    limit: u64,
}

/// Runs one of them.
///
/// # Errors
/// Why it is not mounted, or not wholly copied.
pub async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Mount(args) => mount(args).await,
        Command::Copy(args) => copy(args).await,
    }
}

async fn mount(args: MountArgs) -> Result<(), Failure> {
    let place = Place::find(&args.folder)?;
    let terms = Terms {
        port: args.server.port,
        version: args.server.version,
        read_only: args.read_only,
        soft: args.soft,
        executable: args.exec,
        symlinks: args.symlinks,
    };
    place.take(&attach(&args.export, terms).await?.root)?;
    tracing::info!(export = %args.export, folder = %args.folder.display(), "mounted");
    let Some((program, arguments)) = args.command.split_first() else {
        return Ok(());
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    place.leave();
    let program = Path::new(program).display();
    Err(Failure::usage(format!("cannot run {program}: {error}")))
}

/// A folder that is open, and the one name in it that is meant, if not all of it is.
type Source = (OwnedFd, Option<CString>);

async fn copy(args: CopyArgs) -> Result<(), Failure> {
    let terms = |read_only| Terms {
        port: args.server.port,
        version: args.server.version,
        read_only,
        soft: true,
        executable: false,
        symlinks: true, // followed by nothing here
    };
    let (source, to, most) = match (remote(&args.from)?, remote(&args.to)?) {
        (Some(export), None) => {
            let source = pulled(&export, terms(true)).await?;
            (source, made(&args.to)?, args.limit.saturating_mul(1 << 20))
        }
        (None, Some(export)) => {
            let source = local(Path::new(&args.from))?;
            (source, attach(&export, terms(false)).await?.root, u64::MAX)
        }
        _ => {
            return Err(Failure::usage(
                "one of FROM and TO is on an export (HOST:/PATH), the other in the enclave (/PATH)",
            ));
        }
    };
    let begin = Instant::now();
    let done = watched(
        limits::STANDSTILL,
        "the copy stands still: not all is copied",
        move |progress| Copier::new(most, progress).run(&source.0, source.1.as_deref(), &to),
    );
    let tally = done
        .await?
        .map_err(|broken| Failure::new(What::Other, format!("not all is copied: {broken}")))?;
    let seconds = begin.elapsed().as_secs_f64();
    answer(&json!({ "copied": tally, "seconds": seconds }))
}

/// An export, if it is not a path in the enclave.
fn remote(text: &str) -> Result<Option<Export>, Failure> {
    if text.starts_with(['/', '.']) {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|why| Failure::usage(format!("{why}; a path in the enclave begins with / or .")))
}

/// The source on an export: a folder is mounted itself, a file's folder in its place.
async fn pulled(export: &Export, terms: Terms) -> Result<Source, Failure> {
    let mounted = attach(export, terms).await?;
    if mounted.kind == FileType::Directory {
        return Ok((mounted.root, None));
    }
    let (above, name) = export
        .split()
        .ok_or_else(|| Failure::new(What::Request, format!("{export} is no folder")))?;
    Ok((
        attach(&above, terms).await?.root,
        Some(named(name.as_bytes())?),
    ))
}

/// The source in the enclave.
fn local(path: &Path) -> Result<Source, Failure> {
    let wrong = |error: io::Error| Failure::usage(format!("{}: {error}", path.display()));
    let path = fs::canonicalize(path).map_err(wrong)?;
    match (path.is_dir(), path.parent(), path.file_name()) {
        (false, Some(above), Some(name)) => {
            let above = File::open(above).map_err(wrong)?;
            Ok((above.into(), Some(named(name.as_bytes())?)))
        }
        _ => Ok((File::open(&path).map_err(wrong)?.into(), None)),
    }
}

/// The target in the enclave.
fn made(path: &str) -> Result<OwnedFd, Failure> {
    fs::create_dir_all(path)
        .and_then(|()| File::open(path))
        .map(OwnedFd::from)
        .map_err(|error| Failure::usage(format!("{path}: {error}")))
}

fn named(name: &[u8]) -> Result<CString, Failure> {
    CString::new(name).map_err(|error| Failure::usage(format!("a file's name: {error}")))
}
