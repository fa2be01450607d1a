"""Root file systems from folders and tarballs, as cpio sees them in the image."""

import io
import os
import stat
import subprocess
import tarfile
import unittest
from pathlib import Path

from support import Bench, digest, elf, listing

PASSWD = b"app:x:7:7::/srv:/bin/sh\n"


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


BASE = [
    entry("./", kind=tarfile.DIRTYPE, mode=0o755),
    entry("./bin", kind=tarfile.DIRTYPE, mode=0o755),
    entry("./bin/hello", elf(), mode=0o755),
    entry("./etc/passwd", PASSWD),
    entry("./srv", kind=tarfile.DIRTYPE, mode=0o2770, uid=7, gid=8),
]


class Tarballs(Bench):
    def tarball(self, *entries: tuple[tarfile.TarInfo, bytes], suffix: str = "tar", base: bool = True) -> Path:
        path = self.place / f"rootfs.{suffix}"
        mode = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz", "tar.bz2": "w:bz2"}[suffix]
        with tarfile.open(path, mode) as archive:
            for info, data in [*(BASE if base else []), *entries]:
                archive.addfile(info, io.BytesIO(data))
        return path


class RootFileSystem(Tarballs):
    def unpacked(self, archive: bytes) -> Path:
        """Unpacked by cpio, as the user who runs this; without devices."""
        place = self.place / "unpacked"
        place.mkdir()
        command = ["cpio", "-idm", "--quiet", "--no-absolute-filenames", "--no-preserve-owner", "-f", "*device*"]
        subprocess.run(command, input=archive, check=True, cwd=place)
        return place

    def test_content_comes_back(self) -> None:
        (self.root / "srv" / "big").write_bytes(os.urandom(3_000_001))
        (self.root / "srv" / "empty").write_bytes(b"")
        (self.root / "srv" / "a b\nc").write_bytes(b"odd name")
        (self.root / "srv" / "link").symlink_to("../etc/passwd")
        archive = self.application()
        place = self.unpacked(archive)
        compare = ["diff", "--recursive", "--no-dereference", self.root / "srv", place / "rootfs" / "srv"]
        subprocess.run(compare, check=True)
        self.assertEqual((place / "enclave.toml").read_bytes(), (self.place / "enclave.toml").read_bytes())
        self.assertEqual(os.readlink(place / "rootfs" / "srv" / "link"), "../etc/passwd")
        self.assertEqual((place / "rootfs" / "srv" / "big").stat().st_mtime, 1)

    def test_hard_links_stay_links(self) -> None:
        (self.root / "srv" / "z").write_bytes(b"linked")
        os.link(self.root / "srv" / "z", self.root / "bin" / "a")
        os.link(self.root / "srv" / "z", self.root / "srv" / "m")
        (self.root / "srv" / "y").write_bytes(b"others")
        os.link(self.root / "srv" / "y", self.root / "bin" / "y")
        archive = self.application()
        place = self.unpacked(archive) / "rootfs"
        self.assertEqual((place / "srv" / "z").read_bytes(), b"linked")
        self.assertEqual((place / "bin" / "a").stat().st_ino, (place / "srv" / "z").stat().st_ino)
        self.assertEqual((place / "srv" / "m").stat().st_nlink, 3)
        self.assertEqual((place / "bin" / "y").read_bytes(), b"others")
        self.assertEqual((place / "srv" / "y").stat().st_nlink, 2)
        # Once in the archive, however many names.
        self.assertEqual(archive.count(b"linked"), 1)

    def test_a_folder_gives_root_and_plain_modes(self) -> None:
        (self.root / "srv" / "secret").write_text("")
        (self.root / "srv" / "secret").chmod(0o600)
        (self.root / "srv" / "run").write_text("")
        (self.root / "srv" / "run").chmod(0o4711)
        (self.root / "srv" / "sticky").mkdir()
        (self.root / "srv" / "sticky").chmod(0o1777)
        names = listing(self.application())
        self.assertEqual(names["rootfs/srv/secret"], "-rw-r--r-- 1 0 0 0")
        self.assertEqual(names["rootfs/srv/run"], "-rwsr-xr-x 1 0 0 0")
        self.assertEqual(names["rootfs/srv/sticky"].split()[0], "drwxrwxrwt")
        self.assertEqual(names["rootfs/srv"].split()[0], "drwxr-xr-x")

    def test_a_tarball_gives_its_owners_and_modes(self) -> None:
        rootfs = self.tarball(entry("./srv/secret", b"x", mode=0o600, uid=7, gid=8), entry("./srv/big", uid=4294967294))
        names = listing(self.application(rootfs=rootfs))
        self.assertEqual(names["rootfs/srv/secret"], "-rw------- 1 7 8 1")
        self.assertEqual(names["rootfs/srv/big"], "-rw-r--r-- 1 4294967294 0 0")
        self.assertEqual(names["rootfs/srv"].rsplit(" ", 1)[0], "drwxrws--- 1 7 8")

    def test_what_the_first_process_needs_is_added(self) -> None:
        names = listing(self.application())
        for folder, mode in [("dev", "rwxr-xr-x"), ("proc", "r-xr-xr-x"), ("sys", "r-xr-xr-x"), ("run", "rwxr-xr-x"), ("tmp", "rwxrwxrwt")]:
            self.assertEqual(names[f"rootfs/{folder}"].split()[0], f"d{mode}")
        self.assertEqual(list(names)[0], "enclave.toml")
        self.assertEqual(list(names), sorted(names))

    def test_devices_and_pipes(self) -> None:
        rootfs = self.tarball(
            entry("./dev/device-null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            entry("./dev/device-disk", kind=tarfile.BLKTYPE, devmajor=259, devminor=300, mode=0o660, gid=6),
            entry("./run/pipe", kind=tarfile.FIFOTYPE, mode=0o600),
        )
        names = listing(self.application(rootfs=rootfs))
        self.assertEqual(names["rootfs/dev/device-null"], "crw-rw-rw- 1 0 0 1,3")
        self.assertEqual(names["rootfs/dev/device-disk"], "brw-rw---- 1 0 6 259,300")
        self.assertEqual(names["rootfs/run/pipe"], "prw------- 1 0 0 0")

    def test_a_socket_is_left_out_and_said(self) -> None:
        import socket

        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(self.root / "srv" / "sock"))
        names = listing(self.application())
        self.assertNotIn("rootfs/srv/sock", names)
        self.assertIn("left out: the socket srv/sock", self.notes)

    def test_lost_capabilities_are_said(self) -> None:
        value = {"SCHILY.xattr.security.capability": "\x01"}
        rootfs = self.tarball(entry("./bin/ping", elf(), mode=0o755, pax_headers=value))
        self.application(rootfs=rootfs)
        self.assertIn("lost: the capabilities of bin/ping", self.notes)

    def test_sparse_files(self) -> None:
        with open(self.root / "srv" / "sparse", "wb") as file:
            file.seek(5_000_000)
            file.write(b"end")
        archive = self.application()
        from_folder = self.unpacked(archive) / "rootfs" / "srv" / "sparse"
        self.assertEqual(digest(from_folder), digest(self.root / "srv" / "sparse"))
        rootfs = self.place / "sparse.tar"
        subprocess.run(["tar", "-S", "--owner=0", "--group=0", "-C", self.root, "-cf", rootfs, "."], check=True)
        self.assertLess(rootfs.stat().st_size, 1_000_000)
        self.assertEqual(listing(self.application(rootfs=rootfs))["rootfs/srv/sparse"], "-rw-r--r-- 1 0 0 5000003")

    def test_later_entries_replace_earlier_ones(self) -> None:
        rootfs = self.tarball(
            entry("./srv/a", b"old"),
            entry("./srv/b", kind=tarfile.LNKTYPE, linkname="./srv/a"),
            entry("./srv/a", b"newer"),
        )
        place = self.unpacked(self.application(rootfs=rootfs)) / "rootfs" / "srv"
        self.assertEqual((place / "a").read_bytes(), b"newer")
        self.assertEqual((place / "b").read_bytes(), b"old")

    def test_names_that_are_no_utf8(self) -> None:
        with open(os.path.join(os.fsencode(self.root), b"srv", b"\xff\xfe"), "wb") as file:
            file.write(b"x")
        from_folder = self.application()
        self.assertIn(b"rootfs/srv/\xff\xfe\0", from_folder)
        rootfs = self.place / "odd.tar"
        subprocess.run(["tar", "-C", self.root, "-cf", rootfs, "."], check=True)
        self.assertIn(b"rootfs/srv/\xff\xfe\0", self.application(rootfs=rootfs))

    def test_tarballs_that_leave_the_root(self) -> None:
        cases: list[tuple[str, list[tuple[tarfile.TarInfo, bytes]]]] = [
            ("leaves its root, ../init", [entry("../init", b"x")]),
            ("leaves its root, srv/../../init", [entry("srv/../../init", b"x")]),
            ("absolute name, /init", [entry("/init", b"x")]),
            ("lies below out, which is a link", [entry("out", kind=tarfile.SYMTYPE, linkname="/"), entry("out/init", b"x")]),
            ("lies below out, which is a link", [entry("out/init", b"x"), entry("out", kind=tarfile.SYMTYPE, linkname="/")]),
            ("lies below srv/f, which is no folder", [entry("srv/f", b"x"), entry("srv/f/g", b"x")]),
            ("a hard link that leaves its root", [entry("srv/h", kind=tarfile.LNKTYPE, linkname="../init")]),
            ("a hard link with an absolute name", [entry("srv/h", kind=tarfile.LNKTYPE, linkname="/init")]),
            ("which is no file before it", [entry("srv/h", kind=tarfile.LNKTYPE, linkname="srv/none")]),
            ("which is no file before it", [entry("srv/h", kind=tarfile.LNKTYPE, linkname="srv")]),
            ("is longer than 4088 bytes", [entry("srv/" + "n" * 4085, b"x")]),
            ("is longer than 4095 bytes", [entry("srv/l", kind=tarfile.SYMTYPE, linkname="n" * 4096)]),
            ("root is no folder", [entry("./", kind=tarfile.SYMTYPE, linkname="/")]),
            ("no user and group", [entry("srv/o", uid=4294967295)]),
        ]
        for expected, entries in cases:
            with self.subTest(expected):
                self.refuses_build(expected, rootfs=self.tarball(*entries))

    def test_tarballs_that_are_none(self) -> None:
        whole = self.tarball(entry("srv/data", os.urandom(100_000)), suffix="tar.gz").read_bytes()
        layers = self.tarball(entry("manifest.json", b"[]"), base=False).read_bytes()
        plain = self.tarball(entry("srv/data", os.urandom(100_000))).read_bytes()
        rootfs = self.place / "rootfs"
        cases: list[tuple[str, bytes]] = [
            ("no whole tarball", b"nothing of the kind" * 100),
            ("is damaged", whole[: len(whole) // 2]),
            ("no whole tarball", plain[: len(plain) // 2]),
            ("use docker export", layers),
            ("decompress it first", b"\x28\xb5\x2f\xfd" + bytes(100)),
            ("is empty", bytes(10240)),
        ]
        for expected, content in cases:
            with self.subTest(expected):
                rootfs.write_bytes(content)
                self.refuses_build(expected, rootfs=rootfs)

    def test_files_beyond_the_format(self) -> None:
        huge = self.root / "srv" / "huge"
        with open(huge, "wb") as file:
            file.truncate(1 << 32)
        self.refuses_build("srv/huge has 4294967296 bytes, an initramfs holds files of at most 4294967295")
        rootfs = self.place / "huge.tar"
        subprocess.run(["tar", "-S", "-C", self.root, "-cf", rootfs, "."], check=True)
        self.refuses_build("srv/huge has 4294967296 bytes", rootfs=rootfs)


class Reproducible(Tarballs):
    def image(self, place: Path, **environment: str) -> str:
        """The digest of an image from what is in `place`."""
        image = place / "out" / "x.eif"
        result = self.run_script(*self.options(place), "-o", image, place / "root", place / "enclave.toml", **environment)
        self.assertEqual(result.returncode, 0, result.stderr)
        return digest(image)

    def test_from_two_folders(self) -> None:
        def fill(root: Path, names: list[str]) -> None:
            for name in names:
                (root / "srv" / name).write_text(name * 100)
            os.link(root / "srv" / "file7", root / "srv" / "another")

        names = [f"file{number}" for number in range(40)]
        fill(self.root, names)
        first = self.image(self.place, TZ="Pacific/Auckland", LC_ALL="C", PYTHONHASHSEED="1")

        other = self.place / "elsewhere" / "deep"
        mask = os.umask(0o077)
        try:
            other.mkdir(parents=True)
            self.prepare(other)
            fill(other / "root", names[::-1])
        finally:
            os.umask(mask)
        self.assertEqual(stat.S_IMODE((other / "root" / "srv").stat().st_mode), 0o700)
        for path in [*other.rglob("*"), other]:
            os.utime(path, (12345, 67890))
        second = self.image(other, TZ="UTC", LC_ALL="C.UTF-8", PYTHONHASHSEED="2")
        self.assertEqual(first, second)

        (other / "root" / "srv" / "file3").write_text("changed")
        self.assertNotEqual(first, self.image(other))

    def test_from_tarballs_in_any_order_and_packing(self) -> None:
        more = [entry(f"./srv/{name}", name.encode() * 50, uid=7, mtime=stamp) for stamp, name in enumerate("cab")]
        expected = self.build(rootfs=self.tarball(*more))
        for suffix in ("tar.gz", "tar.xz", "tar.bz2"):
            self.assertEqual(self.build(rootfs=self.tarball(*more, suffix=suffix)), expected)
        for info, _ in more:
            info.mtime += 1000
        backwards = self.tarball(*(BASE + more)[::-1], base=False)
        self.assertEqual(self.build(rootfs=backwards), expected)


if __name__ == "__main__":
    unittest.main()
