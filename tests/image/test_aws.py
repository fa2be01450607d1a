"""The same bytes and measurements as AWS's builder makes of the same parts.

`RECORDED` is what `aws/` (AWS's crate aws-nitro-enclaves-image-format 0.3.0) printed. To record it
again:

    python3 -B tests/image/test_aws.py FOLDER
    cargo run --manifest-path tests/image/aws/Cargo.toml -- build FOLDER
    sha256sum FOLDER/image.eif
"""

import hashlib
import io
import sys
import unittest
from pathlib import Path

import support

sys.path.insert(0, str(support.SCRIPT.parent))
from enclave_image import eif

BUILD = {
    "BuildTime": "2023-11-14T22:13:20+00:00",
    "BuildTool": "build-enclave",
    "BuildToolVersion": "0.1.0",
    "OperatingSystem": "Linux",
    "KernelVersion": support.VERSION,
}
PARTS = {
    "kernel": support.kernel(),
    "cmdline": b"reboot=k panic=30 console=ttyS0",
    "metadata.json": eif.metadata("web", "3", BUILD),
    "boot": b"not a ramdisk, but measured as one" * 1001,
    "application": b"another" * 77_777,
}
RECORDED = {
    "sha256": "ca3d56814a68315f9bd9d9a5144126ebe0da99bb755c82f57548c67cd94f8715",
    "PCR0": "32eb0c74645b39b7e0881d3d8b540b1c7a03b4aa528b4dcf71d15bb8b91745a3071f42cee83b7eebd56f30a04d75e65f",
    "PCR1": "5a3614a8d68530557480423340c218d816659c236482e4f1f917b403b0da02597404437db0b69ba211c741a4e1a04552",
    "PCR2": "a67c7eb54064400f563a16195059d8e73c0d6fcef28a51c7b202847f817a93dc3a6d789d59e0b60fdc85621e2e2a76ff",
}


class Aws(unittest.TestCase):
    def test_same_as_aws(self) -> None:
        kinds = (eif.KERNEL, eif.CMDLINE, eif.METADATA, eif.RAMDISK, eif.RAMDISK)
        output = io.BytesIO()
        pcrs = eif.write(output, [eif.Section(kind, part) for kind, part in zip(kinds, PARTS.values())]).values()
        self.assertEqual(pcrs.pop("HashAlgorithm"), "Sha384 { ... }")
        self.assertEqual({"sha256": hashlib.sha256(output.getvalue()).hexdigest(), **pcrs}, RECORDED)


if __name__ == "__main__":
    for name, part in PARTS.items():
        (Path(sys.argv[1]) / name).write_bytes(part)
