"""The program in the enclave of scripts/test-eif: tells what it sees, one line each, and serves a
port until somebody asks for /end. It knows nothing of enclaves but /dev/nsm.

Beside it run two services of enclave-app, and any command of it when a test asks for that by /app."""

import array
import fcntl
import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading

NAME = "web.lab.example"
# _IOWR(0x0A, 0, struct nsm_raw): the addresses and lengths of a request and of room for the answer.
NSM_IOCTL_RAW = 0xC0200A00
SERVICES = [
    ["enclave-app", "serve", "--tls", "--tls-name", "enclave.example.com"],
    ["enclave-app", "crypto", "--tenants", "/etc/tenants.json"],
]


def pcr(device: int, index: int) -> str:
    """What the hypervisor measured: DescribePCR, its CBOR written by hand."""
    request = array.array("B", b"\xa1\x6bDescribePCR\xa1\x65index" + bytes([index]))
    answer = array.array("B", bytes(0x3000))
    message = bytearray(struct.pack("QQQQ", *request.buffer_info(), *answer.buffer_info()))
    fcntl.ioctl(device, NSM_IOCTL_RAW, message)
    # {"DescribePCR": {"lock": ..., "data": 48 bytes}}
    return answer.tobytes().partition(b"\x64data\x58\x30")[2][:48].hex()


def run(asked: dict) -> dict:
    """One command of enclave-app, with more environment than this has."""
    done = subprocess.run(
        ["enclave-app", *asked["arguments"]],
        env={**os.environ, **asked["environment"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(json.dumps(run(asked)).encode())

    def do_GET(self) -> None:
        self.answer(f"hello from python {sys.version.split()[0]} in the enclave\n".encode())
        if self.path == "/end":
            threading.Thread(target=self.server.shutdown).start()

    def log_message(self, format: str, *values: object) -> None:
        print("served", self.client_address[0], *values, file=sys.stderr, flush=True)


def main() -> int:
    print("user", os.getuid(), os.environ.get("GREETING"), os.getcwd(), flush=True)
    with open("/etc/hosts", encoding="ascii") as hosts:
        print("hosts", NAME in hosts.read(), flush=True)
    found = {entry[4][0] for entry in socket.getaddrinfo(NAME, 443, type=socket.SOCK_STREAM)}
    print("dns", *sorted(found), flush=True)
    curl = subprocess.run(["curl", "-sS", "--max-time", "30", f"https://{NAME}/"], capture_output=True, text=True)
    print("https", curl.returncode, (curl.stdout or curl.stderr).strip(), flush=True)
    device = os.open("/dev/nsm", os.O_RDWR)
    for index in range(3):
        print("pcr", index, pcr(device, index), flush=True)
    services = [subprocess.Popen(words) for words in SERVICES]
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
    print("serving", flush=True)
    server.serve_forever()
    print("asked to end", flush=True)
    for service in services:
        service.terminate()
    print("services ended", *(service.wait() for service in services), flush=True)
    return 7


if __name__ == "__main__":
    sys.exit(main())
