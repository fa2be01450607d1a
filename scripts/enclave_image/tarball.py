"""Reads a root file system from a tarball, as `docker export` or tar writes it.

The names in it are not to be trusted: one that leaves the root is an error, and `Tree.complete`
refuses what lies below a link. A name that comes twice counts as it came last, as when unpacking.
"""

import bz2
import functools
import gzip
import lzma
import shutil
import stat
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO

from . import Wrong, text
from .tree import MAX_ID, Node, Tree

TYPES = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
OPENERS = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open}
CAPABILITIES = "SCHILY.xattr.security.capability"


def read(path: Path) -> Tree:
    """The tree in the tarball at `path`, compressed or not."""
    plain = decompressed(path)
    tree = Tree()
    try:
        # Names that are no UTF-8 come back as the bytes they are.
        archive = tarfile.open(fileobj=plain, mode="r:", encoding="utf-8", errors="surrogateescape")
        for member in archive:
            add(tree, plain, archive, member)
    except (tarfile.TarError, EOFError) as error:
        raise Wrong(f"{path} is no whole tarball: {error}") from error
    if tree.nodes.keys() & {b"manifest.json", b"index.json"} and tree.find(b"usr") is None and tree.find(b"bin") is None:
        raise Wrong(f"{path} holds layers as docker save writes them: use docker export on a container")
    return tree


def decompressed(path: Path) -> BinaryIO:
    """The tarball as a file in which one can move about."""
    try:
        with open(path, "rb") as source:
            start = source.read(6)
        if start.startswith(b"\x28\xb5\x2f\xfd"):
            raise Wrong(f"{path} is compressed with zstd: decompress it first, with zstd -d")
        opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            return open(path, "rb")
        plain = tempfile.TemporaryFile()
        with opener(path, "rb") as source:
            shutil.copyfileobj(source, plain, 1 << 20)
        plain.seek(0)
        return plain
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise Wrong(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror or error}") from error


def normal(raw: str, what: str) -> bytes:
    """`raw` as a name of the tree."""
    name = raw.encode("utf-8", "surrogateescape")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/"):
        raise Wrong(f"the tarball has {what} with an absolute name, {text(name)}: make it with tar -C FOLDER -c .")
    if b".." in parts:
        raise Wrong(f"the tarball has {what} that leaves its root, {text(name)}: do not trust it")
    return b"/".join(parts)


def add(tree: Tree, plain: BinaryIO, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    name = normal(member.name, "an entry")
    shown = text(name)
    if member.islnk():
        target = normal(member.linkname, "a hard link")
        linked = tree.nodes.get(target)
        if linked is None or linked.is_folder:
            raise Wrong(f"{shown} is a hard link to {text(target)}, which is no file before it in the tarball")
        if name != target:
            tree.add(name, linked)
        return
    if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
        raise Wrong(f"{shown} belongs to {member.uid}:{member.gid}, which is no user and group")
    node = Node(member.mode & 0o7777, member.uid, member.gid)
    if member.isreg() or member.issparse():
        node.mode |= stat.S_IFREG
        node.size = member.size
        node.open = functools.partial(archive.extractfile, member)
    elif member.type in TYPES:
        node.mode |= TYPES[member.type]
        if member.issym():
            node.mode |= 0o777
            node.target = member.linkname.encode("utf-8", "surrogateescape")
        elif member.isdev() and not member.isfifo():
            node.device = (member.devmajor, member.devminor)
    else:
        raise Wrong(f"{shown} is of the unknown type {member.type!r}")
    if CAPABILITIES in member.pax_headers:
        tree.notes.append(f"lost: the capabilities of {shown}, which an initramfs cannot hold")
    if not name and not node.is_folder:
        raise Wrong("the tarball's root is no folder")
    tree.add(name, node)
