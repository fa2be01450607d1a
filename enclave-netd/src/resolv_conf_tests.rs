use super::*;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::os::unix::fs::{chown, symlink};
use tempfile::TempDir;

const SERVERS: [&str; 2] = ["100.64.0.1", "fd00:6e65:7464::1"];
const ORIGINAL: &str = "# mine\nnameserver 192.0.2.53\nnameserver 198.51.100.53\noptions ndots:2\n";

struct Place {
    folder: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("resolv.conf");
        Place { folder, path }
    }

    fn with_file() -> Place {
        let place = Place::new();
        fs::write(&place.path, ORIGINAL).expect("written");
        fs::set_permissions(&place.path, Permissions::from_mode(0o640)).expect("mode");
        chown(&place.path, Some(12), Some(34)).expect("owner");
        place
    }

    fn point(&self) -> Result<ResolvConf, ResolvConfError> {
        let servers = SERVERS.map(|s| s.parse().expect("address"));
        ResolvConf::point_at(&self.path, &servers, &["example.com".into()])
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).expect("readable")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("folder");
        let name = |e: io::Result<fs::DirEntry>| e.expect("entry").file_name();
        let mut names: Vec<_> = entries
            .map(|e| name(e).into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }
}

/// What `kill -9` does: descriptors are closed and nothing else happens.
fn kill(mut custody: ResolvConf) {
    custody.restored = true;
}

fn assert_ours(text: &str) {
    assert!(text.starts_with(MARKER), "{text}");
    let rest = "nameserver 100.64.0.1\nnameserver fd00:6e65:7464::1\nsearch example.com\n";
    assert!(text.ends_with(rest), "{text}");
}

fn assert_original(place: &Place) {
    assert_eq!(place.text(), ORIGINAL);
    assert_eq!(place.names(), ["resolv.conf"]);
    let found = fs::symlink_metadata(&place.path).expect("there");
    assert!(found.is_file());
    assert_eq!(
        (found.mode() & 0o7777, found.uid(), found.gid()),
        (0o640, 12, 34)
    );
}

#[test]
fn a_plain_file_comes_back_with_mode_and_owner() {
    let place = Place::with_file();

    let custody = place.point().expect("pointed");
    assert_ours(&place.text());
    custody.restore().expect("restored");

    assert_original(&place);
}

#[test]
fn dropping_puts_back_as_well() {
    let place = Place::with_file();
    drop(place.point().expect("pointed"));
    assert_original(&place);
}

#[test]
fn a_symbolic_link_comes_back_and_its_target_is_never_touched() {
    let place = Place::new();
    let target = place.folder.path().join("stub");
    fs::write(&target, ORIGINAL).expect("written");
    symlink("stub", &place.path).expect("linked");

    let custody = place.point().expect("pointed");
    assert_ours(&place.text());
    assert_eq!(fs::read_to_string(&target).expect("readable"), ORIGINAL);
    custody.restore().expect("restored");

    assert_eq!(
        fs::read_link(&place.path).expect("a link"),
        Path::new("stub")
    );
    assert_eq!(place.names(), ["resolv.conf", "stub"]);
}

#[test]
fn a_dangling_link_comes_back() {
    let place = Place::new();
    symlink("/nowhere/stub", &place.path).expect("linked");

    let custody = place.point().expect("pointed");
    assert_ours(&place.text());
    custody.restore().expect("restored");

    assert_eq!(
        fs::read_link(&place.path).expect("a link"),
        Path::new("/nowhere/stub")
    );
    assert_eq!(place.names(), ["resolv.conf"]);
}

#[test]
fn what_was_missing_is_missing_again() {
    let place = Place::new();
    let custody = place.point().expect("pointed");
    assert_ours(&place.text());
    custody.restore().expect("restored");
    assert!(place.names().is_empty());
}

/// Runs `test` on a thread of its own with `place.path` a bind mount of another file.
fn on_bind_mount(test: impl FnOnce(&Place, &Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        let place = Place::new();
        let elsewhere = Place::with_file();
        fs::write(&place.path, "below").expect("written");
        mount(
            Some(&elsewhere.path),
            &place.path,
            none,
            MsFlags::MS_BIND,
            none,
        )
        .expect("bound");

        test(&place, &elsewhere.path);

        nix::mount::umount(&place.path).expect("unmounted");
        assert_eq!(place.text(), "below");
        assert_eq!(place.names(), ["resolv.conf"]);
        assert_original(&elsewhere);
    });
    thread.join().expect("no panic");
}

#[test]
fn a_bind_mount_is_rewritten_in_place_and_back() {
    on_bind_mount(|place, mounted| {
        let custody = place.point().expect("pointed");
        assert_ours(&place.text());
        assert_ours(&fs::read_to_string(mounted).expect("readable"));
        custody.restore().expect("restored");
    });
}

#[test]
fn a_bind_mount_is_recovered_after_a_kill() {
    on_bind_mount(|place, _| {
        kill(place.point().expect("pointed"));
        assert_ours(&place.text());

        place
            .point()
            .expect("pointed again")
            .restore()
            .expect("restored");
    });
}

#[test]
fn a_copy_back_that_was_cut_short_is_finished() {
    on_bind_mount(|place, mounted| {
        kill(place.point().expect("pointed"));
        fs::write(mounted, &MARKER[..10]).expect("written");

        place
            .point()
            .expect("pointed again")
            .restore()
            .expect("restored");
    });
}

#[test]
fn a_plain_file_is_recovered_after_a_kill() {
    let place = Place::with_file();
    kill(place.point().expect("pointed"));
    assert_ours(&place.text());

    let custody = place.point().expect("pointed again");
    assert_ours(&place.text());
    custody.restore().expect("restored");

    assert_original(&place);
}

#[test]
fn what_was_missing_is_still_missing_after_a_kill_and_a_run() {
    let place = Place::new();
    kill(place.point().expect("pointed"));
    place
        .point()
        .expect("pointed again")
        .restore()
        .expect("restored");
    assert!(place.names().is_empty());
}

#[test]
fn a_kill_between_link_and_rename_loses_nothing() {
    let place = Place::with_file();
    fs::hard_link(&place.path, sibling(&place.path, BACKUP)).expect("linked");
    place.point().expect("pointed").restore().expect("restored");
    assert_original(&place);
}

#[test]
fn a_kill_between_the_two_renames_loses_nothing() {
    let place = Place::with_file();
    fs::rename(&place.path, sibling(&place.path, BACKUP)).expect("renamed");
    place.point().expect("pointed").restore().expect("restored");
    assert_original(&place);
}

#[test]
fn a_newer_file_wins_over_what_a_dead_run_kept() {
    let place = Place::with_file();
    kill(place.point().expect("pointed"));
    fs::remove_file(&place.path).expect("removed");
    fs::write(&place.path, "nameserver 203.0.113.53\n").expect("written");

    place
        .point()
        .expect("pointed again")
        .restore()
        .expect("restored");

    assert_eq!(place.text(), "nameserver 203.0.113.53\n");
    assert_eq!(
        place.names(),
        ["resolv.conf", "resolv.conf.before-enclave-netd.old"]
    );
    let old = fs::read_to_string(place.folder.path().join(&place.names()[1]));
    assert_eq!(old.expect("readable"), ORIGINAL);
}

#[test]
fn what_someone_else_wrote_meanwhile_is_left_alone() {
    let place = Place::with_file();
    let custody = place.point().expect("pointed");
    fs::write(&place.path, "nameserver 203.0.113.53\n").expect("written");

    custody.restore().expect("restored");

    assert_eq!(place.text(), "nameserver 203.0.113.53\n");
}

#[test]
fn a_file_of_a_living_run_is_refused_and_stays() {
    let place = Place::with_file();
    let custody = place.point().expect("pointed");

    let error = place.point().expect_err("taken");

    assert!(matches!(error, ResolvConfError::Taken(_)), "{error}");
    assert_ours(&place.text());
    custody.restore().expect("restored");
    assert_original(&place);
}

#[test]
fn a_folder_in_its_place_is_an_error() {
    let place = Place::new();
    fs::create_dir(&place.path).expect("made");
    let error = place.point().expect_err("a folder");
    assert!(matches!(error, ResolvConfError::Kind(_)), "{error}");
    assert_eq!(place.names(), ["resolv.conf"]);
}

#[test]
fn a_read_only_file_system_says_what_to_set() {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        let place = Place::with_file();
        let folder = place.folder.path();
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), none).expect("mounted");
        fs::write(&place.path, ORIGINAL).expect("written");
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, folder, none, flags, none).expect("read-only");

        let error = place.point().expect_err("read-only");

        assert!(
            error.to_string().contains("set dns.resolv_conf = false"),
            "{error}"
        );
        assert_eq!(place.text(), ORIGINAL);
        nix::mount::umount(folder).expect("unmounted");
    });
    thread.join().expect("no panic");
}
