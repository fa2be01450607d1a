"""Seals an answer as KMS does, by openssl: CMS EnvelopedData of version 2, the recipient by its
key's identifier, indefinite lengths, the content in octet strings."""

import datetime
import pathlib
import subprocess
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def seal(key, plaintext):
    """openssl encrypts for certificates: this makes one that names the key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "recipient")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    with tempfile.TemporaryDirectory() as folder:
        recipient = pathlib.Path(folder, "recipient.pem")
        recipient.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        oaep = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"]
        options = [word for option in oaep for word in ("-keyopt", option)]
        form = ["-binary", "-stream", "-keyid", "-aes-256-cbc", "-outform", "DER"]
        done = subprocess.run(
            ["openssl", "cms", "-encrypt", *form, "-recip", recipient, *options],
            input=plaintext,
            capture_output=True,
            check=True,
        )
    return done.stdout
