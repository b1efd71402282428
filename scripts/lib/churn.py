#!/usr/bin/env python3
"""Opens connections to a Redis, one after the other in several threads, asks one question in each, and closes it."""

import argparse
import collections
import json
import os
import socket
import sys
import threading
import time

PATIENCE = 20


class Counts:
    def __init__(self):
        self.lock = threading.Lock()
        self.answered = 0
        self.longest = 0.0
        self.faults = collections.Counter()

    def note(self, fault, seconds):
        with self.lock:
            if fault is None:
                self.answered += 1
                self.longest = max(self.longest, seconds)
            else:
                self.faults[fault] += 1


def ask(address):
    """One connection's life; what was wrong with it, or none."""
    try:
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None if answer == b"+PONG\r\n" else f"answered {answer!r}"


def go_on(address, pause, stop, counts):
    while not os.path.exists(stop):
        begin = time.monotonic()
        counts.note(ask(address), time.monotonic() - begin)
        time.sleep(pause)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between two connections of a thread")
    parser.add_argument("--stop-file", required=True)
    options = parser.parse_args()
    counts = Counts()
    work = ((options.host, options.port), options.pause, options.stop_file, counts)
    threads = [threading.Thread(target=go_on, args=work) for _ in range(options.threads)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    report = {"answered": counts.answered, "per_second": round(counts.answered / seconds, 1), "faults": counts.faults}
    json.dump(report | {"longest_ms": round(counts.longest * 1000, 1)}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
