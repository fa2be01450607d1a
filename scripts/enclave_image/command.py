"""Options, messages, and the files that are written.

A file is written under another name beside its place and renamed when it is whole, so that nothing
half-written is left whatever ends the build.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from . import MIB, Wrong, binary, docker, eif, image, kernel, pcrs, policy, program

REPOSITORY = Path(__file__).resolve().parents[2]
USAGE = """\
%(prog)s [OPTION...] ROOTFS CONFIG.toml          make an image
       %(prog)s --dockerfile FOLDER ROOTFS CONFIG.toml  make a Docker build of the same
       %(prog)s --describe IMAGE.eif                    print what is in an image, as JSON
       %(prog)s --policy PCRS.json [--principal ARN]    print the KMS key policy for an image"""
# An enclave-netd beyond this has something in it that does not belong there.
EXPECTED_BINARY = 8 * MIB


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build-enclave",
        usage=USAGE,
        description="Makes an enclave image (EIF) from a root file system, the same bytes each time.",
        epilog="docs/image.md tells more.",
    )
    add = parser.add_argument
    add("rootfs", metavar="ROOTFS", nargs="?", type=Path, help="a folder, or a tarball as docker export writes it")
    add("config", metavar="CONFIG.toml", nargs="?", type=Path, help="enclave-netd's configuration, with [program]")
    add("-o", "--output", metavar="IMAGE.eif", type=Path, default=Path("enclave.eif"), help="(enclave.eif)")
    add("--pcrs", metavar="FILE", type=Path, help="where the measurements go (pcr-values.json beside the image)")
    add("--name", default="enclave", help="the image's name (enclave); not measured")
    add("--version", default="1.0", help="the image's version (1.0); not measured")
    add("--kernel", metavar="PATH", type=Path, help="a bzImage, or a folder such as /usr/share/nitro_enclaves/blobs (a Debian cloud kernel)")
    add("--kernel-config", metavar="FILE", type=Path, help="its configuration, which is checked then")
    add("--modules", metavar="FOLDER", type=Path, help="its modules, and a file 'order' if there are several")
    add("--module", metavar="NAME", action="append", default=[], help="one more module of the Debian kernel; may be given again")
    add("--cmdline", metavar="WORDS", help="the kernel's command line (as nitro-cli's)")
    add("--enclave-netd", metavar="BINARY", type=Path, help="a static one (built from this repository)")
    add("--compress", choices=["gzip", "none"], default="gzip", help="the ramdisks (gzip)")
    add("--dockerfile", metavar="FOLDER", type=Path, help="make a Docker build in FOLDER instead of an image")
    add("--describe", metavar="IMAGE.eif", type=Path, help="print what is in an image")
    add("--policy", metavar="PCRS.json", type=Path, help="print the key policy for these measurements")
    add("--principal", metavar="ARN", help="with --policy: the role of the parent instance")
    return parser


def main() -> int:
    """The exit status."""
    # An end by a signal cleans up as any other.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = options()
    arguments = parser.parse_args()
    try:
        if arguments.describe:
            print_json(eif.describe(arguments.describe))
        elif arguments.policy:
            show_policy(arguments)
        elif arguments.rootfs is None or arguments.config is None:
            parser.error("give a root file system and a configuration")
        elif arguments.dockerfile:
            make_docker_build(arguments)
        else:
            make_image(arguments)
    except Wrong as wrong:
        print(f"build-enclave: {wrong}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"build-enclave: {error.filename or 'cannot write'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def show_policy(arguments: argparse.Namespace) -> None:
    result = policy.policy(pcrs.read(arguments.policy), arguments.principal)
    if arguments.principal is None:
        print(f"build-enclave: put a role in the place of {policy.PLACEHOLDER}, or give --principal", file=sys.stderr)
    print_json(result)


def enclave_netd(arguments: argparse.Namespace) -> bytes:
    path = arguments.enclave_netd or binary.build(REPOSITORY, "enclave-netd")
    data = binary.load(path)
    if len(data) > EXPECTED_BINARY:
        print(f"build-enclave: {path} has {size(len(data))}; is it stripped?", file=sys.stderr)
    print_notes(binary.check(path, arguments.config))
    return data


def make_docker_build(arguments: argparse.Namespace) -> None:
    config, wanted = program.read(arguments.config)
    tree = image.root_file_system(arguments.rootfs)
    program.check(arguments.config, wanted, tree)
    docker.write(arguments.dockerfile, tree, config, enclave_netd(arguments))
    print_notes(tree.notes)
    print(f"docker build -t enclave {arguments.dockerfile}")
    print("nitro-cli build-enclave --docker-uri enclave --output-file enclave.eif")


def make_image(arguments: argparse.Namespace) -> None:
    # What is checked fast comes first.
    config, wanted = program.read(arguments.config)
    built = image.build_time()
    given = None
    if arguments.kernel:
        if arguments.module:
            raise Wrong("--module is for the Debian kernel: with --kernel, put the modules into --modules")
        given = kernel.load(arguments.kernel, arguments.kernel_config, arguments.modules, arguments.cmdline)
    elif arguments.modules or arguments.kernel_config:
        raise Wrong("--modules and --kernel-config need --kernel")
    output = arguments.output
    measured = arguments.pcrs or output.parent / "pcr-values.json"
    for folder in (output.parent, measured.parent):
        if not folder.is_dir():
            raise Wrong(f"there is no folder {folder}: make it")
    tree = image.root_file_system(arguments.rootfs)
    program.check(arguments.config, wanted, tree)
    init = enclave_netd(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        if given is None:
            folder = kernel.fetch(REPOSITORY, Path(scratch) / "kernel", arguments.module)
            given = kernel.load(folder, None, None, arguments.cmdline)
        boot = image.boot_entries(init, given)
    compressed = arguments.compress == "gzip"
    ramdisks = [
        image.ramdisk(entries, compressed) for entries in (boot, image.application_entries(config, tree))
    ]
    metadata = eif.metadata(
        arguments.name,
        arguments.version,
        {
            "BuildTime": built,
            "BuildTool": image.TOOL,
            "BuildToolVersion": image.tool_version(REPOSITORY),
            "OperatingSystem": "Linux",
            "KernelVersion": given.version,
        },
    )
    with replaced(output) as image_file, replaced(measured) as pcr_file:
        values = eif.write(image_file, image.sections(given, metadata, ramdisks)).values()
        pcr_file.write((json.dumps(values, indent=2) + "\n").encode())
        total = image_file.seek(0, os.SEEK_END)
    print_notes(tree.notes)
    print(f"{output}: {size(total)}: kernel {given.version} {size(len(given.image))},", end=" ")
    print(f"boot {size(ramdisks[0].size)}, application {size(ramdisks[1].size)};", end=" ")
    print(f"without the kernel {size(total - len(given.image))}; enclave-netd {size(len(init))} unpacked")
    print(f"{measured}:")
    print_json(values)


def print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"build-enclave: {note}", file=sys.stderr)


def size(length: int) -> str:
    return f"{length / MIB:.2f} MiB"


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
