#!/usr/bin/env python3
"""A long or a bad cable: carries frames between two interfaces, later, and not all of them.

    line.py A B --delay MILLISECONDS --loss PERCENT

Both directions are delayed, and lose, alike. Kernels without netem are why this exists. Frames keep their virtio
header, so that those which the sender has not yet cut into segments, or not yet summed, arrive as they are; one that is
lost is lost whole.
"""

import argparse
import heapq
import random
import select
import socket
import time

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_VNET_HDR = 15
PACKET_MR_PROMISC = 1
OUTGOING = 4
ALL = 3
# The longest that is not cut yet, with its headers.
LONGEST = 1 << 17


def end(name):
    """One end of the cable."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 20)
    port.bind((name, ALL))
    index = socket.if_nametoindex(name)
    member = index.to_bytes(4, "little") + PACKET_MR_PROMISC.to_bytes(2, "little") + bytes(10)
    port.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
    port.setblocking(False)
    return port


def carry(ends, delay, loss):
    """For as long as this process lives."""
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    waiting, count = [], 0
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select(ends, [], [], patience)
        for port in readable:
            for _ in range(64):
                try:
                    frame, source = port.recvfrom(LONGEST)
                except BlockingIOError:
                    break
                if source[2] == OUTGOING or random.random() < loss:
                    continue
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay, count, other[port], frame))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, port, frame = heapq.heappop(waiting)
            try:
                port.send(frame)
            except (BlockingIOError, OSError):
                # A cable has no room to wait in, and an interface may be down.
                pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("ends", nargs=2)
    parser.add_argument("--delay", type=float, default=0, help="milliseconds, either way")
    parser.add_argument("--loss", type=float, default=0, help="percent of the frames, either way")
    options = parser.parse_args()
    carry([end(name) for name in options.ends], options.delay / 1000, options.loss / 100)


if __name__ == "__main__":
    main()
