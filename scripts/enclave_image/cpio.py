"""Writes an initramfs: a cpio archive of the "newc" kind.

Layout: https://docs.kernel.org/driver-api/early-userspace/buffer-format.html. Each entry is 13
numbers of 8 hexadecimal digits behind a magic, the name, and the data, padded to 4 bytes. Inode
numbers are counted from 1, in the order of the entries. The content of a file of several names
goes with the last of them, as GNU cpio does it.
"""

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO, Protocol

from . import Wrong, text
from .tree import MTIME, Node

# As GNU cpio's blocks; the kernel needs 4, so that an archive may follow.
BLOCK = 512
CHUNK = 1 << 20


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes) -> object: ...


class Gzip:
    """Compresses what is written to it: no name, no time."""

    # Beyond 6 it takes twice the time for one part in a hundred.
    LEVEL = 6

    def __init__(self, output: BinaryIO) -> None:
        self.output = output
        self.engine = zlib.compressobj(self.LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)

    def write(self, data: bytes) -> None:
        self.output.write(self.engine.compress(data))

    def close(self) -> None:
        self.output.write(self.engine.flush())


def write(output: Sink, entries: Iterable[tuple[bytes, Node]]) -> None:
    """The whole archive of `entries`, which are in the order to unpack them."""
    entries = list(entries)
    names_left = Counter(id(node) for _, node in entries)
    inodes: dict[int, int] = {}
    links = dict(names_left)
    written = 0
    for name, node in entries:
        inode = inodes.setdefault(id(node), len(inodes) + 1)
        names_left[id(node)] -= 1
        last = not names_left[id(node)]
        size = len(node.target) if node.is_link else node.size if node.is_file and last else 0
        written += head(output, name, node, inode, links[id(node)], size)
        if node.is_link:
            output.write(node.target)
        elif size:
            copy(output, name, node)
        written += size + pad(output, size, 4)
    # Of no type, as the kernel's own generator writes it.
    written += head(output, b"TRAILER!!!", Node(0), 0, 1, 0, mtime=0)
    pad(output, written, BLOCK)


def head(output: Sink, name: bytes, node: Node, inode: int, links: int, size: int, mtime: int = MTIME) -> int:
    numbers = [inode, node.mode, node.uid, node.gid, links, mtime, size, 0, 0, *node.device, len(name) + 1, 0]
    data = b"070701" + b"".join(b"%08X" % number for number in numbers) + name + b"\0"
    output.write(data)
    return len(data) + pad(output, len(data), 4)


def copy(output: Sink, name: bytes, node: Node) -> None:
    left = node.size
    try:
        with node.open() as source:
            while left and (data := source.read(min(left, CHUNK))):
                output.write(data)
                left -= len(data)
            changed = left or source.read(1)
    except OSError as error:
        raise Wrong(f"cannot read {text(name)}: {error.strerror or error}; run as a user who may") from error
    if changed:
        raise Wrong(f"{text(name)} changed its size while it was read: build again")


def pad(output: Sink, length: int, unit: int) -> int:
    missing = -length % unit
    output.write(bytes(missing))
    return missing
