"""Shows what the host could see of the enclave's traffic.

host_view.py CAPTURE [TEXT...]

Reads the capture that `host-netd --capture` made, prints the names and addresses in it, and says of
each TEXT whether it is in any byte of it, flows put together. The last line but the texts' is empty.
"""

import collections
import ipaddress
import struct
import sys

TCP, UDP = 6, 17
LINKTYPE_RAW = 101


def packets(data):
    magic, *_, linktype = struct.unpack("<IHHiIII", data[:24])
    if magic not in (0xA1B2C3D4, 0xA1B23C4D) or linktype != LINKTYPE_RAW:
        sys.exit(f"not a capture of IP packets: magic {magic:#x}, link type {linktype}")
    at = 24
    while at + 16 <= len(data):
        (length,) = struct.unpack("<I", data[at + 8 : at + 12])
        yield data[at + 16 : at + 16 + length]
        at += 16 + length


def parse(packet):
    """Source, destination, protocol and the bytes above IP."""
    if packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        src, dst, protocol = packet[12:16], packet[16:20], packet[9]
    else:
        header, src, dst, protocol = 40, packet[8:24], packet[24:40], packet[6]
    return ipaddress.ip_address(src), ipaddress.ip_address(dst), protocol, packet[header:]


def dns_name(message):
    labels, at = [], 12
    while at < len(message) and message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode("ascii", "replace"))
        at += 1 + message[at]
    return ".".join(labels)


def server_name(hello):
    """The name in a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3)."""
    if hello[:1] != b"\x16" or hello[5:6] != b"\x01":
        return None
    at = 43
    at += 1 + hello[at]  # session id
    at += 2 + int.from_bytes(hello[at : at + 2], "big")  # cipher suites
    at += 1 + hello[at]  # compression
    at += 2
    while at + 4 <= len(hello):
        kind, length = struct.unpack(">HH", hello[at : at + 4])
        if kind == 0:
            return hello[at + 9 : at + 4 + length].decode("ascii", "replace")
        at += 4 + length
    return None


def main(path, *texts):
    with open(path, "rb") as file:
        data = file.read()
    flows = collections.defaultdict(bytearray)
    names, lookups, destinations = set(), set(), collections.Counter()
    for packet in packets(data):
        src, dst, protocol, above = parse(packet)
        if protocol not in (TCP, UDP) or len(above) < 8:
            continue
        sport, dport = struct.unpack(">HH", above[:4])
        if protocol == UDP:
            if dport == 53:
                lookups.add(dns_name(above[8:]))
            continue
        payload = above[(above[12] >> 4) * 4 :]
        flow = flows[(src, sport, dst, dport)]
        if payload and not flow:
            name = server_name(payload)
            if name:
                names.add(name)
        flow += payload
        if payload:
            destinations[(dst, dport)] += len(payload)
    print("names looked up:    ", ", ".join(sorted(lookups)) or "none")
    print("TLS server names:   ", ", ".join(sorted(names)) or "none")
    print("where bytes went:")
    for (dst, port), size in destinations.most_common(8):
        print(f"    {dst} port {port}: {size:,} bytes")
    for text in texts:
        wanted = text.encode()
        found = wanted in data or any(wanted in flow for flow in flows.values())
        print(f"{text} {'VISIBLE' if found else 'not there'}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
