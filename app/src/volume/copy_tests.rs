#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Folders {
    dir: tempfile::TempDir,
}

impl Folders {
    fn new() -> Folders {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("from")).unwrap();
        fs::create_dir(dir.path().join("to")).unwrap();
        Folders { dir }
    }

    fn from(&self, name: &str) -> PathBuf {
        self.dir.path().join("from").join(name)
    }

    fn to(&self, name: &str) -> PathBuf {
        self.dir.path().join("to").join(name)
    }

    fn copy(&self, most: u64) -> Result<Tally, Broken> {
        let open = |path: PathBuf| OwnedFd::from(File::open(path).unwrap());
        Copier::new(most, Progress::default()).run(&open(self.from("")), None, &open(self.to("")))
    }
}

#[test]
fn a_tree_is_copied_and_what_was_there_is_replaced() {
    let folders = Folders::new();
    fs::create_dir_all(folders.from("a/b")).unwrap();
    fs::write(folders.from("a/b/big"), vec![7; limits::PIECE * 2 + 1]).unwrap();
    fs::write(folders.from("run"), "program").unwrap();
    fs::set_permissions(folders.from("run"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::create_dir(folders.to("a")).unwrap();
    fs::write(folders.to("run"), "an older and longer one").unwrap();
    let tally = folders.copy(u64::MAX).unwrap();
    assert_eq!((tally.files, tally.folders, tally.left_out), (2, 2, 0));
    assert_eq!(tally.bytes, limits::PIECE as u64 * 2 + 1 + 7);
    assert_eq!(
        fs::read(folders.to("a/b/big")).unwrap(),
        vec![7; limits::PIECE * 2 + 1]
    );
    assert_eq!(fs::read_to_string(folders.to("run")).unwrap(), "program");
}

#[test]
fn a_set_user_id_bit_stays_behind() {
    let folders = Folders::new();
    fs::write(folders.from("run"), "program").unwrap();
    fs::set_permissions(folders.from("run"), PermissionsExt::from_mode(0o6755)).unwrap();
    folders.copy(u64::MAX).unwrap();
    let mode = fs::metadata(folders.to("run"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7000, 0, "{mode:o}");
    assert_eq!(mode & 0o700, 0o700, "{mode:o}");
}

#[test]
fn links_and_pipes_are_left_out_and_told() {
    let folders = Folders::new();
    symlink("/etc/passwd", folders.from("link")).unwrap();
    nix::unistd::mkfifo(&folders.from("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let tally = folders.copy(u64::MAX).unwrap();
    assert_eq!((tally.files, tally.left_out), (0, 2));
    let mut names = tally.left_out_names;
    names.sort();
    assert_eq!(names, ["link: a symbolic link", "pipe: no plain file"]);
    assert_eq!(fs::read_dir(folders.to("")).unwrap().count(), 0);
}

/// As a server would do that answers with a link where it told of a file or a folder.
#[test]
fn a_link_in_the_place_of_a_target_is_not_followed() {
    for (is_folder, target) in [(false, "victim"), (true, "")] {
        let folders = Folders::new();
        fs::write(folders.dir.path().join("victim"), "untouched").unwrap();
        if is_folder {
            fs::create_dir(folders.from("name")).unwrap();
            fs::write(folders.from("name/victim"), "overwritten").unwrap();
        } else {
            fs::write(folders.from("name"), "overwritten").unwrap();
        }
        symlink(folders.dir.path().join(target), folders.to("name")).unwrap();
        let broken = folders.copy(u64::MAX).unwrap_err();
        assert!(matches!(broken.why, Why::Write(_)), "{broken}");
        let victim = fs::read_to_string(folders.dir.path().join("victim")).unwrap();
        assert_eq!(victim, "untouched");
    }
}

#[test]
fn a_limit_ends_it_and_no_half_file_stays() {
    let folders = Folders::new();
    fs::write(folders.from("big"), vec![1; 3 * limits::PIECE]).unwrap();
    let broken = folders.copy(2 * limits::PIECE as u64).unwrap_err();
    assert_eq!(
        broken.to_string(),
        "./big: more than 2 MiB in all: raise --limit if the enclave has the memory"
    );
    assert!(!folders.to("big").exists());
}

#[test]
fn what_small_files_take_of_memory_counts_too() {
    let folders = Folders::new();
    for name in 0..100 {
        fs::write(folders.from(&name.to_string()), "x").unwrap();
    }
    let broken = folders.copy(50 * (limits::PAGE + limits::ENTRY));
    assert!(matches!(
        broken,
        Err(Broken {
            why: Why::Memory(_),
            ..
        })
    ));
    assert_eq!(fs::read_dir(folders.to("")).unwrap().count(), 50);
    assert!(folders.copy(100 * (limits::PAGE + limits::ENTRY)).is_ok());
}

#[test]
fn a_pipe_under_a_targets_name_holds_nothing_up() {
    let folders = Folders::new();
    fs::write(folders.from("name"), "bytes").unwrap();
    let pipe = folders.to("name");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for _reader in [
        None,
        Some(File::options().read(true).write(true).open(&pipe)),
    ] {
        let broken = folders.copy(u64::MAX).unwrap_err();
        assert!(matches!(broken.why, Why::Target), "{broken}");
    }
    assert!(pipe.exists());
}

#[test]
fn names_of_the_servers_making_are_told_in_one_line() {
    let folders = Folders::new();
    fs::write(folders.from("a\n\u{1b}[2J"), "x").unwrap();
    let broken = folders.copy(0).unwrap_err().to_string();
    assert!(broken.starts_with(r"./a\n\u{1b}[2J: more than"), "{broken}");
}

#[test]
fn depth_is_bounded() {
    let folders = Folders::new();
    let path: PathBuf = (0..=limits::DEPTH).map(|_| "d").collect();
    fs::create_dir_all(folders.dir.path().join("from").join(path)).unwrap();
    let broken = folders.copy(u64::MAX).unwrap_err();
    assert!(matches!(broken.why, Why::Depth), "{broken}");
}
