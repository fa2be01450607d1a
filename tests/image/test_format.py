"""The image's layout, its measurements and what --describe says, checked with other programs."""

import json
import struct
import unittest

from support import Bench, VERSION, elf, gzip_crc, kernel, listing, pcr, ramdisk, sections

AWS_CMDLINE = (
    "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd"
    " random.trust_cpu=on"
)


class Format(Bench):
    def test_header(self) -> None:
        image = self.build()
        magic, version, flags, memory, cpus, reserved, count = struct.unpack_from(">4sHHQQHH", image)
        self.assertEqual((magic, version, flags, reserved, count), (b".eif", 4, 0, 0, 5))
        self.assertEqual((memory, cpus), (1 << 30, 2))
        # Behind the two tables: nothing, and the CRC over all but itself.
        unused, crc = struct.unpack_from(">II", image, 540)
        self.assertEqual(unused, 0)
        self.assertEqual(crc, gzip_crc(image[:544] + image[548:]))

    def test_sections_stand_one_behind_the_other(self) -> None:
        image = self.build()
        found = sections(image)
        self.assertEqual([kind for kind, _ in found], [1, 2, 5, 3, 3])
        self.assertEqual(len(image), 548 + sum(12 + len(content) for _, content in found))
        self.assertEqual(found[0][1], kernel())
        self.assertEqual(found[1][1], AWS_CMDLINE.encode())

    def test_measurements(self) -> None:
        image = self.build()
        boot_kernel, cmdline, _, boot, application = (content for _, content in sections(image))
        expected = {
            "HashAlgorithm": "Sha384 { ... }",
            "PCR0": pcr(boot_kernel, cmdline, boot, application),
            "PCR1": pcr(boot_kernel, cmdline, boot),
            "PCR2": pcr(application),
        }
        self.assertEqual(json.loads((self.out / "pcr-values.json").read_text()), expected)

    def test_each_part_has_its_register(self) -> None:
        def registers(*more: object, **environment: str) -> tuple:
            self.build(*more, **environment)
            values = json.loads((self.out / "pcr-values.json").read_text())
            return values["PCR0"], values["PCR1"], values["PCR2"]

        first = registers()
        named = registers("--name", "other", "--version", "2", SOURCE_DATE_EPOCH="1700000000")
        self.assertEqual(named, first)
        boot = registers("--cmdline", "quiet")
        self.assertEqual([a == b for a, b in zip(first, boot)], [False, False, True])
        (self.root / "srv" / "more").write_text("more")
        application = registers()
        self.assertEqual([a == b for a, b in zip(first, application)], [False, True, False])

    def test_metadata_are_those_that_nitro_cli_reads(self) -> None:
        image = self.build("--name", "web", "--version", "3", SOURCE_DATE_EPOCH="1700000000")
        metadata = json.loads(sections(image)[2][1])
        self.assertEqual(metadata["ImageName"], "web")
        self.assertEqual(metadata["ImageVersion"], "3")
        build = metadata["BuildMetadata"]
        self.assertEqual(build["BuildTime"], "2023-11-14T22:13:20+00:00")
        self.assertEqual(build["KernelVersion"], VERSION)
        self.assertEqual(build["OperatingSystem"], "Linux")
        for key in ("BuildTool", "BuildToolVersion"):
            self.assertIsInstance(build[key], str)
        # These two must be there, whatever they hold.
        self.assertIn("DockerInfo", metadata)
        self.assertIn("CustomMetadata", metadata)

    def test_boot_ramdisk(self) -> None:
        names = listing(ramdisk(self.build(), 0))
        self.assertEqual(names.pop("dev/console"), "crw------- 1 0 0 5,1")
        self.assertEqual(names.pop("init"), f"-rwxr-xr-x 1 0 0 {len(elf())}")
        self.assertEqual(names.pop("modules/order"), "-rw-r--r-- 1 0 0 14")
        self.assertEqual(names.pop("modules/tun.ko"), "-rw-r--r-- 1 0 0 11")
        self.assertEqual(names.pop("modules/nsm.ko"), "-rw-r--r-- 1 0 0 11")
        self.assertEqual(set(names), {"dev", "modules", "proc", "run", "sys", "tmp"})

    def test_uncompressed(self) -> None:
        for index in (3, 4):
            content = sections(self.build("--compress", "none"))[index][1]
            self.assertTrue(content.startswith(b"070701"))
            # What follows it must be aligned for the kernel to see it.
            self.assertEqual(len(content) % 512, 0)
            self.assertIn("TRAILER!!!", content[-600:].decode("ascii", "replace"))

    def test_describe(self) -> None:
        self.build("--name", "web")
        result = self.run_script("--describe", self.out / "enclave.eif")
        self.assertEqual(result.returncode, 0, result.stderr)
        described = json.loads(result.stdout)
        self.assertEqual(described["EifVersion"], 4)
        self.assertEqual(described["Measurements"], json.loads((self.out / "pcr-values.json").read_text()))
        self.assertEqual((described["IsSigned"], described["CheckCRC"]), (False, True))
        self.assertEqual((described["ImageName"], described["ImageVersion"]), ("web", "1.0"))
        self.assertEqual(described["Metadata"]["KernelVersion"], VERSION)
        self.assertEqual([section["Type"] for section in described["Sections"]], ["kernel", "cmdline", "metadata", "ramdisk", "ramdisk"])

    def test_describe_tells_a_damaged_image(self) -> None:
        image = bytearray(self.build())
        image[600] ^= 1
        damaged = self.out / "damaged.eif"
        damaged.write_bytes(image)
        result = self.run_script("--describe", damaged)
        self.assertFalse(json.loads(result.stdout)["CheckCRC"])

    def test_describe_refuses_what_is_no_image(self) -> None:
        image = self.build()
        wrong = self.out / "wrong.eif"
        for content, expected in [
            (b"", "no enclave image"),
            (b"MZ" + image[2:], "no enclave image"),
            (image[:-1], "1 bytes are missing"),
            (image[:550], "ends within a section's header"),
            (image[:548] + b"\0\x09" + image[550:], "unknown type 9"),
            (image + image[548 : 548 + 12 + len(kernel())], "not where the header says"),
        ]:
            wrong.write_bytes(content)
            self.refuses(expected, "--describe", wrong)
        self.refuses("cannot read", "--describe", self.out / "none.eif")


if __name__ == "__main__":
    unittest.main()
