"""A root file system as names and nodes.

Names are bytes, relative to the root, without "." and ".." and without a slash at either end; the
root itself is b"". Names that are hard links to one file share one `Node`.

Owners and modes. A tarball says whose a file is and what its mode is, so these are kept. A folder
belongs to whoever unpacked it, with the modes that their umask left: from there only what survives
that is taken, that is whether a file may be executed and the set-uid, set-gid and sticky bits;
everything belongs to root.

No node keeps a time: `MTIME` is every file's.
"""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from . import Wrong, text

# Not 0, which some programs take for "unknown".
MTIME = 1
# The kernel passes over longer names in an initramfs without a word. With the final zero.
MAX_NAME = 4096
# The size field of the archive has 32 bits.
MAX_FILE = (1 << 32) - 1
# Users and groups have numbers of 32 bits, and the last one means "none".
MAX_ID = (1 << 32) - 2
# As many links as the kernel follows.
MAX_LINKS = 40
# Mount points that the enclave's first process needs, and where resolv.conf goes.
NEEDED = {b"dev": 0o755, b"etc": 0o755, b"proc": 0o555, b"run": 0o755, b"sys": 0o555, b"tmp": 0o1777}


@dataclass(eq=False)
class Node:
    """A file of any kind. `mode` has the type's bits as well, as in stat."""

    mode: int
    uid: int = 0
    gid: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    size: int = 0
    open: Callable[[], BinaryIO] | None = None

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def start(self, length: int) -> bytes:
        """The first bytes of a regular file."""
        with self.open() as source:
            return source.read(length)


class Tree:
    """Names and nodes; `notes` are lines for whoever builds the image."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {b"": Node(stat.S_IFDIR | 0o755)}
        self.notes: list[str] = []

    def add(self, name: bytes, node: Node) -> None:
        """Adds or replaces; folders above may follow later."""
        # "rootfs/" stands before each name in the image.
        if len(name) + 8 > MAX_NAME:
            raise Wrong(f"the name {text(name[:60])}... is longer than {MAX_NAME - 8} bytes")
        if len(node.target) >= MAX_NAME:
            raise Wrong(f"the link {text(name)} is longer than {MAX_NAME - 1} bytes")
        if node.size > MAX_FILE:
            raise Wrong(
                f"{text(name)} has {node.size} bytes, an initramfs holds files of at most"
                f" {MAX_FILE}: split it, or let the program fetch it"
            )
        self.nodes[name] = node

    def complete(self) -> None:
        """Adds the folders that are missing, and makes sure that nothing lies below a file or link."""
        for name in sorted(self.nodes):
            above = name
            while above:
                above = above.rpartition(b"/")[0]
                parent = self.nodes.setdefault(above, Node(stat.S_IFDIR | 0o755))
                if not parent.is_folder:
                    kind = "a link" if parent.is_link else "no folder"
                    raise Wrong(
                        f"{text(name)} lies below {text(above)}, which is {kind}:"
                        " such a root file system could write anywhere in the image"
                    )
        for name, mode in NEEDED.items():
            if not self.nodes.setdefault(name, Node(stat.S_IFDIR | mode)).is_folder:
                raise Wrong(f"/{text(name)} of the root file system is no folder: the enclave needs one there")

    def entries(self) -> Iterator[tuple[bytes, Node]]:
        """In the order of their names' bytes, so that a folder comes before what is in it."""
        return iter(sorted(self.nodes.items()))

    def find(self, path: bytes) -> tuple[bytes, Node] | None:
        """What `path` leads to when this tree is the root, links followed; None if nothing."""
        links = 0
        at: list[bytes] = []
        ahead = path.split(b"/")[::-1]
        while ahead:
            part = ahead.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                del at[-1:]
                continue
            node = self.nodes.get(b"/".join([*at, part]))
            if node is None:
                return None
            if node.is_link:
                links += 1
                if links > MAX_LINKS:
                    return None
                if node.target.startswith(b"/"):
                    at = []
                ahead.extend(node.target.split(b"/")[::-1])
                continue
            if ahead and any(ahead) and not node.is_folder:
                return None
            at.append(part)
        name = b"/".join(at)
        return name, self.nodes[name]
