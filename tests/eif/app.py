"""Asks enclave-app in the image of scripts/test-eif from outside: /dev/nsm, KMS and the services.

app.py keys FOLDER           makes keys in the tests' KMS, and with them the image's tenants.json
app.py check FOLDER PARENT   says PASS or FAIL of each thing; PARENT is the parent's namespace

FOLDER is the test's; this runs in the namespace of the internet.
"""

import base64
import hashlib
import http.client
import json
import os
import pathlib
import ssl
import subprocess
import sys
import time
import traceback
import urllib.request

import boto3
import cbor2
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = pathlib.Path(__file__).resolve().parent
HOST = "192.0.2.1"
ROLE = "arn:aws:iam::123456789012:role/"
ENCLAVE = ("AKIATESTENCLAVE00001", "enclave-secret")
ADMIN = ("AKIATESTADMIN0000001", "admin-secret")
CONTEXT = {"tenant_id": "acme"}
SECRET = b"the secret of acme"
failed = []


def check(name, condition, *seen):
    print("PASS" if condition else "FAIL", name, flush=True)
    if not condition:
        failed.append(name)
        for thing in seen:
            print(f"  {thing}", flush=True)


def kms_of(folder, role):
    """boto3, which is not ours."""
    key, secret = role
    return boto3.client(
        "kms",
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        verify=str(folder / "ca.pem"),
    )


def make_keys(folder):
    """The image names its key, so the key comes first; its policy names the image, so that comes last."""
    statement = {"Effect": "Allow", "Principal": {"AWS": f"{ROLE}admin"}, "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    kms = kms_of(folder, ADMIN)
    keys = {name: kms.create_key(Policy=policy)["KeyMetadata"]["Arn"] for name in ("ours", "another")}
    (folder / "keys.json").write_text(json.dumps(keys))
    tenants = {"tenants": {"acme": {"keys": [keys["ours"]]}}}
    (folder / "tenants.json").write_text(json.dumps(tenants))


class Enclave:
    """What is asked of the enclave."""

    def __init__(self, folder, parent):
        self.folder = folder
        self.parent = parent
        self.app = folder / "rootfs/usr/bin/enclave-app"
        self.keys = json.loads((folder / "keys.json").read_text())
        self.measured = json.loads((folder / "pcr-values.json").read_text())

    def run(self, *arguments, **environment):
        """Exit code, standard output and standard error of enclave-app in there."""
        body = json.dumps({"arguments": arguments, "environment": environment}).encode()
        with urllib.request.urlopen(f"http://{HOST}:8080/app", body, timeout=120) as answer:
            done = json.load(answer)
        return done["code"], done["stdout"], done["stderr"]

    def ok(self, *arguments, **environment):
        code, stdout, stderr = self.run(*arguments, **environment)
        if code != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {code}: {stderr}")
        return json.loads(stdout)

    def refused(self, name, code, words, *arguments):
        done = self.run(*arguments)
        check(name, done[0] == code and not done[1] and words in done[2], *done)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def give_policy(self, key, measured):
        file = self.folder / "measured.json"
        file.write_text(json.dumps(measured))
        words = ["kms", "policy", "--pcrs", file, "--principal", f"{ROLE}enclave", "--admin", f"{ROLE}admin"]
        policy = subprocess.run([self.app, *words], check=True, capture_output=True, text=True).stdout
        kms_of(self.folder, ADMIN).put_key_policy(KeyId=self.keys[key], PolicyName="default", Policy=policy)

    def seal(self, key):
        """What anybody with the role may encrypt, outside."""
        kms = kms_of(self.folder, ENCLAVE)
        blob = kms.encrypt(KeyId=self.keys[key], Plaintext=SECRET, EncryptionContext=CONTEXT)["CiphertextBlob"]
        return base64.b64encode(blob).decode()


def secure_module(enclave):
    said = enclave.ok("nsm", "describe")
    check("nsm describe", said["max_pcrs"] == 32 and said["digest"] == "SHA384" and 0 in said["locked_pcrs"], said)
    for index in range(3):
        said = enclave.ok("nsm", "describe-pcr", str(index))
        wanted = {"index": index, "locked": True, "value": enclave.measured[f"PCR{index}"]}
        check(f"nsm describe-pcr {index}: that of pcr-values.json", said == wanted, said)
    extended = enclave.ok("nsm", "extend-pcr", "16", "--data", "text:one")["value"]
    check("nsm extend-pcr 16", extended == hashlib.sha384(bytes(48) + b"one").hexdigest(), extended)
    said = enclave.ok("nsm", "describe-pcr", "16")
    check("nsm describe-pcr 16 tells the same", said == {"index": 16, "locked": False, "value": extended}, said)
    extend = ["nsm", "extend-pcr", "--data", "text:two"]
    enclave.refused("nsm extend-pcr 0 is refused", 7, "the PCR is locked", *extend, "0")
    enclave.ok("nsm", "lock-pcr", "16")
    enclave.refused("nsm lock-pcr 16: no more is hashed in", 7, "the PCR is locked", *extend, "16")
    enclave.ok("nsm", "lock-pcrs", "20")
    locked = enclave.ok("nsm", "describe")["locked_pcrs"]
    check("nsm lock-pcrs 20", set(range(20)) <= set(locked) and 20 not in locked, locked)
    enclave.refused("nsm extend-pcr 19 is refused then", 7, "the PCR is locked", *extend, "19")
    check("nsm extend-pcr 20 is not", "value" in enclave.ok(*extend, "20"))
    enclave.refused("nsm describe-pcr 32 is refused", 2, "usage: ", "nsm", "describe-pcr", "32")
    numbers = [enclave.ok("nsm", "random", "--bytes", "1000")["random"] for _ in range(2)]
    check("nsm random, twice", [len(number) for number in numbers] == [2000, 2000] and len(set(numbers)) == 2, *numbers)


def fields_of(document):
    """What a document says, read by cbor2."""
    return cbor2.loads(cbor2.loads(document)[2])


def attestation(enclave):
    words = ["--nonce", "hex:00112233", "--user-data", "text:hello", "--public-key", "text:a key"]
    document = base64.b64decode(enclave.ok("nsm", "attest", *words)["document"])
    (enclave.folder / "document").write_bytes(document)
    fields = fields_of(document)
    seen = {name: fields[name] for name in ("nonce", "user_data", "public_key")}
    check(
        "nsm attest: nonce, user data and public key are in the document",
        seen == {"nonce": b"\x00\x11\x22\x33", "user_data": b"hello", "public_key": b"a key"},
        seen,
    )
    pcrs = [fields["pcrs"][index].hex() for index in range(3)]
    check("nsm attest: the measurements of the image", pcrs == [enclave.measured[f"PCR{index}"] for index in range(3)], pcrs)
    check("nsm attest: the time", abs(fields["timestamp"] / 1000 - time.time()) < 300, fields["timestamp"])
    verify = [enclave.app, "attest", "verify", enclave.folder / "document"]
    done = subprocess.run(verify, capture_output=True, text=True)
    refused = done.returncode == 7 and not json.loads(done.stdout)["verified"]
    check("attest verify refuses it: nobody signed it", refused and "nobody signed it" in done.stderr, done)
    enclave.refused("nsm attest: more user data than fits is refused", 2, "512 bytes", "nsm", "attest", "--user-data", f"text:{'x' * 513}")


def served(enclave):
    trust = ssl.create_default_context()
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(HOST, 3000, timeout=60, context=trust)

    def fetch(path):
        connection.request("GET", path)
        return connection.getresponse().read()

    said = fetch("/")
    check("serve, by TLS on a published port", said.strip() == b"Hello from Nitro Enclave!", said)
    said = fetch("/health")
    check("serve /health", json.loads(said) == {"status": "ok"}, said)
    certificate = x509.load_der_x509_certificate(connection.sock.getpeercert(True))
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    said = fetch("/attestation?nonce=cafe&format=cose")
    fields = fields_of(said)
    bound = f"tls-key-sha256:{hashlib.sha256(key).hexdigest()}".encode()
    check("serve /attestation: the nonce", fields["nonce"] == b"\xca\xfe", fields)
    check("serve /attestation: the key of this very connection", fields["user_data"] == bound, fields["user_data"], bound)
    check("serve /attestation: the image", fields["pcrs"][0].hex() == enclave.measured["PCR0"])


def key_management(enclave):
    enclave.give_policy("ours", enclave.measured)
    enclave.give_policy("another", {**enclave.measured, "PCR0": "ab" * 48})
    begin = time.monotonic()
    first = enclave.ok("kms", "generate-random", AWS_EC2_METADATA_DISABLED="true", **credentials())["random"]
    print(f"  {time.monotonic() - begin:.1f} s for the first call", flush=True)
    check("kms generate-random, credentials from the environment", len(base64.b64decode(first)) == 32, first)
    alone = enclave.run("kms", "generate-random", AWS_EC2_METADATA_DISABLED="true")
    check("kms: with neither it has no credentials", alone[0] == 5, *alone)
    begin = time.monotonic()
    second = enclave.ok("kms", "generate-random")["random"]
    print(f"  {time.monotonic() - begin:.1f} s for another", flush=True)
    check("kms generate-random, the parent's role by IMDSv2 through the tunnel", second != first)
    log = enclave.log("kms")
    check("kms: the answers were sealed", log.count(f"GenerateRandom for {ROLE}enclave: sealed") >= 2, log)
    enclave.refused(
        "kms: where signed documents alone are believed, it is refused",
        7,
        "The attestation document is not signed",
        *["kms", "generate-random", "--region", "eu-west-1"],
    )
    sealed = enclave.seal("ours")
    decrypt = ["kms", "decrypt", "--context", "tenant_id=acme", "--ciphertext"]
    opened = enclave.ok(*decrypt, f"base64:{sealed}")["plaintext"]
    check("kms decrypt", base64.b64decode(opened) == SECRET, opened)
    enclave.refused("kms decrypt: a key for another image is refused", 6, "PCR values", *decrypt, f"base64:{enclave.seal('another')}")
    try:
        kms_of(enclave.folder, ENCLAVE).decrypt(CiphertextBlob=base64.b64decode(sealed), EncryptionContext=CONTEXT)
        check("kms: the same credentials outside are refused", False)
    except ClientError as error:
        check("kms: the same credentials outside are refused", error.response["Error"]["Code"] == "AccessDeniedException", error)
    plain = f"{ROLE}enclave: plain"
    calls = [line for line in enclave.log("kms").splitlines() if plain in line and not line.startswith("Encrypt")]
    check("kms: nothing secret left it unsealed", not calls, *calls)


def credentials():
    return dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ENCLAVE))


def crypto(enclave):
    def ask(*messages):
        """A program on the parent."""
        script = [sys.executable, HERE.parent / "servers/crypto_client.py", "127.0.0.1", "5000"]
        within = ["nsenter", f"--net=/run/netns/{enclave.parent}", "--"]
        words = [json.dumps(message) for message in messages]
        done = subprocess.run([*within, *script, *words], capture_output=True, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()] or [{}, done.stderr]

    text = SECRET.decode()
    health, made = ask({"action": "health"}, {"action": "encrypt", "tenant_id": "acme", "plaintext_result": text})
    healthy = {"success": True, "status": "healthy", "attestation_ready": True, "kms_ready": True}
    check("crypto: healthy", health == healthy, health, made)
    payload = made.get("encrypted_response")
    check("crypto: encrypt, for a program on the parent", made.get("success") is True and payload, made)
    opened, stranger = ask(
        {"action": "decrypt", "tenant_id": "acme", "encrypted_payload": payload, "request_id": "7"},
        {"action": "decrypt", "tenant_id": "zeta", "encrypted_payload": payload},
    )
    check("crypto: decrypt", opened == {"success": True, "request_id": "7", "plaintext": text}, opened)
    check("crypto: a tenant that is none is refused", stranger.get("success") is False, stranger)


def main():
    folder = pathlib.Path(sys.argv[2])
    if sys.argv[1] == "keys":
        return make_keys(folder)
    enclave = Enclave(folder, sys.argv[3])
    for part in (secure_module, attestation, served, key_management, crypto):
        try:
            part(enclave)
        except Exception:
            check(f"{part.__name__} could be asked", False, traceback.format_exc())
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    sys.exit(main())
