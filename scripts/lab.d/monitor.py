#!/usr/bin/env python3
"""Gives one command to a QEMU's monitor, and fails when QEMU has anything to say to it.

    monitor.py SOCKET COMMAND
"""

import socket
import sys

PROMPT = b"(qemu) "


def read_prompt(connection):
    data = b""
    while not data.endswith(PROMPT):
        more = connection.recv(65536)
        if not more:
            sys.exit("QEMU's monitor has closed the connection")
        data += more
    return data[: -len(PROMPT)]


def main():
    path, command = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(path)
        read_prompt(connection)
        connection.sendall(command.encode() + b"\n")
        # What comes back begins with an echo of the command, as a line editor writes it.
        answer = read_prompt(connection).rsplit(b"\x1b[K", 1)[-1].strip()
    if answer:
        sys.exit(answer.decode(errors="replace"))


if __name__ == "__main__":
    main()
