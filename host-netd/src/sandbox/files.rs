//! Landlock: which files can be opened, and a few things besides.

use super::Files;
use anyhow::bail;
use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use std::path::{Path, PathBuf};

/// Where the programs that manage resolv.conf keep theirs, for a link that is pointed there later.
const RESOLVERS: [&str; 4] = [
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/connman",
];

/// Gives up what is not in `files`. Tells what the kernel offered.
///
/// Rights are those of the versions of landlock that this was tested with: a right that a newer
/// version of the crate knows must not be taken away untested.
pub(super) fn restrict(files: &Files) -> anyhow::Result<String> {
    let socket_folders = files.sockets.iter().map(|socket| folder(socket));
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        // Published ports are bound already; connecting stays free.
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rules(path_beneath_rules(readable(files), AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(socket_folders, AccessFs::RemoveFile))?
        .restrict_self()?;
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
        LandlockStatus::NotEnabled => bail!("not enabled on this kernel (boot option lsm=)"),
        LandlockStatus::NotImplemented => bail!("this kernel has none (Linux 5.13 has)"),
    };
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => format!("ABI {abi}"),
        RulesetStatus::PartiallyEnforced => {
            format!("ABI {abi}, in part: all of it needs ABI 6 (Linux 6.12)")
        }
        RulesetStatus::NotEnforced => bail!("nothing of it is enforced, with ABI {abi}"),
    })
}

/// What can still be read: folders, because a file that is replaced is another file to landlock; and
/// this program, from which a panic's backtrace takes its names.
pub(super) fn readable(files: &Files) -> Vec<PathBuf> {
    let target = files.resolv_conf.canonicalize().ok();
    let mut paths: Vec<PathBuf> = [Some(&files.resolv_conf), target.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| folder(path).to_owned())
        .chain(RESOLVERS.map(PathBuf::from))
        .chain(std::env::current_exe().ok())
        .filter(|path| path.exists())
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_of_resolv_conf_and_of_what_it_points_to_can_be_read() {
        let dir = tempfile::tempdir().expect("made");
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        for folder in [&etc, &run] {
            std::fs::create_dir(folder).expect("made");
        }
        std::fs::write(run.join("stub.conf"), "").expect("written");
        let link = etc.join("resolv.conf");
        std::os::unix::fs::symlink("../run/stub.conf", &link).expect("made");

        let paths = readable(&Files {
            resolv_conf: link,
            sockets: vec![],
        });

        assert!(paths.contains(&etc), "{paths:?}");
        assert!(
            paths.contains(&run.canonicalize().expect("there")),
            "{paths:?}"
        );
        assert!(!paths.contains(&dir.path().to_owned()), "{paths:?}");
        assert_eq!(folder(Path::new("resolv.conf")), Path::new("."));
    }
}
