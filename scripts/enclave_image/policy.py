"""The KMS key policy that lets one image, and no other, have its secrets.

Condition keys: docs.aws.amazon.com/kms/latest/developerguide/conditions-nitro-enclave.html. The
actions are those that take an attestation document and act on a key; without such a document a
condition on it does not hold, so the same role is refused outside the enclave.
"""

import re

from . import Wrong

ACTIONS = ["kms:Decrypt", "kms:DeriveSharedSecret", "kms:GenerateDataKey", "kms:GenerateDataKeyPair"]
PLACEHOLDER = "arn:aws:iam::ACCOUNT:role/ROLE-OF-THE-PARENT-INSTANCE"
ARN = re.compile(r"arn:aws[a-z-]*:(iam|sts)::\d{12}:(role|user|assumed-role)/\S+")


def policy(pcrs: dict[str, str], principal: str | None) -> dict:
    """The policy for the image with these PCRs, used with the rights of `principal`."""
    if principal is not None and not ARN.fullmatch(principal):
        raise Wrong(f"--principal {principal}: give the ARN of a role or user, such as arn:aws:iam::111122223333:role/parent")
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OnlyThisEnclave",
                "Effect": "Allow",
                "Principal": {"AWS": principal or PLACEHOLDER},
                "Action": ACTIONS,
                "Resource": "*",
                "Condition": {
                    "StringEqualsIgnoreCase": {
                        "kms:RecipientAttestation:ImageSha384": pcrs["PCR0"],
                        "kms:RecipientAttestation:PCR1": pcrs["PCR1"],
                        "kms:RecipientAttestation:PCR2": pcrs["PCR2"],
                    }
                },
            }
        ],
    }
