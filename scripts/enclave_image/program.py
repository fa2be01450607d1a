"""The configuration of an image: what its [program] asks for must be in the root file system.

Everything else in the file is enclave-netd's to judge; see `binary.check`.
"""

import struct
import tomllib
from pathlib import Path

from . import Wrong, text
from .tree import MAX_ID, Node, Tree

# As enclave-netd reads it.
MAX_CONFIG = 1 << 20
# What enclave-netd gives the program unless [program.environment] says otherwise.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEYS = {"command", "user", "directory", "environment"}
EXECUTABLE = 0o111
# A script that runs a script, and so on: as deep as the kernel goes.
MAX_SCRIPTS = 4
ELF = struct.Struct("<4sBB10xHH")
X86_64 = 62
INTERPRETER = 3


def read(path: Path) -> tuple[bytes, dict]:
    """The file as it is, and its [program]."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_CONFIG:
        raise Wrong(f"{path} has {len(data)} bytes, enclave-netd reads at most {MAX_CONFIG}")
    try:
        config = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Wrong(f"{path}, line {line}: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise Wrong(f"{path}: {error}") from error
    program = config.get("program")
    if not isinstance(program, dict):
        raise Wrong(f'{path} has no program: add [program] with command = ["/path/in/the/image", "argument"]')
    if unknown := program.keys() - KEYS:
        raise Wrong(f"{path}: program.{min(unknown)} is unknown; there are {', '.join(sorted(KEYS))}")
    command = program.get("command")
    if not (isinstance(command, list) and command and all(isinstance(word, str) for word in command) and command[0]):
        raise Wrong(f'{path}: program.command must be a list of words, such as ["/usr/bin/python3", "server.py"]')
    environment = program.get("environment", {})
    if not (isinstance(environment, dict) and all(isinstance(value, str) for value in environment.values())):
        raise Wrong(f'{path}: program.environment must be a table of words, such as {{ PORT = "443" }}')
    for name in environment:
        if not name or "=" in name:
            raise Wrong(f"{path}: program.environment has the name {name!r}, which no variable can have")
    words = [*command, *environment, *environment.values()]
    if any("\0" in word for word in words):
        raise Wrong(f"{path}: a word of [program] has a NUL character, which no program can be given")
    return data, program


def check(path: Path, program: dict, tree: Tree) -> None:
    """Whether the program could start in `tree`."""
    user(path, program.get("user", "root"), tree)
    directory = program.get("directory", "/")
    if not (isinstance(directory, str) and directory.startswith("/")):
        raise Wrong(f"{path}: program.directory must be an absolute path")
    found = tree.find(directory.encode())
    if found is None or not found[1].is_folder:
        raise Wrong(f"{path}: program.directory {directory} is no folder of the root file system")
    word = program["command"][0]
    where, node = command(path, program, directory, tree)
    runnable(f"{path}: program.command {word}", where, node, tree)


def user(path: Path, value: object, tree: Tree) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise Wrong(f'{path}: program.user must be a name, "UID" or "UID:GID"')
    parts = value.split(":")
    if len(parts) <= 2 and all(part.isascii() and part.isdigit() for part in parts):
        if any(int(part) > MAX_ID for part in parts):
            raise Wrong(f"{path}: program.user {value}: no user or group has a number above {MAX_ID}")
        return
    known = set()
    found = tree.find(b"etc/passwd")
    if found and found[1].is_file:
        known = {line.split(b":")[0] for line in found[1].start(MAX_CONFIG).splitlines()}
    if value.encode() not in known and value != "root":
        raise Wrong(f"{path}: program.user {value} is not in the root file system's /etc/passwd: add it there, or give UID:GID")


def command(path: Path, program: dict, directory: str, tree: Tree) -> tuple[bytes, Node]:
    """The file that the first word of the command means."""
    word = program["command"][0]
    if "/" in word:
        places = [word if word.startswith("/") else f"{directory}/{word}"]
    else:
        search = program.get("environment", {}).get("PATH", DEFAULT_PATH)
        places = [f"{folder}/{word}" for folder in search.split(":") if folder]
    present = [found for place in places if (found := tree.find(place.encode()))]
    for where, node in present:
        if node.is_file and node.mode & EXECUTABLE:
            return where, node
    if present:
        kind = "is no file" if not present[0][1].is_file else "is not executable: chmod +x it"
        raise Wrong(f"{path}: program.command {word} {kind} (/{text(present[0][0])} of the root file system)")
    raise Wrong(f"{path}: program.command {word} is not in the root file system; looked for {', '.join(places)}")


def runnable(what: str, where: bytes, node: Node, tree: Tree, depth: int = 0) -> None:
    """Whether the kernel could execute it: its loader or interpreter must be there too."""
    if depth > MAX_SCRIPTS:
        raise Wrong(f"{what}: /{text(where)} is the interpreter of an interpreter, deeper than the kernel follows")
    start = node.start(4096)
    if start.startswith(b"#!"):
        interpreter = start[2:].split(b"\n")[0].split(None, 1)[:1]
        if not interpreter:
            raise Wrong(f"{what}: the script /{text(where)} names no interpreter")
        need(what, where, interpreter[0], tree, depth + 1)
    elif start.startswith(b"\x7fELF"):
        if len(start) < ELF.size or ELF.unpack_from(start)[1:3] != (2, 1) or ELF.unpack_from(start)[4] != X86_64:
            raise Wrong(f"{what}: /{text(where)} is built for another machine than x86_64")
        if loader := interpreter_of(start):
            need(what, where, loader, tree, depth + 1)
    else:
        raise Wrong(f"{what}: /{text(where)} is neither a program for Linux nor a script with #! on its first line")


def need(what: str, where: bytes, wanted: bytes, tree: Tree, depth: int) -> None:
    found = tree.find(wanted)
    if found is None or not found[1].is_file or not found[1].mode & EXECUTABLE:
        raise Wrong(f"{what}: /{text(where)} needs {text(wanted)}, which is not in the root file system or not executable")
    runnable(what, *found, tree, depth)


def interpreter_of(start: bytes) -> bytes | None:
    """The loader that an ELF file asks for, if the first bytes hold it (they do: linkers put it there)."""
    (table,) = struct.unpack_from("<Q", start, 32)
    size, count = struct.unpack_from("<HH", start, 54)
    for index in range(count):
        at = table + index * size
        if at + 56 > len(start):
            return None
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", start, at)
        if kind == INTERPRETER and offset + length <= len(start):
            return start[offset : offset + length].rstrip(b"\0")
    return None
