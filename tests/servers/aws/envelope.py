"""Seals an answer as KMS does: CMS EnvelopedData (RFC 5652, section 6) of version 2, the recipient by
its key's identifier, indefinite lengths, the content in several octet strings.

Written here and not by openssl, which would have to be started for each answer: that took longer
than all the rest of a call. What openssl itself writes is read in app/tests/recipient.rs."""

import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import padding as blocks
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

INTEGER, OCTETS, SEQUENCE, SET = 0x02, 0x04, 0x30, 0x31
# Context-specific, number 0: primitive and constructed.
ZERO, ZERO_CONSTRUCTED = 0x80, 0xA0

ENVELOPED_DATA = bytes.fromhex("06092a864886f70d010703")
DATA = bytes.fromhex("06092a864886f70d010701")
AES_256_CBC = bytes.fromhex("060960864801650304012a")
RSAES_OAEP = bytes.fromhex("06092a864886f70d010107")
MGF1 = bytes.fromhex("06092a864886f70d010108")
SHA_256 = bytes.fromhex("0609608648016503040201")


def definite(tag, *parts):
    """A value with its length in front."""
    body = b"".join(parts)
    length = len(body)
    if length < 0x80:
        return bytes([tag, length]) + body
    digits = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(digits)]) + digits + body


def indefinite(tag, *parts):
    """A value that ends where its end is written."""
    return bytes([tag, 0x80]) + b"".join(parts) + b"\0\0"


SHA_256_NO_PARAMETERS = definite(SEQUENCE, SHA_256, b"\x05\0")
OAEP_SHA_256 = definite(
    SEQUENCE,
    RSAES_OAEP,
    definite(
        SEQUENCE,
        definite(0xA0, SHA_256_NO_PARAMETERS),
        definite(0xA1, definite(SEQUENCE, MGF1, SHA_256_NO_PARAMETERS)),
    ),
)


def seal(key, plaintext):
    """An envelope that the owner of this RSA key opens."""
    content_key, vector = os.urandom(32), os.urandom(16)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
    padder = blocks.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(content_key), modes.CBC(vector)).encryptor()
    content = encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
    middle = len(content) // 2
    recipient = definite(
        SEQUENCE,
        definite(INTEGER, b"\2"),
        definite(ZERO, x509.SubjectKeyIdentifier.from_public_key(key).digest),
        OAEP_SHA_256,
        definite(OCTETS, key.encrypt(content_key, oaep)),
    )
    encrypted = indefinite(
        SEQUENCE,
        DATA,
        definite(SEQUENCE, AES_256_CBC, definite(OCTETS, vector)),
        indefinite(
            ZERO_CONSTRUCTED,
            definite(OCTETS, content[:middle]),
            definite(OCTETS, content[middle:]),
        ),
    )
    data = indefinite(SEQUENCE, definite(INTEGER, b"\2"), definite(SET, recipient), encrypted)
    return indefinite(SEQUENCE, ENVELOPED_DATA, indefinite(ZERO_CONSTRUCTED, data))
