"""A program on one of the machines: asks a service and prints a list of milliseconds.

ask.py PORT COUNT AT-ONCE, and the message on standard input.
"""

import json
import selectors
import socket
import struct
import sys
import time


def ask(port, count, at_once):
    """So often on so many connections at once: each answer's time from when the first was asked."""
    message = sys.stdin.buffer.read()
    frame = struct.pack(">I", len(message)) + message
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(at_once)]
    took = []
    for _ in range(count):
        waiting = selectors.DefaultSelector()
        begin = time.perf_counter()
        for connection in connections:
            connection.sendall(frame)
            waiting.register(connection, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select():
                answer = receive(key.fileobj)
                took.append((time.perf_counter() - begin) * 1000)
                waiting.unregister(key.fileobj)
                if not answer["success"]:
                    sys.exit(f"bench-kms: {answer}")
    print(json.dumps(took))


def receive(connection):
    """One answer: they are short and come whole."""
    stream = connection.makefile("rb")
    (length,) = struct.unpack(">I", stream.read(4))
    return json.loads(stream.read(length))


ask(*map(int, sys.argv[1:]))
