"""What the instance does with its user data: in a copy of this machine, under namespaces of its own.

rpm, dnf, aws and systemctl are stand-ins there: the first three do what AWS's do for the boot script,
systemctl notes what it was asked. What came of it is given to systemd and host-netd."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import yaml

from test_terraform import Evaluation

BIN = pathlib.Path(os.environ["NETD_BIN_DIR"])
STAND_INS = {
    "rpm": "[[ -e /usr/bin/nitro-cli ]]",
    "dnf": """
        echo "dnf $*" >>/calls
        [[ " $* " == *" install "*" aws-nitro-enclaves-cli "* ]]
        mkdir -p /etc/nitro_enclaves
        echo 'memory_mib: 512' >/etc/nitro_enclaves/allocator.yaml
        printf '#!/bin/sh\\n' >/usr/bin/nitro-cli
        chmod +x /usr/bin/nitro-cli
        printf '[Service]\\nType=oneshot\\nExecStart=/bin/true\\n[Install]\\nWantedBy=multi-user.target\\n' \\
            >/usr/lib/systemd/system/nitro-enclaves-allocator.service
    """,
    "aws": """
        echo "aws $*" >>/calls
        [[ "$1 $2" == 's3 cp' ]] || exit 2
        set -- "${@: -2}"
        [[ $1 == s3://artifacts/* ]] && cp "/bucket/${1#s3://artifacts/}" "$2"
    """,
    "systemctl": 'echo "systemctl $*" >>/calls',
    "sysctl": 'echo "sysctl $*" >>/calls',
}
# A root that is this machine's, with its changes in memory, and a network of its own.
ENTER = """
set -euo pipefail
mount -t tmpfs -o mode=755 boot "$1"
mkdir "$1"/{upper,overlay,root}
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/overlay" overlay "$1/root"
mount -t proc proc "$1/root/proc"
for folder in dev run tmp; do mount -t tmpfs -o mode=755 "$folder" "$1/root/$folder"; done
for device in null zero urandom random; do
    touch "$1/root/dev/$device"
    mount --bind "/dev/$device" "$1/root/dev/$device"
done
ip link set lo up
exec sleep infinity
"""


class Machine:
    def __init__(self, test):
        top = tempfile.mkdtemp()
        test.addCleanup(shutil.rmtree, top)
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--propagation", "private",
             "bash", "-c", ENTER, "enter", top], stdout=subprocess.PIPE)
        test.addCleanup(self.end)
        self.top = top
        self.inner = None
        while self.inner is None:
            if self.process.poll() is not None:
                raise RuntimeError("the copy of the machine was not made")
            tasks = pathlib.Path(f"/proc/{self.process.pid}/task")
            children = (tasks / str(self.process.pid) / "children").read_text().split()
            if children and pathlib.Path(f"/proc/{children[0]}/comm").read_text() == "sleep\n":
                self.inner = children[0]
        self.root = pathlib.Path(f"/proc/{self.inner}/root{top}/root")

    def end(self):
        self.process.kill()
        self.process.communicate()

    def write(self, path, content, mode=0o644):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        # Not through to a file of this machine: the overlay copies it.
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        file.chmod(mode)

    def read(self, path):
        return (self.root / path.lstrip("/")).read_bytes()

    def run(self, *command):
        return subprocess.run(
            ["nsenter", "--target", self.inner, "--mount", "--pid", "--net", "chroot", f"{self.top}/root",
             "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command],
            capture_output=True, text=True, timeout=60)


class Boot(unittest.TestCase):
    def setUp(self):
        self.machine = Machine(self)
        for name, script in STAND_INS.items():
            for folder in "/usr/bin", "/usr/sbin":
                (self.machine.root / folder[1:] / name).unlink(missing_ok=True)
            self.machine.write(f"/usr/bin/{name}", f"#!/bin/bash\nset -e\n{script}\n", 0o755)
        evaluation = Evaluation(self)
        shutil.copy(BIN / "host-netd", evaluation.folder / "host-netd")
        values = evaluation.run()
        self.checksums = values["checksums"]
        for path, source in values["sources"].items():
            self.machine.write(f"/bucket/{self.checksums[path]}", (evaluation.folder / source).read_bytes())
        for path, text in values["rendered"].items():
            self.machine.write(f"/bucket/{self.checksums[path]}", text)
        # As cloud-init does.
        user_data = yaml.safe_load(values["user_data"])
        for file in user_data["write_files"]:
            self.machine.write(file["path"], file["content"], int(file["permissions"], 8))
        [self.command] = user_data["runcmd"]

    def boot(self):
        self.machine.write("/calls", "")
        return self.machine.run(*self.command)

    def calls(self, program):
        lines = self.machine.read("/calls").decode().splitlines()
        return [line.split(" ", 1)[1] for line in lines if line.startswith(f"{program} ")]

    def test_what_is_fetched_lies_where_the_units_expect_it(self):
        booted = self.boot()
        self.assertEqual(booted.returncode, 0, booted.stderr)
        for path, checksum in self.checksums.items():
            self.assertEqual(hashlib.sha256(self.machine.read(path)).hexdigest(), checksum, path)
            mode = (self.machine.root / path.lstrip("/")).stat().st_mode & 0o777
            self.assertEqual(mode, 0o755 if path.startswith("/usr/bin/") else 0o644, path)
        self.assertEqual(self.calls("systemctl"), [
            "daemon-reload", "enable --now nitro-enclaves-allocator.service",
            "enable --now host-netd.service enclave@16.service"])

        # Files, users and keys that units name; an unknown key is a warning only.
        units = ["/etc/systemd/system/host-netd.service", "/etc/systemd/system/enclave@16.service"]
        (self.machine.root / units[1][1:]).symlink_to("enclave@.service")
        verified = self.machine.run("systemd-analyze", "verify", "--man=no", *units)
        self.assertEqual((verified.returncode, verified.stdout + verified.stderr), (0, ""))
        unit = self.machine.read(units[1]).decode().replace("%i", "16")
        paths = re.findall(r"[= ](/[^ \n]+)", re.sub(r"(?m)^#.*", "", unit))
        self.assertEqual(len(paths), 4)
        for path in paths:
            self.assertTrue((self.machine.root / path[1:]).is_file(), path)

        # host-netd takes its file, but for the link: AF_VSOCK is not everywhere.
        said = self.machine.run(
            "bash", "-c", """
            sed '/^cid/a listen = "unix:/run/16.sock"' /etc/host-netd/host-netd.toml >/run/host-netd.toml
            host-netd --config /run/host-netd.toml --admin /run/admin.sock 2>/run/log &
            for _ in {1..100}; do
                ! host-netd status --json --admin /run/admin.sock 2>/dev/null || break
                kill -0 $! || break
                sleep 0.1
            done
            grep -o 'listening address=.*' /run/log || cat /run/log >&2
            python3 -c 'import socket; socket.create_connection(("127.0.0.1", 443)); print("published")'
            kill $!; wait $!""")
        self.assertIn('"enclaves":[]', said.stdout.replace(" ", ""), said.stderr)
        self.assertIn("published", said.stdout, said.stderr)

    def test_a_second_time_changes_nothing(self):
        self.boot()
        before = {path: (self.machine.root / path[1:]).stat().st_mtime_ns for path in self.checksums}
        booted = self.boot()
        self.assertEqual((booted.returncode, booted.stdout), (0, ""), booted.stderr)
        self.assertEqual(self.calls("aws") + self.calls("dnf"), [])
        after = {path: (self.machine.root / path[1:]).stat().st_mtime_ns for path in self.checksums}
        self.assertEqual(before, after)

    def test_what_was_changed_on_the_way_is_not_installed(self):
        object_ = f"/bucket/{self.checksums['/usr/bin/host-netd']}"
        right = self.machine.read(object_)
        self.machine.write(object_, b"another program")
        booted = self.boot()
        self.assertEqual(booted.returncode, 1)
        self.assertIn("what came for /usr/bin/host-netd has another checksum", booted.stderr)
        for path in "/usr/bin/host-netd", "/usr/bin/host-netd.new":
            self.assertFalse((self.machine.root / path[1:]).exists(), path)
        self.assertEqual(self.calls("systemctl"), [])

        self.machine.write(object_, right)
        booted = self.boot()
        self.assertEqual(booted.returncode, 0, booted.stderr)
        self.assertEqual(self.calls("dnf"), [])
        self.assertEqual(self.machine.read("/usr/bin/host-netd"), right)
