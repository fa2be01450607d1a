"""The instance metadata service of the parent, version 2 alone: a token first, then the role's
credentials.

usage: imds.py ADDRESS ACCESS-KEY SECRET
"""

import datetime
import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROLE = "/latest/meta-data/iam/security-credentials/"
TOKENS = set()


class Handler(BaseHTTPRequestHandler):
    """Answers as the service does."""

    def do_PUT(self):
        if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            return self.answer(400, "")
        token = secrets.token_urlsafe(40)
        TOKENS.add(token)
        return self.answer(200, token, ("X-aws-ec2-metadata-token-ttl-seconds", "21600"))

    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") not in TOKENS:
            return self.answer(401, "")
        if self.path == ROLE:
            return self.answer(200, "enclave")
        if self.path == ROLE + "enclave":
            return self.answer(200, json.dumps(credentials()))
        if self.path == "/latest/meta-data/placement/region":
            return self.answer(200, "us-east-1")
        return self.answer(404, "")

    def answer(self, status, text, *headers):
        body = text.encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def credentials():
    """The role's, for six hours."""
    now = datetime.datetime.now(datetime.timezone.utc)
    form = "%Y-%m-%dT%H:%M:%SZ"
    return {
        "Code": "Success",
        "LastUpdated": now.strftime(form),
        "Type": "AWS-HMAC",
        "AccessKeyId": sys.argv[2],
        "SecretAccessKey": sys.argv[3],
        "Token": "session-token-of-the-role",
        "Expiration": (now + datetime.timedelta(hours=6)).strftime(form),
    }


ThreadingHTTPServer((sys.argv[1], 80), Handler).serve_forever()
