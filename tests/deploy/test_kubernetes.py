"""scripts/deploy/kubernetes: manifests against the API's schema and against each other, and host-netd as
its pod runs it."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
import unittest

import kubernetes_validate
import yaml

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "scripts/deploy/kubernetes"
HOST_NETD = pathlib.Path(os.environ["NETD_BIN_DIR"], "host-netd")
# The oldest that is supported upstream, roughly, and the newest that the package knows.
VERSIONS = "1.33", kubernetes_validate.latest_version()
EXAMPLES = {"example-enclave.yaml"}


class UniqueKeys(yaml.SafeLoader):
    """A key that stands twice is an error, as it is to the API's server."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.YAMLError(f"a key stands twice: {node.start_mark}")
        return super().construct_mapping(node, deep)


def load(name):
    return yaml.load((FOLDER / name).read_text(), UniqueKeys)


class Manifests(unittest.TestCase):
    def setUp(self):
        self.kustomization = load("kustomization.yaml")
        self.netd = load("host-netd.yaml")["spec"]["template"]["spec"]
        self.example = load("example-enclave.yaml")["spec"]["template"]["spec"]
        self.enclaves = tomllib.loads((FOLDER / "host-netd.toml").read_text())["enclave"]

    def test_the_api_knows_them(self):
        for name in {*self.kustomization["resources"], *EXAMPLES}:
            for version in VERSIONS:
                with self.subTest(name, version=version):
                    kubernetes_validate.validate(load(name), version, strict=True)

    def test_kustomization_has_all_and_only_what_is_there(self):
        there = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
        self.assertEqual(set(self.kustomization["resources"]), there - EXAMPLES)
        [generated] = self.kustomization["configMapGenerator"]
        [configuration] = [v for v in self.netd["volumes"] if "configMap" in v]
        self.assertEqual(configuration["configMap"]["name"], generated["name"])
        [file] = generated["files"]
        self.assertTrue((FOLDER / file).is_file())
        [container] = self.netd["containers"]
        self.assertEqual(container["args"], ["--config", f"/etc/host-netd/{file}"])
        self.assertEqual([image["name"] for image in self.kustomization["images"]], [container["image"]])
        self.assertEqual(self.kustomization["namespace"], load("namespace.yaml")["metadata"]["name"])

    def test_volumes_and_labels_belong_together(self):
        for name in "host-netd.yaml", "example-enclave.yaml":
            workload = load(name)
            spec = workload["spec"]
            self.assertEqual(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"])
            self.assertEqual(workload["metadata"]["namespace"], self.kustomization["namespace"])
            pod = spec["template"]["spec"]
            self.assertEqual(pod["nodeSelector"], {"aws-nitro-enclaves-k8s-dp": "enabled"})
            [container] = pod["containers"]
            self.assertEqual({m["name"] for m in container["volumeMounts"]}, {v["name"] for v in pod["volumes"]})

    def test_the_example_gets_what_its_enclave_takes(self):
        [container] = self.example["containers"]
        script = container["command"][-1]
        memory = re.search(r"--memory (\d+)", script)[1]
        self.assertLess(int(memory), 1024, "for more the allocator takes pages of 1 GiB")
        for amounts in container["resources"].values():
            self.assertEqual(amounts["hugepages-2Mi"], f"{memory}Mi")
            self.assertEqual(amounts["aws.ec2.nitro/nitro_enclaves"], "1")
        cids = {int(cid) for cid in re.findall(r'(?:--enclave-cid |EnclaveCID": )(\d+)', script)}
        self.assertEqual(len(cids), 1)
        self.assertLessEqual(cids, {enclave["cid"] for enclave in self.enclaves})
        checked = subprocess.run(["shellcheck", "--shell=bash", "-"], input=script, text=True, capture_output=True)
        self.assertEqual(checked.stdout, "")

    def test_the_example_lasts_as_long_as_its_enclave(self):
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        # There three times; then come more lines than a pipe holds.
        stand_ins = {"sleep": "", "nitro-cli": """
            echo "$1" >>calls
            [[ $1 == describe-enclaves && $(grep -c "$1" calls) -le 3 ]] || exit 0
            echo '"EnclaveCID": 16,'
            printf '%999999s\\n' ''
        """}
        for name, script in stand_ins.items():
            (folder / name).write_text(f"#!/bin/bash\n{script}")
            (folder / name).chmod(0o755)
        [container] = self.example["containers"]
        pod = subprocess.run(container["command"], cwd=folder, env={"PATH": f"{folder}:/usr/bin:/bin"},
                             text=True, capture_output=True, timeout=60)
        self.assertEqual((folder / "calls").read_text().split(), ["run-enclave"] + 4 * ["describe-enclaves"])
        self.assertEqual(pod.returncode, 1)
        self.assertIn("the enclave has ended", pod.stderr)

    def test_host_netd_runs_as_its_pod_does(self):
        [container] = self.netd["containers"]
        user = self.netd["securityContext"]["runAsUser"]
        self.assertEqual(f"USER {user}:{self.netd['securityContext']['runAsGroup']}",
                         re.search(r"(?m)^USER .*", (FOLDER / "Dockerfile").read_text())[0])
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o777)
        program = shutil.copy(HOST_NETD, folder / "host-netd")
        # The link alone differs: AF_VSOCK is not everywhere.
        text = (FOLDER / "host-netd.toml").read_text()
        (folder / "host-netd.toml").write_text(
            re.sub(r"(?m)^cid = (\d+)", rf'cid = \1\nlisten = "unix:{folder}/\1.sock"', text))
        admin = ["--admin", str(folder / "admin.sock")]
        # A user without a capability, in a network where loopback is down.
        as_pod = ["unshare", "--net", "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
                  "--bounding-set=-all", "--no-new-privs"]
        log = (folder / "log").open("w+")
        netd = subprocess.Popen([*as_pod, program, "--config", folder / "host-netd.toml", *admin], stderr=log)
        self.addCleanup(log.close)
        self.addCleanup(netd.wait)
        self.addCleanup(netd.kill)
        for probe in "startupProbe", "readinessProbe", "livenessProbe":
            command = container[probe]["exec"]["command"]
            self.assertEqual(command[0], "/host-netd")
            deadline = time.monotonic() + 10
            ask = [*as_pod, program, *command[1:], *admin]
            while (asked := subprocess.run(ask, capture_output=True)).returncode:
                self.assertLess(time.monotonic(), deadline, asked.stderr.decode() + (folder / "log").read_text())
                time.sleep(0.05)
        said = (folder / "log").read_text()
        self.assertIn('landlock=ABI', said)
        self.assertIn('seccomp="on"', said)
        limit = container["resources"]["limits"]["memory"]
        most = int(re.search(r"most_memory_mib=(\d+)", said)[1])
        self.assertLess(most, int(limit.removesuffix("Gi")) * 1024, said)
