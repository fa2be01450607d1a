"""The measurements of an image: PCR0 (all of it), PCR1 (boot) and PCR2 (application).

Each is one extension of a register of zeros: SHA-384 over 48 zero bytes and the SHA-384 of the
contents of some sections, one behind the other in the order of the image, without their headers.
Metadata are not measured. PCR3 (the parent's role), PCR4 (the parent's instance) and PCR8 (the
signer) are not known from these.
"""

import hashlib
import json
from pathlib import Path

from . import Wrong

# As in eif.
KERNEL, CMDLINE, RAMDISK = 1, 2, 3
# How AWS's tools print their hash; it says nothing beyond its name.
ALGORITHM = "Sha384 { ... }"
DIGITS = 96


class Pcrs:
    """Takes the sections in their order."""

    def __init__(self) -> None:
        self.image, self.boot, self.application = (hashlib.sha384() for _ in range(3))
        self.current: tuple = ()
        self.ramdisks = 0

    def begin(self, kind: int) -> None:
        """The next bytes belong to a section of this type."""
        if kind in (KERNEL, CMDLINE):
            self.current = (self.image, self.boot)
        elif kind == RAMDISK:
            self.current = (self.image, self.application if self.ramdisks else self.boot)
            self.ramdisks += 1
        else:
            self.current = ()

    def update(self, data: bytes) -> None:
        for digest in self.current:
            digest.update(data)

    def values(self) -> dict[str, str]:
        """In the shape that AWS's eif_build prints."""
        registers = {"PCR0": self.image, "PCR1": self.boot, "PCR2": self.application}
        return {
            "HashAlgorithm": ALGORITHM,
            **{name: extended(digest.digest()) for name, digest in registers.items()},
        }


def extended(digest: bytes) -> str:
    return hashlib.sha384(bytes(len(digest)) + digest).hexdigest()


def read(path: Path) -> dict[str, str]:
    """PCR0, 1 and 2 from pcr-values.json, or from what nitro-cli prints."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Wrong(f"{path} is no JSON: {error}") from error
    if isinstance(value, dict):
        value = value.get("Measurements", value)
    found = {}
    for name in ("PCR0", "PCR1", "PCR2"):
        pcr = value.get(name) if isinstance(value, dict) else None
        if not isinstance(pcr, str) or len(pcr) != DIGITS or set(pcr.lower()) - set("0123456789abcdef"):
            raise Wrong(f"{path} has no {name} of {DIGITS} hexadecimal digits: give the pcr-values.json of an image")
        if not int(pcr, 16):
            raise Wrong(f"{path}: {name} is zero, as in debug mode, which any image has: give the pcr-values.json of an image")
        found[name] = pcr.lower()
    return found
