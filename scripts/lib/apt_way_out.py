#!/usr/bin/env python3
"""A small HTTP proxy by which the lab's hosts, which have no way out, fetch Debian packages.

It listens on the loopback of each host's network and dials from the machine's own: a socket belongs to
the network it was made in, so one process can stand in both. Nothing on either network is changed.

    apt_way_out.py PORT PID...      (PID: the first process of a lab host)
"""

import ctypes
import os
import select
import socket
import sys
import threading
from urllib.parse import urlsplit

CLONE_NEWNET = 0x40000000
HEADER_LIMIT = 64 * 1024
PATIENCE = 60


def listen_inside(pid, port):
    """A socket that listens on the loopback of the process's network."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(fd):
        if libc.setns(fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network of process {pid}")

    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        enter(there)
        try:
            listener = socket.create_server(("127.0.0.1", port), backlog=64)
        finally:
            enter(home)
    finally:
        os.close(home)
        os.close(there)
    return listener


def read_head(connection):
    """The request line and headers, and what was read past them."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > HEADER_LIMIT:
            raise ValueError("the request's headers are too long")
        more = connection.recv(65536)
        if not more:
            return None, b""
        data += more
    head, rest = data.split(b"\r\n\r\n", 1)
    return head.decode("latin-1").split("\r\n"), rest


def shovel(one, other):
    """Copies both ways until either side ends."""
    while True:
        ready, _, _ = select.select([one, other], [], [], PATIENCE)
        if not ready:
            return
        for side in ready:
            data = side.recv(262144)
            if not data:
                return
            (other if side is one else one).sendall(data)


def serve(connection):
    """One request, and then the connection is closed: apt dials again."""
    with connection:
        connection.settimeout(PATIENCE)
        try:
            lines, rest = read_head(connection)
            if lines is None:
                return
            method, target, _ = lines[0].split(" ", 2)
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                upstream = socket.create_connection((host, int(port)), timeout=PATIENCE)
                connection.sendall(b"HTTP/1.1 200 connected\r\n\r\n")
                first = rest
            elif method in ("GET", "HEAD"):
                url = urlsplit(target)
                if url.scheme != "http" or not url.hostname:
                    raise ValueError("only http:// addresses are fetched")
                path = (url.path or "/") + (f"?{url.query}" if url.query else "")
                headers = [h for h in lines[1:] if not h.lower().startswith(("connection:", "proxy-"))]
                request = [f"{method} {path} HTTP/1.1", *headers, "Connection: close", "", ""]
                first = "\r\n".join(request).encode("latin-1") + rest
                upstream = socket.create_connection((url.hostname, url.port or 80), timeout=PATIENCE)
            else:
                raise ValueError(f"{method} is not served here")
            with upstream:
                upstream.sendall(first)
                shovel(connection, upstream)
        except (OSError, ValueError) as error:
            try:
                text = f"{error}\n".encode()
                connection.sendall(
                    b"HTTP/1.1 502 no way out\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(text), text)
                )
            except OSError:
                pass


def accept(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def main():
    port = int(sys.argv[1])
    threads = [
        threading.Thread(target=accept, args=(listen_inside(pid, port),)) for pid in sys.argv[2:]
    ]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()
