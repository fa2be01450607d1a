"""Whether to believe an attestation document: an implementation that shares nothing with ours."""

import datetime
import functools
import hashlib

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils


class Refused(Exception):
    """Why a document is not believed."""


# A secure module shows the same certificates for hours: what does not change is found out once.
@functools.lru_cache
def load(der):
    """A certificate, parsed."""
    return x509.load_der_x509_certificate(der)


@functools.lru_cache
def verify_issued(below, above):
    """Raises unless one certificate is signed by the other."""
    below.verify_directly_issued_by(above)


class Document:
    """A document that is to be believed: its measurements and its public key. One without any
    signature, as an emulated secure module makes it, only with `accept_unsigned`."""

    def __init__(self, raw, root, accept_unsigned=False):
        try:
            protected, _, payload, signature = cbor2.loads(raw)
            fields = cbor2.loads(payload)
        except Exception as error:
            raise Refused(f"cannot be parsed ({type(error).__name__})") from error
        now = datetime.datetime.now(datetime.timezone.utc)
        if any(signature):
            _check_signature(protected, payload, signature, fields, root, now)
        elif not accept_unsigned:
            raise Refused("is not signed")
        age = now.timestamp() - fields["timestamp"] / 1000
        if not -300 <= age <= 300:
            raise Refused("is not fresh")
        try:
            self.key = serialization.load_der_public_key(fields["public_key"])
        except (ValueError, TypeError) as error:
            raise Refused("has no public key") from error
        if not isinstance(self.key, rsa.RSAPublicKey) or self.key.key_size < 2048:
            raise Refused("has no RSA public key")
        self.pcrs = {index: value.hex() for index, value in fields["pcrs"].items()}


def _check_signature(protected, payload, signature, fields, root, now):
    try:
        header = cbor2.loads(protected)
        chain = [load(der) for der in [*fields["cabundle"], fields["certificate"]]]
    except Exception as error:
        raise Refused(f"cannot be parsed ({type(error).__name__})") from error
    if header != {1: -35}:
        raise Refused("is not signed by ES384")
    if hashlib.sha256(fields["cabundle"][0]).digest() != root:
        raise Refused("is not of this root")
    for certificate in chain:
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise Refused("has a certificate that is not valid now")
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    half = len(signature) // 2
    numbers = [int.from_bytes(part) for part in (signature[:half], signature[half:])]
    try:
        for above, below in zip(chain, chain[1:]):
            verify_issued(below, above)
        chain[-1].public_key().verify(
            utils.encode_dss_signature(*numbers), signed, ec.ECDSA(hashes.SHA384())
        )
    except (InvalidSignature, ValueError, TypeError) as error:
        raise Refused("has a wrong signature") from error
