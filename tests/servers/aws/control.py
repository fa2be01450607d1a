"""boto3, as it comes: makes keys for the tests, and is the client that is not ours.

usage: control.py set-up POLICY-FILE
       control.py use KEY CONTEXT-JSON PLAINTEXT
       control.py call OPERATION ARGUMENTS-JSON
Prints JSON; AWS's error code in it when a call is refused.
"""

import base64
import json
import sys

import boto3
from botocore.exceptions import ClientError


def set_up(kms, policy):
    """A key with this policy."""
    with open(policy, encoding="utf-8") as file:
        key = kms.create_key(Policy=file.read())["KeyMetadata"]["Arn"]
    return {"key": key}


def use(kms, key, context, plaintext):
    """What any program does with a key."""
    context = json.loads(context)
    sealed = kms.encrypt(KeyId=key, Plaintext=plaintext.encode(), EncryptionContext=context)
    blob = sealed["CiphertextBlob"]
    opened = kms.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"]
    random = kms.generate_random(NumberOfBytes=32)["Plaintext"]
    return {
        "ciphertext": base64.b64encode(blob).decode(),
        "plaintext": opened.decode(),
        "random": len(random),
    }


def text(value):
    """Bytes in base64, anything else as it prints."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def call(kms, operation, arguments):
    """Any one operation."""
    answer = getattr(kms, operation)(**json.loads(arguments))
    answer.pop("ResponseMetadata")
    return json.loads(json.dumps(answer, default=text))


def main():
    what, *arguments = sys.argv[1:]
    kms = boto3.client("kms")
    try:
        done = {"set-up": set_up, "use": use, "call": call}[what](kms, *arguments)
    except ClientError as error:
        done = {"refused": error.response["Error"]["Code"]}
    print(json.dumps(done, default=str))


main()
