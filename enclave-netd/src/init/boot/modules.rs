//! Kernel modules that the image brings.

use super::lack::Lack;
use crate::limits::{MAX_MODULE_ORDER, MAX_MODULES};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const FOLLOWS: &str = "what needs it fails; build the image with the kernel's own modules";

/// Loads what the file `order` in a folder names, in that order, and returns the names of what the
/// kernel has then. An image whose kernel has everything built in has no such folder.
pub(super) fn load_all(folder: &Path, lacks: &mut Vec<Lack>) -> Vec<String> {
    let names = match read_order(&folder.join("order")) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            let order = folder.join("order").display().to_string();
            lacks.push(Lack::new(order, error, "no module is loaded"));
            return Vec::new();
        }
    };
    let mut loaded = Vec::new();
    for name in names {
        match load(folder, &name) {
            Ok(()) => loaded.push(name),
            Err(error) => lacks.push(Lack::new(format!("module {name}"), error, FOLLOWS)),
        }
    }
    loaded
}

fn read_order(path: &Path) -> io::Result<Vec<String>> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_MODULE_ORDER + 1)
        .read_to_string(&mut text)?;
    let names = parse_order(&text);
    if text.len() as u64 > MAX_MODULE_ORDER || names.len() > MAX_MODULES {
        return Err(io::Error::other(format!(
            "more than {MAX_MODULES} modules or {MAX_MODULE_ORDER} bytes"
        )));
    }
    Ok(names)
}

fn parse_order(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn load(folder: &Path, name: &str) -> Result<(), String> {
    if name.contains('/') || name == ".." {
        return Err("not the name of a file in the folder of modules".into());
    }
    let file = File::open(folder.join(name)).map_err(|error| error.to_string())?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(explain(errno)),
    }
}

/// What the kernel means.
fn explain(errno: Errno) -> String {
    let meaning = match errno {
        Errno::ENOENT => "a symbol is missing: what it needs must stand before it in the order",
        Errno::ENOEXEC => "made for another kernel, or still compressed",
        Errno::ENOKEY | Errno::EKEYREJECTED => "this kernel wants a signature it trusts",
        Errno::EPERM => "this kernel does not load modules any more, or it is locked down",
        Errno::ENOSYS => "this kernel is built without modules",
        Errno::ENODEV | Errno::EOPNOTSUPP => "the device it is for is not there",
        Errno::ENOMEM => "not enough memory",
        _ => return errno.desc().to_owned(),
    };
    format!("{} ({meaning})", errno.desc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_order_has_comments_and_blank_lines() {
        let names = parse_order("# network\nvsock.ko\n\n  tun.ko \n#nsm.ko\n");
        assert_eq!(names, ["vsock.ko", "tun.ko"]);
    }

    #[test]
    fn no_folder_is_nothing_to_complain_of() {
        let mut lacks = Vec::new();
        assert!(load_all(Path::new("/nowhere"), &mut lacks).is_empty());
        assert_eq!(lacks, []);
    }

    #[test]
    fn what_cannot_be_loaded_is_told_in_order() {
        let folder = tempfile::tempdir().expect("tempdir");
        fs::write(folder.path().join("order"), "absent.ko\n../evil.ko\n").expect("write");
        let mut lacks = Vec::new();
        assert!(load_all(folder.path(), &mut lacks).is_empty());
        let absent = "No such file or directory (os error 2)";
        let evil = "not the name of a file in the folder of modules";
        let expected = [("absent.ko", absent), ("../evil.ko", evil)]
            .map(|(name, why)| Lack::new(format!("module {name}"), why, FOLLOWS));
        assert_eq!(lacks, expected);
    }

    #[test]
    fn an_endless_order_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        fs::write(
            folder.path().join("order"),
            "x.ko\n".repeat(MAX_MODULES + 1),
        )
        .expect("write");
        let mut lacks = Vec::new();
        load_all(folder.path(), &mut lacks);
        assert_eq!(lacks.len(), 1);
    }
}
