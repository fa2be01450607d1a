"""boto3, as it comes: makes keys for the tests, and is the client that is not ours.

usage: control.py set-up POLICY-FILE
       control.py use KEY CONTEXT-JSON PLAINTEXT
       control.py call OPERATION ARGUMENTS-JSON
       control.py queue OPERATION NAME ARGUMENTS-JSON
       control.py take NAME COUNT
Prints JSON; AWS's error code in it when a call is refused.
"""

import base64
import json
import sys
import time

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


def call(service, operation, arguments):
    """Any one operation."""
    answer = getattr(service, operation)(**json.loads(arguments))
    answer.pop("ResponseMetadata")
    return json.loads(json.dumps(answer, default=text))


def queue(sqs, operation, name, arguments):
    """Any one operation on a queue."""
    named = {"QueueName": name}
    if operation != "create_queue":
        named = {"QueueUrl": sqs.get_queue_url(QueueName=name)["QueueUrl"]}
    return call(sqs, operation, json.dumps(named | json.loads(arguments)))


def take(sqs, name, count):
    """So many messages, or what there is of them within a minute; deletes them."""
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    bodies = []
    end = time.monotonic() + 60
    while len(bodies) < int(count) and time.monotonic() < end:
        got = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        for message in got.get("Messages", []):
            bodies.append(message["Body"])
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return bodies


def main():
    what, *arguments = sys.argv[1:]
    operations = {"set-up": set_up, "use": use, "call": call, "queue": queue, "take": take}
    service = boto3.client("sqs" if what in ("queue", "take") else "kms")
    try:
        done = operations[what](service, *arguments)
    except ClientError as error:
        done = {"refused": error.response["Error"]["Code"]}
    print(json.dumps(done, default=str))


main()
