"""Wrong input: one line that says what to do, and nothing left behind."""

import json
import os
import signal
import subprocess
import unittest
from pathlib import Path

from support import CONFIG, SCRIPT, Bench, elf, kernel


class Configuration(Bench):
    def refuses_config(self, expected: str, config: str) -> None:
        with self.subTest(expected):
            (self.place / "enclave.toml").write_text(config)
            self.refuses_build(expected)

    def test_syntax(self) -> None:
        self.refuses_config("line 2", "a = 1\nb = = 2\n")
        (self.place / "enclave.toml").write_bytes(b"a = 1\n# \xff\n")
        self.refuses_build("line 2: not UTF-8")
        self.refuses_config("reads at most 1048576", CONFIG + "#" * (1 << 20))
        (self.place / "enclave.toml").unlink()
        self.refuses_build("cannot read")

    def test_program(self) -> None:
        self.refuses_config("has no program: add [program]", 'publish = ["443"]\n')
        self.refuses_config("has no program", "program = 3\n")
        self.refuses_config("program.command must be a list", "[program]\n")
        self.refuses_config("program.command must be a list", '[program]\ncommand = "/bin/hello"\n')
        self.refuses_config("program.command must be a list", "[program]\ncommand = []\n")
        self.refuses_config("program.comand is unknown", '[program]\ncomand = ["/bin/hello"]\n')
        self.refuses_config("program.environment must be a table", CONFIG + "environment = { PORT = 443 }\n")
        self.refuses_config("which no variable can have", CONFIG + "environment = { 'A=B' = 'x' }\n")
        self.refuses_config("has a NUL character", CONFIG.replace("world", "\\u0000"))

    def test_command(self) -> None:
        def with_command(word: str) -> str:
            return CONFIG.replace("/bin/hello", word)

        self.refuses_config("is not in the root file system; looked for /bin/helo", with_command("/bin/helo"))
        self.refuses_config("looked for /usr/local/sbin/helo, /usr/local/bin/helo", with_command("helo"))
        self.refuses_config("looked for /srv/bin/hello", with_command("bin/hello"))
        self.refuses_config("looked for /opt/hello", with_command("hello") + 'environment = { PATH = "/opt" }\n')
        self.refuses_config("is no file", with_command("/etc"))
        self.refuses_config("is not executable: chmod +x it (/etc/passwd", with_command("/etc/passwd"))

    def test_what_the_kernel_could_not_execute(self) -> None:
        cases = [
            ("neither a program for Linux nor a script", b"echo hello\n"),
            ("needs /bin/none, which is not in the root file system", b"#!/bin/none -x\n"),
            ("names no interpreter", b"#!\n"),
            ("needs /lib64/ld.so, which is not", elf(b"/lib64/ld.so")),
            ("another machine than x86_64", elf(machine=183)),
            ("deeper than the kernel follows", b"#!/bin/hello\n"),
        ]
        for expected, content in cases:
            with self.subTest(expected):
                (self.root / "bin" / "hello").write_bytes(content)
                self.refuses_build(expected)

    def test_what_can_be_found(self) -> None:
        (self.root / "usr").mkdir()
        (self.root / "bin").rename(self.root / "usr" / "bin")
        (self.root / "bin").symlink_to("/usr/bin")
        (self.root / "usr" / "bin" / "sh").symlink_to("../../../../bin/hello")
        (self.root / "srv" / "script").write_text("#! /bin/sh -e\n")
        (self.root / "srv" / "script").chmod(0o755)
        for word in ("/bin/hello", "hello", "/srv/script", "./script"):
            with self.subTest(word):
                (self.place / "enclave.toml").write_text(CONFIG.replace("/bin/hello", word))
                self.build()
        (self.root / "usr" / "bin" / "sh").unlink()
        (self.root / "usr" / "bin" / "sh").symlink_to("sh")
        self.refuses_build("needs /bin/sh")

    def test_user_and_directory(self) -> None:
        def with_user(value: str) -> str:
            return CONFIG.replace('"app"', value)

        self.refuses_config("program.user web is not in the root file system's /etc/passwd", with_user('"web"'))
        self.refuses_config("program.user must be a name", with_user('""'))
        self.refuses_config("program.user must be a name", with_user("true"))
        self.refuses_config("no user or group has a number above", with_user('"7:4294967295"'))
        self.refuses_config("program.directory /none is no folder", CONFIG.replace("/srv", "/none"))
        self.refuses_config("program.directory must be an absolute path", CONFIG.replace("/srv", "srv"))
        for value in ('"7"', '"7:8"', "7", '"root"'):
            (self.place / "enclave.toml").write_text(with_user(value))
            self.build()


class Parts(Bench):
    def test_kernel(self) -> None:
        vmlinuz = self.place / "vmlinuz"
        cases = [
            ("is an ELF vmlinux: give the bzImage", elf()),
            ("is no bzImage", b"MZ" + bytes(0x4000)),
            ("is no bzImage", kernel()[:0x300]),
            ("is no bzImage", kernel()[:0x211] + b"\0" + kernel()[0x212:]),
        ]
        for expected, content in cases:
            with self.subTest(expected):
                vmlinuz.write_bytes(content)
                self.refuses_build(expected)
        vmlinuz.unlink()
        self.refuses_build("cannot read")
        vmlinuz.mkdir()
        self.refuses_build("neither bzImage nor vmlinuz")

    def test_kernel_configuration(self) -> None:
        needed = ["BLK_DEV_INITRD", "RD_GZIP", "DEVTMPFS", "TUN", "VIRTIO_MMIO", "VSOCKETS", "VIRTIO_VSOCKETS"]
        config = self.place / "config"

        def refuses(expected: str, **changed: str) -> None:
            values = {**{name: "y" for name in needed}, **changed}
            config.write_text("".join(f"CONFIG_{name}={value}\n" for name, value in values.items() if value))
            if expected:
                self.refuses_build(expected, "--kernel-config", config)
            else:
                self.build("--kernel-config", config)

        refuses("")
        refuses("", TUN="m")
        for name in needed:
            refuses(f"is without CONFIG_{name}", **{name: ""})
        refuses("has CONFIG_VSOCKETS as a module: add vsock.ko", VSOCKETS="m")
        refuses("has CONFIG_RD_GZIP as a module", RD_GZIP="m")

    def test_modules(self) -> None:
        modules = self.place / "modules"
        (modules / "order").write_text("tun.ko\nvsock.ko\n")
        self.refuses_build("names vsock.ko, which is not in")
        (modules / "order").write_text("../modules/tun.ko\n")
        self.refuses_build("is no file name of a decompressed module")
        (modules / "order").write_text("tun.ko\n")
        (modules / "tun.ko").write_bytes(b"\xfd7zXZ\0")
        self.refuses_build("is no module, or compressed")
        (modules / "order").unlink()
        self.refuses_build("has several modules: write their file names into")
        self.refuses_build("is no folder", "--modules", self.place / "none")

    def test_command_line(self) -> None:
        self.refuses_build("one line of less than 2048 ASCII", "--cmdline", "quiet\npanic=1")
        self.refuses_build("one line of less than 2048 ASCII", "--cmdline", "x" * 2048)

    def test_a_folder_of_aws(self) -> None:
        blobs = self.place / "blobs"
        blobs.mkdir()
        (blobs / "bzImage").write_bytes(kernel())
        (blobs / "bzImage.config").write_text("CONFIG_TUN=y\n")
        (blobs / "cmdline").write_text("reboot=k quiet\n")
        (blobs / "nsm.ko").write_bytes(b"\x7fELF nsm")
        (blobs / "init").write_bytes(elf())
        arguments = ["--kernel", blobs, "--enclave-netd", self.place / "init", "-o", self.out / "x.eif", self.root, self.place / "enclave.toml"]
        self.refuses("is without CONFIG_BLK_DEV_INITRD", *arguments)
        (blobs / "bzImage.config").unlink()
        result = self.run_script(*arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        described = json.loads(self.run_script("--describe", self.out / "x.eif").stdout)
        self.assertEqual(described["Sections"][1]["CommandLine"], "reboot=k quiet")

    def test_enclave_netd(self) -> None:
        init = self.place / "init"
        init.write_bytes(elf(b"/lib64/ld-linux-x86-64.so.2"))
        self.refuses_build("is linked dynamically")
        init.write_bytes(b"#!/bin/sh\n")
        self.refuses_build("is no program for x86_64 Linux")
        init.write_bytes(elf(machine=183))
        self.refuses_build("is no program for x86_64 Linux")
        init.unlink()
        self.refuses_build("cannot read")

    def test_what_enclave_netd_says_of_the_configuration(self) -> None:
        init = self.place / "init"
        init.write_bytes(elf(complaint=b"enclave-netd: configuration x: rules = nonsense\n"))
        self.refuses_build("build-enclave: configuration x: rules = nonsense")
        self.refuses("rules = nonsense", *self.options(), "--dockerfile", self.out / "d", self.root, self.place / "enclave.toml")
        init.write_bytes(elf())
        self.build()
        self.assertEqual(self.notes, "")
        init.chmod(0o644)
        self.build()
        self.assertIn("cannot be run here (Permission denied): of", self.notes)

    def test_without_the_musl_target(self) -> None:
        tools = self.place / "tools"
        tools.mkdir()
        for name, text in [("cargo", "exit 9"), ("rustc", 'case $1 in --print) echo /nonexistent ;; esac')]:
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        arguments = ["--kernel", self.place / "vmlinuz", "-o", self.out / "x.eif", self.root, self.place / "enclave.toml"]
        path = f"{tools}:{os.environ['PATH']}"
        self.refuses("run rustup target add x86_64-unknown-linux-musl", *arguments, PATH=path)

    def test_places(self) -> None:
        config = self.place / "enclave.toml"
        self.refuses_build("there is no", rootfs=self.place / "none")
        empty = self.place / "empty"
        empty.mkdir()
        self.refuses_build("is empty", rootfs=empty)
        self.refuses("there is no folder", *self.options(), "-o", self.place / "none" / "x.eif", self.root, config)
        self.refuses("need --kernel", "--modules", self.place / "modules", self.root, config)
        self.refuses("--module is for the Debian kernel", "--module", "nfs", *self.options(), self.root, config)
        self.refuses_build("is no time in seconds", SOURCE_DATE_EPOCH="yesterday")

    def test_mount_points_are_folders(self) -> None:
        (self.root / "tmp").symlink_to("srv")
        self.refuses_build("/tmp of the root file system is no folder")

    def test_an_image_is_replaced_whole_or_not_at_all(self) -> None:
        image = self.build()
        (self.place / "pcrs").mkdir()
        self.refuses_build("", "--pcrs", self.place / "pcrs")
        self.assertEqual((self.out / "enclave.eif").read_bytes(), image)

    def test_an_end_by_a_signal_leaves_nothing(self) -> None:
        # The build waits in this pipe, with both files open under their other names.
        os.mkfifo(self.place / "pipe")
        program = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
sys.dont_write_bytecode = True
from enclave_image import command, eif
def write(*_):
    open({str(self.place / "pipe")!r}).read()
eif.write = write
sys.exit(command.main())
"""
        arguments = [*self.options(), "-o", self.out / "x.eif", self.root, self.place / "enclave.toml"]
        build = subprocess.Popen(["python3", "-c", program, *map(str, arguments)])
        with open(self.place / "pipe", "w"):
            self.assertEqual(len(list(self.out.iterdir())), 2)
            build.send_signal(signal.SIGTERM)
            self.assertEqual(build.wait(), 143)
        self.assertEqual(list(self.out.iterdir()), [])


class Policy(Bench):
    def test_policy(self) -> None:
        self.build()
        values = json.loads((self.out / "pcr-values.json").read_text())
        role = "arn:aws:iam::111122223333:role/parent"
        for content in (values, {"Measurements": values}):
            (self.out / "p.json").write_text(json.dumps(content))
            result = self.run_script("--policy", self.out / "p.json", "--principal", role)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            (statement,) = json.loads(result.stdout)["Statement"]
            self.assertEqual((statement["Effect"], statement["Principal"]), ("Allow", {"AWS": role}))
            self.assertEqual(
                statement["Condition"],
                {
                    "StringEqualsIgnoreCase": {
                        "kms:RecipientAttestation:ImageSha384": values["PCR0"],
                        "kms:RecipientAttestation:PCR1": values["PCR1"],
                        "kms:RecipientAttestation:PCR2": values["PCR2"],
                    }
                },
            )
            # What takes no attestation document would never meet the condition.
            self.assertTrue(set(statement["Action"]) <= {"kms:Decrypt", "kms:DeriveSharedSecret", "kms:GenerateDataKey", "kms:GenerateDataKeyPair"})

    def test_refusals(self) -> None:
        wrong = self.out / "p.json"
        good = {f"PCR{index}": "ab" * 48 for index in range(3)}
        for expected, content in [
            ("is no JSON", "PCR0"),
            ("has no PCR0", "[]"),
            ("has no PCR1", json.dumps({"PCR0": "ab" * 48})),
            ("has no PCR2", json.dumps({**good, "PCR2": "xy" * 48})),
            ("as in debug mode", json.dumps({**good, "PCR0": "00" * 48})),
        ]:
            wrong.write_text(content)
            self.refuses(expected, "--policy", wrong)
        wrong.write_text(json.dumps(good))
        self.refuses("give the ARN of a role", "--policy", wrong, "--principal", "parent")
        self.refuses("cannot read", "--policy", self.out / "none")


class Docker(Bench):
    def docker(self, folder: Path) -> list[object]:
        return [*self.options(), "--dockerfile", folder, self.root, self.place / "enclave.toml"]

    def test_folder(self) -> None:
        (self.root / "srv" / "a").write_text("linked")
        os.link(self.root / "srv" / "a", self.root / "srv" / "b")
        folder = self.out / "docker"
        for _ in range(2):
            result = self.run_script(*self.docker(folder))
            self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual({file.name for file in folder.iterdir()}, {"Dockerfile", "enclave-netd", "enclave.toml", "rootfs.tar"})
        self.assertEqual([file.name for file in self.out.iterdir()], ["docker"])
        text = (folder / "Dockerfile").read_text()
        for line in ("FROM scratch", "ADD rootfs.tar /", "COPY enclave-netd enclave.toml /", 'CMD ["/enclave-netd", "init"]'):
            self.assertIn(line + "\n", text)
        unpacked = self.place / "unpacked"
        unpacked.mkdir()
        subprocess.run(["tar", "-xf", folder / "rootfs.tar", "-C", unpacked, "--no-same-owner"], check=True)
        subprocess.run(["diff", "-r", self.root / "srv", unpacked / "srv"], check=True)
        self.assertEqual((unpacked / "srv" / "a").stat().st_nlink, 2)
        self.assertTrue(os.access(folder / "enclave-netd", os.X_OK))

    def test_refusals(self) -> None:
        (self.out / "mine").mkdir()
        (self.out / "mine" / "letter").write_text("keep")
        self.refuses("holds something else than a Docker build", *self.docker(self.out / "mine"))
        (self.root / "enclave.toml").write_text("")
        self.refuses("has a /enclave.toml of its own", *self.docker(self.out / "docker"))


if __name__ == "__main__":
    unittest.main()
