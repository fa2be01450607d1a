"""What the tests of scripts/build-enclave share: small inputs, and readers that are not ours.

The kernel and the programs here are headers with nothing behind them: enough to be checked, so that
the tests need neither network nor compiler.
"""

import hashlib
import os
import re
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "build-enclave"
VERSION = "6.1.2-test"
CONFIG = """\
publish = ["443"]
[program]
command = ["/bin/hello", "world"]
user = "app"
directory = "/srv"
"""


def kernel() -> bytes:
    """The header of a bzImage that tells `VERSION`."""
    image = bytearray(0x4000)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = struct.pack("<H", 0x1000)
    image[0x211] = 1
    name = f"{VERSION} (builder) #1 SMP\0".encode()
    image[0x1200 : 0x1200 + len(name)] = name
    return bytes(image)


def elf(loader: bytes | None = None, machine: int = 62, complaint: bytes = b"") -> bytes:
    """A program that ends well or, with a complaint, prints it and ends with 2; static without a loader."""
    count = 2 if loader else 1
    entry = 64 + 56 * count
    code = b""
    if complaint:
        # write(2, the text behind the code, its length)
        code += b"\xbf" + struct.pack("<I", 2) + b"\x48\x8d\x35" + struct.pack("<i", 24)
        code += b"\xba" + struct.pack("<I", len(complaint)) + b"\xb8" + struct.pack("<I", 1) + b"\x0f\x05"
    # exit
    code += b"\xbf" + struct.pack("<I", 2 if complaint else 0) + b"\xb8" + struct.pack("<I", 60) + b"\x0f\x05"
    data = code + complaint
    base = 0x400000
    size = max(256, entry + len(data))
    head = struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, machine, 1, base + entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    if loader:
        at = entry + len(data)
        head += struct.pack("<IIQQQQQQ", 3, 4, at, base + at, base + at, len(loader) + 1, len(loader) + 1, 1)
        data += loader
    return (head + data).ljust(256, b"\0")


def openssl_sha384(data: bytes) -> bytes:
    return subprocess.run(["openssl", "dgst", "-sha384", "-binary"], input=data, check=True, capture_output=True).stdout


def pcr(*contents: bytes) -> str:
    """A register of zeros, extended once: by openssl."""
    return openssl_sha384(bytes(48) + openssl_sha384(b"".join(contents))).hex()


def gzip_crc(data: bytes) -> int:
    """The CRC-32 that gzip writes behind what it compressed."""
    packed = subprocess.run(["gzip", "-1", "-c"], input=data, check=True, capture_output=True).stdout
    return struct.unpack("<I", packed[-8:-4])[0]


def sections(image: bytes) -> list[tuple[int, bytes]]:
    """Types and contents, found by the header's table."""
    (count,) = struct.unpack_from(">H", image, 26)
    result = []
    for index in range(count):
        (at,) = struct.unpack_from(">Q", image, 28 + 8 * index)
        (size,) = struct.unpack_from(">Q", image, 284 + 8 * index)
        kind, flags, again = struct.unpack_from(">HHQ", image, at)
        assert (flags, again) == (0, size), (kind, flags, again, size)
        result.append((kind, image[at + 12 : at + 12 + size]))
    return result


def ramdisk(image: bytes, index: int) -> bytes:
    """A ramdisk, decompressed by gzip."""
    packed = [content for kind, content in sections(image) if kind == 3][index]
    return subprocess.run(["gzip", "-dc"], input=packed, check=True, capture_output=True).stdout


def listing(archive: bytes) -> dict[str, str]:
    """What `cpio -tv` says of each name: mode, links, owner, size or device."""
    command = ["cpio", "-itv", "--quiet", "--numeric-uid-gid"]
    lines = subprocess.run(command, input=archive, check=True, capture_output=True, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"})
    result = {}
    for line in lines.stdout.decode().splitlines():
        # MODE LINKS UID GID SIZE-OR-DEVICE MONTH DAY YEAR NAME; a device has blanks after its comma.
        words = re.sub(r", +", ",", line, count=1).split(None, 8)
        result[words[8]] = " ".join(words[:5])
    return result


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Bench(unittest.TestCase):
    """A folder with all that an image needs."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.place = Path(scratch.name)
        self.prepare(self.place)
        self.root = self.place / "root"
        self.out = self.place / "out"

    def prepare(self, place: Path) -> None:
        (place / "out").mkdir()
        (place / "vmlinuz").write_bytes(kernel())
        (place / "init").write_bytes(elf())
        (place / "init").chmod(0o755)
        (place / "enclave.toml").write_text(CONFIG)
        (place / "modules").mkdir()
        for name in ("tun.ko", "nsm.ko"):
            (place / "modules" / name).write_bytes(b"\x7fELF " + name.encode())
        (place / "modules" / "order").write_text("tun.ko\nnsm.ko\n")
        self.root_in(place / "root")

    def root_in(self, root: Path) -> None:
        for folder in ("bin", "etc", "srv"):
            (root / folder).mkdir(parents=True)
        (root / "bin" / "hello").write_bytes(elf())
        (root / "bin" / "hello").chmod(0o755)
        (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:7:7::/srv:/bin/sh\n")

    def run_script(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        command = [SCRIPT, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.place, env={**os.environ, **environment}, check=False)

    def options(self, place: Path | None = None) -> list[object]:
        place = place or self.place
        return ["--kernel", place / "vmlinuz", "--modules", place / "modules", "--enclave-netd", place / "init"]

    def build(self, *more: object, rootfs: Path | None = None, **environment: str) -> bytes:
        """The image; the build must succeed."""
        image = self.out / "enclave.eif"
        result = self.run_script(*self.options(), *more, "-o", image, rootfs or self.root, self.place / "enclave.toml", **environment)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.notes = result.stderr
        return image.read_bytes()

    def application(self, *more: object, **keywords: object) -> bytes:
        """The second ramdisk's archive."""
        return ramdisk(self.build(*more, **keywords), 1)

    def refuses(self, expected: str, *arguments: object, **environment: str) -> None:
        """The script ends with one line that has `expected`, and leaves nothing behind."""
        before = sorted(self.out.rglob("*"))
        result = self.run_script(*arguments, **environment)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(expected, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("build-enclave: "), result.stderr)
        self.assertEqual(sorted(self.out.rglob("*")), before)

    def refuses_build(self, expected: str, *more: object, rootfs: Path | None = None, **environment: str) -> None:
        arguments = [*self.options(), *more, "-o", self.out / "enclave.eif", rootfs or self.root, self.place / "enclave.toml"]
        self.refuses(expected, *arguments, **environment)
