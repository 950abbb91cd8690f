"""Sends frames that a sandbox has no business to send, by groups; prints how many the guest's kernel took.

Run in a guest, as root: frames.py GROUP INTERNET HOST OWN NEIGHBOUR PORT, the four addresses as the host knows them.
"""

import socket
import struct
import sys

GROUP, INTERNET, HOST, OWN, NEIGHBOUR, PORT = sys.argv[1:7]
ME, GATEWAY = bytes.fromhex("0600ac100002"), bytes.fromhex("0600ac100001")
OTHER, ALL = bytes.fromhex("0600ac100003"), b"\xff" * 6
GUEST = "172.16.0.2"
PEER = socket.inet_ntoa(struct.pack("!I", struct.unpack("!I", socket.inet_aton(OWN))[0] ^ 1))


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(payload, kind=0x0800, source=ME, to=GATEWAY):
    return to + source + struct.pack("!H", kind) + payload


def ip(payload, to=INTERNET, source=GUEST, protocol=17, options=b"", fragment=0, ttl=64, first=None, total=None, id=7):
    length = 20 + len(options) + len(payload) if total is None else total
    first = 0x40 | (5 + len(options) // 4) if first is None else first
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH", first, 0, length, id, fragment, ttl, protocol, 0) + addresses + options
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return head + payload


def udp(text=b"attack", port=None, source=40000):
    return struct.pack("!HHHH", source, int(port or PORT), 8 + len(text), 0) + text


def tcp(flags, to=INTERNET):
    segment = struct.pack("!HHIIBBHHH", 40001, int(PORT), 1, 1, 0x50, flags, 1024, 0, 0)
    pseudo = socket.inet_aton(GUEST) + socket.inet_aton(to) + struct.pack("!HH", 6, len(segment))
    segment = segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
    return ip(segment, to=to, protocol=6)


def icmp(kind, code, rest):
    body = struct.pack("!BBH", kind, code, 0) + rest
    return struct.pack("!BBH", kind, code, checksum(body)) + rest


def ip6(payload, following, source, to):
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 255) + addresses + payload


def arp(operation, hardware, address, target, claimed_by=ME, to=ALL):
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + hardware + socket.inet_aton(address)
    return ether(body + b"\0" * 6 + socket.inet_aton(target), 0x0806, claimed_by, to)


def proper():
    return [ether(ip(udp()))]


def spoofed():
    """Another's MAC or address, in frames and in ARP, and DHCP."""
    for source in (NEIGHBOUR, OWN, PEER, HOST, INTERNET, "172.16.0.1", "172.16.0.3", "127.0.0.1", "255.255.255.255"):
        yield ether(ip(udp(), source=source))
    yield ether(ip(udp()), source=OTHER)
    yield ether(ip(udp()), source=ALL)
    yield ether(ip(udp()), source=GATEWAY)
    for address in ("172.16.0.1", "172.16.0.3", NEIGHBOUR, OWN, PEER, HOST):
        for operation in (1, 2):
            yield arp(operation, ME, address, address)
    yield arp(2, OTHER, GUEST, "172.16.0.1")
    yield arp(2, GATEWAY, "172.16.0.1", GUEST, to=GATEWAY)
    discover = b"\1\1\6\0" + b"\0" * 24 + ME + b"\0" * 202 + b"\x63\x82\x53\x63\x35\1\1\xff"
    yield ether(ip(udp(discover, 67, 68), source="0.0.0.0", to="255.255.255.255"), to=ALL)
    yield ether(ip(udp(discover, 67, 68), to="255.255.255.255"), to=ALL)


def ipv6():
    """Bare, to neighbours and as a router, and in a tunnel."""
    advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    for to in ("ff02::1", "ff02::2", "fe80::1", "2001:db8::1", "::1", "::ffff:" + HOST, "64:ff9b::" + HOST, "2002::1"):
        for source in ("fe80::2", "2001:db8::2", "::"):
            yield ether(ip6(advertisement, 58, source, to), 0x86DD, to=bytes.fromhex("333300000001"))
            yield ether(ip6(udp(), 17, source, to), 0x86DD)
    for to in (INTERNET, "192.88.99.1"):
        yield ether(ip(ip6(udp(), 17, "2001:db8::2", "2001:db8::1"), to=to, protocol=41))


def malformed():
    """Lengths, versions, options, tags, fragments, protocols and messages that are wrong, or rare."""
    for first, total in ((0x44, 34), (0x4F, 34), (0x40, 34), (0x65, 34), (0x05, 34), (0x45, 10), (0x45, 65535), (0x45, 0)):
        yield ether(ip(udp(), first=first, total=total))
    yield ether(ip(udp())[:13])
    yield ether(b"")
    yield ether(ip(udp())[:20])
    for ttl in (0, 1):
        yield ether(ip(udp(), ttl=ttl))
    via = socket.inet_aton("10.0.0.9")
    for option in (b"\x83\x07\x04" + via + b"\0", b"\x89\x07\x04" + via + b"\0", b"\x07\x07\x04" + b"\0" * 5, b"\x94\x04\0\0", b"\x44\x08\x05\0" + b"\0" * 4, b"\x83\xff\xff\xff", b"\x01" * 40):
        yield ether(ip(udp(), options=option))
    for tag in (0x8100, 0x88A8):
        for vlan in (0, 5):
            yield ether(struct.pack("!HH", vlan, 0x0800) + ip(udp()), tag)
    yield ether(struct.pack("!HHHH", 5, 0x8100, 6, 0x0800) + ip(udp()), 0x8100)
    for kind in (0x88CC, 0x8847, 0x8864, 0x8863, 0x888E, 0x88E5, 0x0026, 0x22F0):
        yield ether(ip(udp()), kind)
    # Overlapping, beyond the end, tiny, the last only; none is ever whole.
    for fragment in (0x2000, 0x2001, 0x3FFF, 0x1FFF, 0x0002):
        yield ether(ip(udp(b"x" * 64), fragment=fragment, id=fragment))
    for protocol in (0, 2, 4, 33, 46, 47, 50, 51, 89, 103, 112, 115, 132, 136, 255):
        yield ether(ip(udp(), protocol=protocol))
    inner = ip(udp(), source=INTERNET, to=GUEST)
    for to in (INTERNET, "172.16.0.1"):
        yield ether(ip(icmp(5, 1, socket.inet_aton(GUEST) + inner), protocol=1, to=to))
        yield ether(ip(icmp(3, 4, struct.pack("!HH", 0, 68) + inner), protocol=1, to=to))
        yield ether(ip(icmp(9, 0, b"\1\2\0\1" + via + b"\0" * 4), protocol=1, to=to))
    for flags in (0x00, 0x3F, 0x03, 0x06, 0x29):
        yield ether(tcp(flags))


def forbidden():
    """Proper packets to all ends of what is denied, and to all the host has."""
    ends = "0.0.0.1 0.255.255.255 10.0.0.1 10.255.255.254 100.64.0.1 100.127.255.254 127.0.0.1 127.255.255.254"
    ends += " 169.254.0.1 169.254.169.254 169.254.255.254 172.16.0.5 172.31.255.254 192.0.0.1 192.0.0.254"
    ends += " 192.168.0.1 192.168.255.254 198.18.0.1 198.19.255.254 224.0.0.1 239.255.255.254 240.0.0.1 255.255.255.255"
    for to in ends.split() + [HOST, OWN, PEER, NEIGHBOUR, "172.16.0.1", "172.16.0.3"]:
        yield ether(ip(udp(), to=to))
        yield ether(tcp(2, to=to))
        yield ether(ip(icmp(8, 0, b"\0\1\0\1"), to=to, protocol=1))


out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind(("eth0", 0))
sent = 0
for frame in globals()[GROUP]():
    out.send(frame)
    sent += 1
print(sent)
