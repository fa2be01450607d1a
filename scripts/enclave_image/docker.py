"""The input of a Docker build, for those who make the image with nitro-cli build-enclave.

AWS's own first process is process 1 then; it mounts, loads nsm.ko, sends the heartbeat and starts
what CMD says.
"""

import os
import stat
import tarfile
import tempfile
from pathlib import Path

from . import Wrong
from .tree import MTIME, Node, Tree

DOCKERFILE = """\
# docker build -t enclave . && nitro-cli build-enclave --docker-uri enclave --output-file enclave.eif
FROM scratch
# The program's root file system; docker unpacks it with its owners and modes.
ADD rootfs.tar /
COPY enclave-netd enclave.toml /
CMD ["/enclave-netd", "init"]
"""
OURS = (b"enclave-netd", b"enclave.toml")
TYPES = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFREG: tarfile.REGTYPE,
}


def write(folder: Path, tree: Tree, config: bytes, init: bytes) -> None:
    """Makes `folder`, which must not exist or be one of these, with the Dockerfile and what it needs."""
    for name in OURS:
        if name in tree.nodes:
            raise Wrong(f"the root file system has a /{name.decode()} of its own, and the image needs that name: rename it")
    if folder.exists() and not (folder.is_dir() and ((folder / "Dockerfile").is_file() or not any(folder.iterdir()))):
        raise Wrong(f"{folder} holds something else than a Docker build: name another folder")
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".build-enclave.") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        (new / "Dockerfile").write_text(DOCKERFILE)
        (new / "enclave.toml").write_bytes(config)
        (new / "enclave-netd").write_bytes(init)
        (new / "enclave-netd").chmod(0o755)
        with tarfile.open(new / "rootfs.tar", "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as archive:
            first: dict[int, str] = {}
            for name, node in tree.entries():
                if name:
                    add(archive, name, node, first)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)


def add(archive: tarfile.TarFile, name: bytes, node: Node, first: dict[int, str]) -> None:
    info = tarfile.TarInfo(os.fsdecode(name))
    info.mode = stat.S_IMODE(node.mode)
    info.uid, info.gid, info.mtime = node.uid, node.gid, MTIME
    info.type = TYPES[stat.S_IFMT(node.mode)]
    info.devmajor, info.devminor = node.device
    if node.is_link:
        info.linkname = os.fsdecode(node.target)
    elif not node.is_folder and id(node) in first:
        info.type, info.linkname = tarfile.LNKTYPE, first[id(node)]
    first.setdefault(id(node), info.name)
    if info.isreg():
        info.size = node.size
        with node.open() as source:
            archive.addfile(info, source)
    else:
        archive.addfile(info)
