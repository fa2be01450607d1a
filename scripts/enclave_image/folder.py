"""Reads a root file system from a folder."""

import functools
import os
import stat
from pathlib import Path

from . import Wrong, text
from .tree import Node, Tree

KINDS = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO}
SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


def read(folder: Path) -> Tree:
    """The tree below `folder`; see `tree` for owners and modes."""
    tree = Tree()
    files: dict[tuple[int, int], Node] = {}

    def visit(path: bytes, name: bytes) -> None:
        about = os.lstat(path)
        kind = stat.S_IFMT(about.st_mode)
        if kind not in KINDS:
            tree.notes.append(f"left out: the socket {text(name)}")
            return
        identity = (about.st_dev, about.st_ino)
        if name:
            linked = about.st_nlink > 1 and kind != stat.S_IFDIR
            if not linked or identity not in files:
                files[identity] = node_of(path, about)
            tree.add(name, files[identity])
            if kind == stat.S_IFREG and has_capabilities(path):
                tree.notes.append(f"lost: the capabilities of {text(name)}, which an initramfs cannot hold")
        if kind == stat.S_IFDIR:
            for part in sorted(os.listdir(path)):
                visit(os.path.join(path, part), name + b"/" + part if name else part)

    try:
        visit(os.fsencode(folder), b"")
    except OSError as error:
        raise Wrong(f"cannot read {error.filename!r}: {error.strerror}; run as a user who may") from error
    return tree


def node_of(path: bytes, about: os.stat_result) -> Node:
    kind = stat.S_IFMT(about.st_mode)
    if kind == stat.S_IFLNK:
        return Node(kind | 0o777, target=os.readlink(path))
    executable = kind == stat.S_IFDIR or about.st_mode & stat.S_IXUSR
    node = Node(kind | about.st_mode & SPECIAL | (0o755 if executable else 0o644))
    if about.st_mode & stat.S_ISVTX:
        # A sticky folder is one that all may write to.
        node.mode |= 0o777
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        node.device = (os.major(about.st_rdev), os.minor(about.st_rdev))
        node.mode = kind | stat.S_IMODE(about.st_mode)
    if kind == stat.S_IFREG:
        node.size = about.st_size
        node.open = functools.partial(open, path, "rb")
    return node


def has_capabilities(path: bytes) -> bool:
    try:
        return "security.capability" in os.listxattr(path, follow_symlinks=False)
    except OSError:
        return False
