"""Static programs of this repository: enclave-netd, unless one is given, and enclave-app.

The paths of the repository, of cargo's folder and of the compiler do not get into them, so that two
builds with the same compiler are equal.
"""

import os
import struct
import subprocess
from pathlib import Path

from . import Wrong

TARGET = "x86_64-unknown-linux-musl"


def build(repository: Path, package: str) -> Path:
    """Builds the program of that name; cargo complains on stderr."""
    cargo = [Path(folder) / "cargo" for folder in os.environ.get("PATH", "").split(":") if folder]
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    cargo = next((file for file in [*cargo, home / "bin" / "cargo"] if os.access(file, os.X_OK)), None)
    if cargo is None:
        raise Wrong(f"cargo is missing: see https://rustup.rs, or give a static {package}")
    rustc = cargo.with_name("rustc")
    sysroot = Path(output(repository, rustc, "--print", "sysroot"))
    if not (sysroot / "lib" / "rustlib" / TARGET / "lib").is_dir():
        raise Wrong(f"Rust's target {TARGET} is missing: run rustup target add {TARGET}")
    commit = next(line for line in output(repository, rustc, "-vV").splitlines() if line.startswith("commit-hash"))
    names = {
        repository: "/enclave-netd",
        # Cargo may take it as it is named or as it is.
        home.absolute(): "/cargo",
        home.resolve(): "/cargo",
        # Where the standard library's sources lie if they are installed; otherwise they are named so.
        sysroot / "lib" / "rustlib" / "src" / "rust": f"/rustc/{commit.split()[1]}",
    }
    environment = {
        **os.environ,
        "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(f"--remap-path-prefix={path}={name}" for path, name in names.items()),
        "CARGO_PROFILE_RELEASE_STRIP": "symbols",
    }
    target = Path(os.environ.get("CARGO_TARGET_DIR") or "target")
    command = [cargo, "build", "--quiet", "--release", "--locked", "--package", package, "--target", TARGET]
    if subprocess.run(command, cwd=repository, env=environment, check=False).returncode:
        raise Wrong(f"{package} cannot be built: see above")
    return repository / target / TARGET / "release" / package


def output(repository: Path, *command: object) -> str:
    try:
        return subprocess.run(command, cwd=repository, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Wrong(f"{command[0]} does not work: {error}") from error


def load(path: Path) -> bytes:
    """The program at `path`, which must need nothing beside itself."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}") from error
    if len(data) < 64 or not data.startswith(b"\x7fELF\x02\x01") or struct.unpack_from("<H", data, 18)[0] != 62:
        raise Wrong(f"{path} is no program for x86_64 Linux: build enclave-netd for {TARGET}")
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = [struct.unpack_from("<I", data, table + index * size)[0] for index in range(count)]
    if 3 in kinds:
        raise Wrong(f"{path} is linked dynamically, and an enclave has no libraries when it starts: build it for {TARGET}")
    return data


def check(program: Path, config: Path) -> list[str]:
    """Whether enclave-netd takes the configuration; in an enclave nobody may see its complaint.

    Returns a note if the program cannot be run on this machine.
    """
    try:
        result = subprocess.run([program.absolute(), "check", config], capture_output=True, text=True, check=False)
    except OSError as error:
        return [f"{program} cannot be run here ({error.strerror}): of {config} only [program] is checked"]
    if result.returncode:
        said = result.stderr.strip().splitlines()
        reason = said[-1].removeprefix("enclave-netd: ") if said else f"{program} check ended with {result.returncode}"
        raise Wrong(reason)
    return []
