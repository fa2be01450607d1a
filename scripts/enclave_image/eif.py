"""The enclave image format, version 4.

All numbers are big-endian. A header with the offset and size of each section and a CRC-32 over the
whole file but itself; then the sections, each behind a header of its own (type, flags, size). The
order is that of AWS's builder: kernel, command line, metadata, ramdisks. The boot loader puts the
ramdisks one behind the other and gives them to the kernel as one initramfs.

Layout: github.com/aws/aws-nitro-enclaves-image-format, src/defs/mod.rs; a reader of it is QEMU's
hw/core/eif.c.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from . import Wrong
from .pcrs import Pcrs

MAGIC = b".eif"
VERSION = 4
MAX_SECTIONS = 32
KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5
NAMES = {KERNEL: "kernel", CMDLINE: "cmdline", RAMDISK: "ramdisk", SIGNATURE: "signature", METADATA: "metadata"}
HEADER = struct.Struct(f">4sHHQQHH{MAX_SECTIONS}Q{MAX_SECTIONS}QI")
CRC = struct.Struct(">I")
SECTION = struct.Struct(">HHQ")
# What AWS's builder writes; nitro-cli takes memory and CPUs from its own command line.
DEFAULT_MEMORY = 1 << 30
DEFAULT_CPUS = 2
CHUNK = 1 << 20
# The keys that nitro-cli describe-eif must find in the metadata.
BUILD_KEYS = ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion")


@dataclass
class Section:
    """A section's type and content, which is a file or bytes."""

    kind: int
    content: BinaryIO | bytes

    @property
    def size(self) -> int:
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.seek(0, 2)

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
            return
        self.content.seek(0)
        while data := self.content.read(CHUNK):
            yield data


def write(output: BinaryIO, sections: list[Section]) -> Pcrs:
    """Writes the image and measures it."""
    offsets = [0] * MAX_SECTIONS
    sizes = [0] * MAX_SECTIONS
    at = HEADER.size + CRC.size
    for index, section in enumerate(sections):
        offsets[index], sizes[index] = at, section.size
        at += SECTION.size + section.size
    header = HEADER.pack(
        MAGIC, VERSION, 0, DEFAULT_MEMORY, DEFAULT_CPUS, 0, len(sections), *offsets, *sizes, 0
    )
    crc = zlib.crc32(header)
    pcrs = Pcrs()
    output.write(header + CRC.pack(0))
    for section in sections:
        about = SECTION.pack(section.kind, 0, section.size)
        output.write(about)
        crc = zlib.crc32(about, crc)
        pcrs.begin(section.kind)
        for data in section.chunks():
            output.write(data)
            crc = zlib.crc32(data, crc)
            pcrs.update(data)
    output.seek(HEADER.size)
    output.write(CRC.pack(crc))
    return pcrs


def describe(path: Path) -> dict:
    """What is in the image, in the shape of nitro-cli describe-eif, with header and sections added."""
    try:
        with open(path, "rb") as image:
            return describe_open(path, image)
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}") from error


def describe_open(path: Path, image: BinaryIO) -> dict:
    header = image.read(HEADER.size)
    stored = image.read(CRC.size)
    if len(stored) < CRC.size or not header.startswith(MAGIC):
        raise Wrong(f"{path} is no enclave image: it does not begin with .eif")
    _, version, flags, memory, cpus, _, count, *rest = HEADER.unpack(header)
    offsets, sizes = rest[:MAX_SECTIONS], rest[MAX_SECTIONS:-1]
    crc = zlib.crc32(header)
    pcrs = Pcrs()
    sections = []
    metadata = None
    while about := image.read(SECTION.size):
        offset = image.tell() - len(about)
        if len(about) < SECTION.size:
            raise Wrong(f"{path} ends within a section's header: it is not whole")
        crc = zlib.crc32(about, crc)
        kind, _, size = SECTION.unpack(about)
        if kind not in NAMES:
            raise Wrong(f"{path} has a section of the unknown type {kind} at {offset}")
        data = b""
        pcrs.begin(kind)
        left = size
        while left and (chunk := image.read(min(left, CHUNK))):
            left -= len(chunk)
            crc = zlib.crc32(chunk, crc)
            pcrs.update(chunk)
            if kind in (METADATA, CMDLINE):
                data += chunk
        if left:
            raise Wrong(f"{path} ends within its section {NAMES[kind]}: {left} bytes are missing")
        index = len(sections)
        if index >= count or (offsets[index], sizes[index]) != (offset, size):
            raise Wrong(f"{path}: section {index} ({NAMES[kind]}) is not where the header says")
        shown = {"Type": NAMES[kind], "Offset": offset, "Size": size}
        if kind == CMDLINE:
            shown["CommandLine"] = data.decode("utf-8", "replace")
        if kind == METADATA:
            metadata = parse_metadata(path, data)
        sections.append(shown)
    if len(sections) != count:
        raise Wrong(f"{path} has {len(sections)} sections, its header says {count}")
    result = {
        "EifVersion": version,
        "Measurements": pcrs.values(),
        "IsSigned": any(section["Type"] == "signature" for section in sections),
        "CheckCRC": CRC.unpack(stored)[0] == crc,
    }
    if metadata:
        custom = metadata.get("CustomMetadata")
        result["ImageName"] = metadata["ImageName"]
        result["ImageVersion"] = metadata["ImageVersion"]
        result["Metadata"] = {
            **{key: metadata["BuildMetadata"][key] for key in BUILD_KEYS},
            "DockerInfo": metadata["DockerInfo"],
            **(custom if isinstance(custom, dict) else {}),
        }
    result["Header"] = {"Flags": flags, "DefaultMemory": memory, "DefaultCpus": cpus, "CRC32": stored.hex()}
    result["Sections"] = sections
    return result


def parse_metadata(path: Path, data: bytes) -> dict:
    try:
        metadata = json.loads(data)
        strings = [metadata["ImageName"], metadata["ImageVersion"]]
        strings += [metadata["BuildMetadata"][key] for key in BUILD_KEYS]
        if not all(isinstance(value, str) for value in strings) or "DockerInfo" not in metadata or "CustomMetadata" not in metadata:
            raise ValueError("a key is missing or of another type")
        return metadata
    except (ValueError, KeyError, TypeError) as error:
        raise Wrong(f"{path}: its metadata are not what nitro-cli expects: {error!r}") from error


def metadata(name: str, version: str, build: dict[str, str]) -> bytes:
    """The metadata section; `build` has `BUILD_KEYS`."""
    value = {
        "ImageName": name,
        "ImageVersion": version,
        "BuildMetadata": {key: build[key] for key in BUILD_KEYS},
        "DockerInfo": None,
        "CustomMetadata": None,
    }
    return json.dumps(value, separators=(",", ":")).encode()
