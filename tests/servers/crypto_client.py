"""Sends messages to `enclave-app crypto` on one connection and prints the answers, one a line.

crypto_client.py HOST PORT MESSAGE...
"""

import socket
import struct
import sys

host, port, *messages = sys.argv[1:]
with socket.create_connection((host, int(port)), timeout=60) as connection:
    stream = connection.makefile("rb")
    for message in messages:
        data = message.encode()
        connection.sendall(struct.pack(">I", len(data)) + data)
        (length,) = struct.unpack(">I", stream.read(4))
        print(stream.read(length).decode())
