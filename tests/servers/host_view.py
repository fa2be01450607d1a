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
SECTION_HEADER, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
LINKTYPE_RAW = 101


def packets(data):
    """The packets of a pcapng file of this machine's byte order."""
    at = 0
    while at + 12 <= len(data):
        kind, length = struct.unpack("=II", data[at : at + 8])
        body = data[at + 8 : at + length - 4]
        if at == 0 and kind != SECTION_HEADER:
            sys.exit(f"not a pcapng file: it begins with {kind:#x}")
        if kind == INTERFACE and struct.unpack("=H", body[:2]) != (LINKTYPE_RAW,):
            sys.exit("not a capture of IP packets")
        if kind == PACKET:
            (captured,) = struct.unpack("=I", body[12:16])
            yield body[20 : 20 + captured]
        at += length


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
