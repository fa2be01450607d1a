"""The AWS of the tests: moto, made honest.

moto keeps keys and queues, but believes everybody. In front of it this checks what AWS checks: who
signed a request and when, what a key's policy allows, whether a key is enabled, and for a
`Recipient` the attestation document, under the test's own root. Its answer to a `Recipient` is
sealed as KMS does it.

Some regions misbehave, for tests of clients:
  eu-west-2       ignores `Recipient` and answers in plain text, as moto does
  ap-southeast-1  has a clock that is an hour ahead
  ca-central-1    changes what it sealed
  sa-east-1       seals for somebody else
  eu-west-3       breaks off in the middle of what it sealed
  eu-south-1      breaks off in the middle of its answers
  ap-south-1      answers with a page for people
  ap-east-1       answers with fields of other kinds

usage: server.py PORT ROOT-CERTIFICATE-DER [--accept-unsigned REGION]
  in that region documents without any signature are believed: QEMU's secure module makes such
"""

import argparse
import base64
import datetime
import email.utils
import hashlib
import io
import json
import pathlib
import sys

import attestation
import envelope
import policy
import signature
from cryptography.hazmat.primitives.asymmetric import rsa
from moto.kms.models import kms_backends
from moto.kms.utils import _deserialize_ciphertext_blob
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

ACCOUNT = "123456789012"
IGNORES_RECIPIENT = "eu-west-2"
HOUR_AHEAD = "ap-southeast-1"
# What some do to a sealed answer, and to any.
SEALS = {
    "ca-central-1": lambda sealed: sealed[:200] + bytes([sealed[200] ^ 1]) + sealed[201:],
    "sa-east-1": lambda _: envelope.seal(somebody(), b"x" * 32),
    "eu-west-3": lambda sealed: sealed[: len(sealed) // 2],
}
BODIES = {
    "ap-south-1": lambda _: b"<html><body>It works!</body></html>",
    "ap-east-1": lambda _: b'{"CiphertextForRecipient": 5, "Plaintext": {}, "KeyId": []}',
}
BREAKS_OFF = "eu-south-1"
ATTESTABLE = ("Decrypt", "GenerateDataKey", "GenerateRandom")


def somebody():
    """A public key that nobody asks with."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()


class Refused(Exception):
    """An error as AWS answers it."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Honest:
    """The WSGI application in front of moto's."""

    def __init__(self, root, accept_unsigned):
        self.moto = DomainDispatcherApplication(create_backend_app)
        # The dispatcher searches its folder for each request; these are most.
        self.kms = create_backend_app("kms")
        self.root = root
        self.accept_unsigned = accept_unsigned

    def __call__(self, environ, start_response):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        now = datetime.datetime.now(datetime.timezone.utc)
        if f".{HOUR_AHEAD}." in environ["HTTP_HOST"]:
            now += datetime.timedelta(hours=1)
        date = ("Date", email.utils.format_datetime(now, usegmt=True))
        try:
            answer = self.answer(environ, body, now)
        except (Refused, signature.Refused) as refused:
            body = json.dumps({"__type": refused.code, "message": str(refused)}).encode()
            print(f"refused: {refused.code}: {refused}", file=sys.stderr)
            kind = ("Content-Type", "application/x-amz-json-1.1")
            head = [kind, ("Content-Length", str(len(body))), date]
            start_response("400 Bad Request", head)
            return [body]
        status, headers, body = answer
        kept = [h for h in headers if h[0].lower() not in ("content-length", "date", "server")]
        region = environ["HTTP_HOST"].split(".")[1]
        body = BODIES.get(region, bytes)(body)
        start_response(status, [*kept, ("Content-Length", str(len(body))), date])
        return [body[: len(body) // 2] if region == BREAKS_OFF else body]

    def answer(self, environ, body, now):
        names = {k[5:].replace("_", "-").lower(): v for k, v in environ.items() if k[:5] == "HTTP_"}
        names["content-type"] = environ.get("CONTENT_TYPE", "")
        names["content-length"] = environ.get("CONTENT_LENGTH", "")
        path = environ.get("PATH_INFO", "/")
        caller, region = signature.caller(environ["REQUEST_METHOD"], path, names, body, now)
        service, _, action = names.get("x-amz-target", "").partition(".")
        if service != "TrentService":
            return self.forward(self.moto, environ, body)
        if f"kms.{region}." not in names["host"]:
            raise Refused("InvalidSignatureException", "Credential should be scoped to this region.")
        request = json.loads(body)
        recipient = request.pop("Recipient", None)
        if recipient and region != IGNORES_RECIPIENT:
            document = self.document(action, recipient, region)
        else:
            document = None
        self.permit(action, request, caller, region, document)
        status, headers, answered = self.forward(self.kms, environ, json.dumps(request).encode())
        if document and status.startswith("200"):
            fields = json.loads(answered)
            sealed = envelope.seal(document.key, base64.b64decode(fields.pop("Plaintext")))
            sealed = SEALS.get(region, bytes)(sealed)
            fields["CiphertextForRecipient"] = base64.b64encode(sealed).decode()
            answered = json.dumps(fields).encode()
        print(f"{action} for {caller}: {'sealed' if document else 'plain'}", file=sys.stderr)
        return status, headers, answered

    def document(self, action, recipient, region):
        if action not in ATTESTABLE:
            raise Refused("ValidationException", f"{action} takes no Recipient")
        if recipient.get("KeyEncryptionAlgorithm") != "RSAES_OAEP_SHA_256":
            raise Refused("ValidationException", "KeyEncryptionAlgorithm is not RSAES_OAEP_SHA_256")
        try:
            raw = base64.b64decode(recipient["AttestationDocument"])
            return attestation.Document(raw, self.root, region == self.accept_unsigned)
        except attestation.Refused as refused:
            message = f"The attestation document {refused}."
            raise Refused("ValidationException", message) from refused

    def permit(self, action, request, caller, region, document):
        backend = kms_backends[ACCOUNT][region]
        if action == "Decrypt":
            try:
                blob = _deserialize_ciphertext_blob(base64.b64decode(request["CiphertextBlob"]))
            except Exception as error:
                raise Refused("InvalidCiphertextException", "") from error
            key = backend.keys.get(blob.key_id)
        elif "KeyId" in request:
            try:
                key = backend.keys.get(backend.any_id_to_key_id(request["KeyId"]))
            except Exception:
                key = None
        else:
            return
        if key is None:
            raise Refused("NotFoundException", f"Key '{request.get('KeyId', '')}' does not exist")
        if action == "Decrypt" and request.get("KeyId", key.arn) not in (key.arn, key.id):
            message = "The key ID in the request does not identify a CMK that can perform this operation."
            raise Refused("IncorrectKeyException", message)
        pcrs = document.pcrs if document else None
        if not policy.allows(json.loads(key.policy), caller, f"kms:{action}", pcrs):
            message = (
                f"User: {caller} is not authorized to perform: kms:{action} on resource: {key.arn}"
                f" because no resource-based policy allows the kms:{action} action"
            )
            raise Refused("AccessDeniedException", message)
        if action in ("Decrypt", "Encrypt", "GenerateDataKey"):
            if key.key_state == "PendingDeletion":
                raise Refused("KMSInvalidStateException", f"{key.arn} is pending deletion.")
            if not key.enabled:
                raise Refused("DisabledException", f"{key.arn} is disabled.")

    @staticmethod
    def forward(moto, environ, body):
        """Asks moto."""
        inner = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        said = []

        def start_response(status, headers, exc_info=None):
            said.extend([status, headers])

        answered = b"".join(moto(inner, start_response))
        return said[0], said[1], answered


class Handler(MotoRequestHandler):
    """Leaves the time of an answer to the application."""

    def send_response(self, code, message=None):
        self.log_request(code)
        self.send_response_only(code, message)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("root", type=pathlib.Path)
    parser.add_argument("--accept-unsigned", metavar="REGION")
    arguments = parser.parse_args()
    digest = hashlib.sha256(arguments.root.read_bytes()).digest()
    print("serving", file=sys.stderr, flush=True)
    run_simple(
        "127.0.0.1",
        arguments.port,
        Honest(digest, arguments.accept_unsigned),
        threaded=True,
        request_handler=Handler,
    )


main()
