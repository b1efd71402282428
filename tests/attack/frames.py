#!/usr/bin/env python3
"""Frames that no container may send, and whoever hears them.

    frames.py hear --interface I --seconds S        prints the names of the forged frames that arrive, one a line
    frames.py send --interface I --own-mac M --own-ip A --victim-mac M --victim-ip A --gateway-ip A

Every forged frame has its name in it, so that whoever hears it knows which it was. Standard library only; both need
CAP_NET_RAW, which no container has: the sender is root in a container's network namespace, and thus has more than
whoever attacks from inside.
"""

import argparse
import socket
import struct
import sys
import time

MARK = b"forged-frame:"
# Where the name goes: within the packet, as bridges cut off what comes after it.
PLACE = b"\xee" * 64
ALL = 3


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def ipv4(source, target, protocol, payload):
    """With a header's checksum, which bridges look at."""
    payload += PLACE
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    head = lambda checksum: struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, checksum) + ends
    total = sum(struct.unpack("!10H", head(0)))
    return b"\x08\x00" + head(~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + payload


def ipv6(source, target, following, payload):
    payload += PLACE
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 255)
    address = [socket.inet_pton(socket.AF_INET6, text) for text in (source, target)]
    return b"\x86\xdd" + head + address[0] + address[1] + payload


def udp(source, target, payload):
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def arp(operation, sender_mac, sender_ip, target_ip):
    head = struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, operation)
    return head + sender_mac + socket.inet_aton(sender_ip) + bytes(6) + socket.inet_aton(target_ip)


def link_local(own):
    return socket.inet_ntop(
        socket.AF_INET6, b"\xfe\x80" + bytes(6) + bytes([own[0] ^ 2]) + own[1:3] + b"\xff\xfe" + own[3:]
    )


def forged(a):
    """Each frame's name, and the frame without its name."""
    own, victim, everybody = mac(a.own_mac), mac(a.victim_mac), b"\xff" * 6
    other, nodes = b"\x02\xbb\0\0\0\x01", b"\x33\x33\0\0\0\x01"
    inside = link_local(own)
    plain = ipv4(a.own_ip, a.victim_ip, 17, udp(9, 9, b""))
    router = bytes.fromhex("86000000400007080000000000000000")
    yield "own frame", victim + own + plain  # the control: it must arrive
    yield "another MAC", victim + other + plain
    yield "VLAN tag", victim + own + b"\x81\x00\x00\x05" + plain
    yield "unknown protocol", victim + own + b"\x12\x34"
    yield "ARP as the gateway", everybody + own + arp(2, own, a.gateway_ip, a.victim_ip)
    yield "ARP as the victim", everybody + own + arp(1, own, a.victim_ip, a.victim_ip)
    yield "ARP with another MAC", victim + own + arp(2, other, a.own_ip, a.victim_ip)
    yield "another IPv4 address", victim + own + ipv4("10.88.0.77", a.victim_ip, 17, udp(9, 9, b""))
    yield "DHCP server", everybody + own + ipv4(a.own_ip, "255.255.255.255", 17, udp(67, 68, b""))
    yield "ICMP redirect", victim + own + ipv4(a.own_ip, a.victim_ip, 1, b"\x05\x01" + bytes(6))
    yield "router advertisement", nodes + own + ipv6(inside, "ff02::1", 58, router)
    yield "router advertisement, hidden", nodes + own + ipv6(inside, "ff02::1", 60, b"\x3a\0\x01\x04\0\0\0\0" + router)
    yield "neighbour advertisement", nodes + own + ipv6(
        inside, "ff02::1", 58, b"\x88\0\0\0\x20\0\0\0" + socket.inet_pton(socket.AF_INET6, "fe80::1")
    )
    yield "another IPv6 address", nodes + own + ipv6("fe80::1", "ff02::1", 17, udp(9, 9, b""))
    yield "DHCPv6 server", nodes + own + ipv6(inside, "ff02::1", 17, udp(547, 546, b""))


def send(a):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
        mouth.bind((a.interface, 0))
        for _ in range(3):
            for name, frame in forged(a):
                mark = (MARK + name.encode() + b"\n").ljust(len(PLACE))
                mouth.send(frame.replace(PLACE, mark) if PLACE in frame else frame + mark)
            time.sleep(0.05)


def hear(a):
    heard, end = set(), time.monotonic() + a.seconds
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL)) as ear:
        ear.bind((a.interface, ALL))
        print("listening", flush=True)
        while (left := end - time.monotonic()) > 0:
            ear.settimeout(left)
            try:
                frame, address = ear.recvfrom(65536)
            except TimeoutError:
                break
            found = frame.rfind(MARK)
            if found >= 0 and address[2] != socket.PACKET_OUTGOING:
                heard.add(frame[found + len(MARK) :].split(b"\n")[0].decode())
    print("\n".join(sorted(heard)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("hear")
    one.add_argument("--interface", required=True)
    one.add_argument("--seconds", type=float, default=2)
    one = verbs.add_parser("send")
    for name in ("interface", "own-mac", "own-ip", "victim-mac", "victim-ip", "gateway-ip"):
        one.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    send(a) if a.verb == "send" else hear(a)


if __name__ == "__main__":
    sys.exit(main())
