"""Puts an image together: two ramdisks, the sections, the measurements.

Ramdisk 1 boots and is what PCR1 measures beside the kernel: /init (enclave-netd), /modules with
/modules/order, and empty mount points. Ramdisk 2 is the application, PCR2: /rootfs and
/enclave.toml. Both become one initramfs in the enclave.
"""

import datetime
import functools
import io
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from . import Wrong, cpio, eif, folder, tarball
from .kernel import Kernel
from .tree import Node, Tree

TOOL = "build-enclave"
CONSOLE = (5, 1)


@dataclass
class Ramdisk:
    """A ramdisk in a file without a name."""

    file: BinaryIO
    size: int


def root_file_system(path: Path) -> Tree:
    """The complete tree of a folder or tarball."""
    if not path.exists():
        raise Wrong(f"there is no {path}: give a folder or a tarball with the program's root file system")
    tree = folder.read(path) if path.is_dir() else tarball.read(path)
    if len(tree.nodes) == 1:
        raise Wrong(f"{path} is empty: give a folder or a tarball with the program's root file system")
    tree.complete()
    return tree


def file_of(data: bytes, mode: int) -> Node:
    return Node(stat.S_IFREG | mode, size=len(data), open=functools.partial(io.BytesIO, data))


def boot_entries(init: bytes, kernel: Kernel) -> list[tuple[bytes, Node]]:
    """What ramdisk 1 holds."""
    entries = {name: Node(stat.S_IFDIR | 0o755) for name in (b"dev", b"modules", b"proc", b"run", b"sys", b"tmp")}
    # The kernel opens it for the first process; not each brings its own.
    entries[b"dev/console"] = Node(stat.S_IFCHR | 0o600, device=CONSOLE)
    entries[b"init"] = file_of(init, 0o755)
    order = "".join(f"{module.name}\n" for module in kernel.modules)
    entries[b"modules/order"] = file_of(order.encode(), 0o644)
    for module in kernel.modules:
        entries[b"modules/" + os.fsencode(module.name)] = file_of(module.read_bytes(), 0o644)
    return sorted(entries.items())


def application_entries(config: bytes, tree: Tree) -> list[tuple[bytes, Node]]:
    """What ramdisk 2 holds."""
    entries = [(b"enclave.toml", file_of(config, 0o644))]
    entries += [(b"rootfs/" + name if name else b"rootfs", node) for name, node in tree.entries()]
    return entries


def ramdisk(entries: list[tuple[bytes, Node]], compressed: bool) -> Ramdisk:
    output = tempfile.TemporaryFile()
    if compressed:
        sink = cpio.Gzip(output)
        cpio.write(sink, entries)
        sink.close()
    else:
        cpio.write(output, entries)
    return Ramdisk(output, output.seek(0, os.SEEK_END))


def build_time() -> str:
    """From SOURCE_DATE_EPOCH; without it a constant, for the present is in no image."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "0")
    try:
        return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise Wrong(f"SOURCE_DATE_EPOCH={seconds} is no time in seconds since 1970") from error


def tool_version(repository: Path) -> str:
    manifest = (repository / "Cargo.toml").read_text()
    found = re.search(r'^version = "(.*)"', manifest, re.MULTILINE)
    return found[1] if found else "0"


def sections(kernel: Kernel, metadata: bytes, ramdisks: list[Ramdisk]) -> list[eif.Section]:
    return [
        eif.Section(eif.KERNEL, kernel.image),
        eif.Section(eif.CMDLINE, kernel.cmdline.encode()),
        eif.Section(eif.METADATA, metadata),
        *(eif.Section(eif.RAMDISK, ramdisk.file) for ramdisk in ramdisks),
    ]
