"""Who signed a request: AWS's signature, version 4, computed again by botocore."""

import datetime

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ENCLAVE = "arn:aws:iam::123456789012:role/enclave"
# Access keys of the tests: the secret, whose they are, and the token that goes with a session's.
CALLERS = {
    "AKIATESTENCLAVE00001": ("enclave-secret", ENCLAVE, None),
    "AKIATESTADMIN0000001": ("admin-secret", "arn:aws:iam::123456789012:role/admin", None),
    "AKIATESTSTRANGER0001": ("stranger-secret", "arn:aws:iam::123456789012:role/stranger", None),
    "ASIATESTSESSION00001": ("session-secret", ENCLAVE, "token-1"),
    "ASIATESTEXPIRED00001": ("expired-secret", ENCLAVE, "token-2"),
}
EXPIRED = "token-2"
WINDOW = datetime.timedelta(minutes=5)
FORM = "%Y%m%dT%H%M%SZ"


class Refused(Exception):
    """Why a signature is not accepted, with AWS's name for it."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def caller(method, path, headers, body, now):
    """Whose request this is, and for which region."""
    authorization = headers.get("authorization", "")
    if not authorization.startswith("AWS4-HMAC-SHA256 "):
        raise Refused("MissingAuthenticationTokenException", "Missing Authentication Token")
    words = authorization.split(" ", 1)[1].split(",")
    parts = dict(word.strip().split("=", 1) for word in words)
    key, _, region, service, _ = parts["Credential"].split("/")
    token = headers.get("x-amz-security-token")
    if key not in CALLERS or token != CALLERS[key][2]:
        message = "The security token included in the request is invalid."
        raise Refused("UnrecognizedClientException", message)
    if token == EXPIRED:
        message = "The security token included in the request is expired"
        raise Refused("ExpiredTokenException", message)
    secret, arn, _ = CALLERS[key]
    stamp = headers["x-amz-date"]
    made = datetime.datetime.strptime(stamp, FORM).replace(tzinfo=datetime.timezone.utc)
    if made < now - WINDOW:
        limit = (now - WINDOW).strftime(FORM)
        message = f"Signature expired: {stamp} is now earlier than {limit} ({now.strftime(FORM)} - 5 min.)"
        raise Refused("InvalidSignatureException", message)
    if made > now + WINDOW:
        limit = (now + WINDOW).strftime(FORM)
        message = f"Signature not yet current: {stamp} is still later than {limit} ({now.strftime(FORM)} + 5 min.)"
        raise Refused("InvalidSignatureException", message)
    request = AWSRequest(method, f"https://{headers['host']}{path}", data=body)
    for name in parts["SignedHeaders"].split(";"):
        request.headers[name] = headers[name]
    request.context["timestamp"] = stamp
    signer = SigV4Auth(Credentials(key, secret), service, region)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    if signer.signature(text, request) != parts["Signature"]:
        message = "The request signature we calculated does not match the signature you provided."
        raise Refused("InvalidSignatureException", message)
    return arn, region
