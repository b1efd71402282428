#!/usr/bin/env python3
"""A Redis client that trusts nothing: it loads values that prove themselves, keeps connections busy while
a migration goes on, and says what it saw.

    redis_client.py load   --host H --state FILE [--mib 256]
    redis_client.py run    --host H --state FILE [--connections 8] [--rate R] [--stop-file F]
    redis_client.py verify --host H --state FILE

Every value is computed from its key and its version, and the state file keeps the version of every key, so
a lost write, a stale read and a mixed-up answer all differ from what is expected. In `run`, each connection
owns a share of the keys and a counter and is a closed loop of INCR, SET and GET: an INCR whose answer is not
one more than the last was executed twice, or the one before was forgotten.

A connection that breaks is counted before it is made again; nothing is retried in silence. Stalls are
measured on the monotonic clock and told in seconds since the epoch, so that they can be laid beside the
phases of a migration. The report is JSON on standard output; the exit status is 0 only if all is well.
Standard library only.
"""

import argparse
import gc
import hashlib
import json
import os
import selectors
import signal
import socket
import sys
import time

STALL_FLOOR = 0.020  # shorter gaps between answers are not listed
MOST_LISTED = 200
MOST_SAMPLES = 10


# ---- values


def value_of(seed, key, version, size):
    """What key holds at version; incompressible, and nothing else has it."""
    head = f"{key}:{version}:".encode()
    return head + hashlib.shake_128(b"%s:" % seed.encode() + head).digest(size - len(head))


class State:
    """What the database must hold: the version of every key, the value of every counter."""

    def __init__(self, seed, size, versions, counters, unsure=None):
        self.seed, self.size = seed, size
        self.versions, self.counters = versions, counters
        # Keys whose last write got no answer: it may have happened or not.
        self.unsure = unsure or {}

    @staticmethod
    def read(path):
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        unsure = {int(number): version for number, version in kept["unsure"].items()}
        return State(kept["seed"], kept["size"], kept["versions"], kept["counters"], unsure)

    def write(self, path):
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(vars(self), file)
        os.replace(f"{path}.new", path)

    def key(self, number):
        return f"key:{number:08d}"

    def value(self, number, version=None):
        version = self.versions[number] if version is None else version
        return value_of(self.seed, self.key(number), version, self.size)

    def holds(self, number, value):
        """Whether value is what the key must hold now."""
        if value == self.value(number):
            return True
        return number in self.unsure and value == self.value(number, self.unsure[number])


# ---- the protocol

# What Redis answers for a key that does not exist; None would mean an incomplete answer.
NIL = type("Nil", (), {"__repr__": lambda _: "nil"})()


def request(*words):
    """One command as Redis wants it."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        word = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
    return b"".join(parts)


class RedisError(Exception):
    """Redis answered with an error."""


class Broken(Exception):
    """The bytes are no Redis protocol."""


def parse(buffer, start=0):
    """(answer, end) of the answer at start, or None while it is incomplete."""
    line_end = buffer.find(b"\r\n", start)
    if line_end < 0:
        if len(buffer) - start > 65536:
            raise Broken("an answer's first line never ends")
        return None
    kind, line, after = buffer[start : start + 1], bytes(buffer[start + 1 : line_end]), line_end + 2
    if kind == b"+":
        return line.decode(), after
    if kind == b"-":
        return RedisError(line.decode(errors="replace")), after
    if kind == b":":
        return int(line), after
    if kind == b"$":
        length = int(line)
        if length < 0:
            return NIL, after
        if len(buffer) < after + length + 2:
            return None
        return bytes(buffer[after : after + length]), after + length + 2
    if kind == b"*":
        items = []
        for _ in range(int(line)):
            item = parse(buffer, after)
            if item is None:
                return None
            items.append(item[0])
            after = item[1]
        return items, after
    raise Broken(f"an answer begins with {bytes(kind)!r}")


class Link:
    """A blocking connection, for loading and verifying."""

    def __init__(self, host, port, patience):
        self.socket = socket.create_connection((host, port), timeout=patience)
        self.buffer = bytearray()

    def send(self, data):
        self.socket.sendall(data)

    def answer(self):
        while True:
            parsed = parse(self.buffer)
            if parsed is not None:
                answer, end = parsed
                del self.buffer[:end]
                if isinstance(answer, RedisError):
                    raise answer
                return answer
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the server closed the connection")
            self.buffer += data

    def ask(self, *words):
        self.send(request(*words))
        return self.answer()


# ---- load and verify


def load(options):
    state = State(options.seed, options.value_size, [], [])
    count = -(-options.mib * 1024 * 1024 // options.value_size)
    state.versions = [1] * count
    link = Link(options.host, options.port, options.patience)
    begin = time.monotonic()
    if options.flush:
        link.ask("FLUSHALL")
    batch = 128
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        link.send(b"".join(request("SET", state.key(n), state.value(n)) for n in numbers))
        for number in numbers:
            answer = link.answer()
            if answer != "OK":
                raise Broken(f"SET {state.key(number)} was answered {answer!r}")
    seconds = time.monotonic() - begin
    state.write(options.state)
    report = {"keys": count, "bytes": count * options.value_size, "seconds": round(seconds, 3)}
    return report, True


def verify(options):
    state = State.read(options.state)
    link = Link(options.host, options.port, options.patience)
    begin = time.monotonic()
    wrong, missing, samples = 0, 0, []
    batch = 64
    for first in range(0, len(state.versions), batch):
        numbers = range(first, min(first + batch, len(state.versions)))
        answers = link.ask("MGET", *(state.key(n) for n in numbers))
        for number, answer in zip(numbers, answers, strict=True):
            if answer is NIL:
                missing += 1
                note(samples, f"{state.key(number)} is missing")
            elif not state.holds(number, answer):
                wrong += 1
                note(samples, f"{state.key(number)} holds {describe(answer)}, version {state.versions[number]} was written")
    for index, expected in enumerate(state.counters):
        answer = link.ask("GET", f"counter:{index}")
        if answer is NIL or int(answer) != expected:
            wrong += 1
            note(samples, f"counter:{index} is {answer!r}, {expected} was reached")
    expected = len(state.versions) + len(state.counters)
    extra = link.ask("DBSIZE") + missing - expected
    report = {
        "keys": len(state.versions),
        "counters": len(state.counters),
        "wrong": wrong,
        "missing": missing,
        "extra": extra,
        "samples": samples,
        "seconds": round(time.monotonic() - begin, 3),
    }
    return report, wrong == missing == extra == 0


def describe(value):
    """What a wrong value looks like, in a few characters."""
    head = value[:24].split(b":")
    if len(head) >= 3 and head[0] == b"key":
        return f"key:{head[1].decode(errors='replace')} at version {head[2].decode(errors='replace')}"
    return repr(value[:24])


def note(samples, text):
    if len(samples) < MOST_SAMPLES:
        samples.append(text)


# ---- run


class Gap:
    """The longest time without an answer, and when it was."""

    def __init__(self):
        self.seconds, self.begin, self.end = 0.0, None, None

    def see(self, before, now, epoch):
        if now - before > self.seconds:
            self.seconds, self.begin, self.end = now - before, before + epoch, now + epoch

    def told(self):
        if self.begin is None:
            return None
        return {"seconds": round(self.seconds, 6), "from": round(self.begin, 6), "to": round(self.end, 6)}


class Connection:
    """One closed loop. At most one request is unanswered, so the next answer is known in advance."""

    def __init__(self, run, index):
        self.run, self.index = run, index
        self.keys = range(index, len(run.state.versions), run.options.connections)
        self.turn = 0
        self.counter = run.state.counters[index]
        self.pending = None  # (command, key number, version)
        self.sent_at = self.answered_at = self.next_at = 0.0
        self.answers, self.stall, self.wait = 0, Gap(), 0.0
        self.buffer, self.unsent = bytearray(), b""
        self.socket = None
        self.unsure_counter = False

    def open(self):
        options = self.run.options
        self.socket = socket.create_connection(
            (options.host, options.port), timeout=min(options.patience, 5)
        )
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.buffer.clear()
        self.unsent, self.pending = b"", None
        self.run.selector.register(self.socket, selectors.EVENT_READ, self)
        self.answered_at = self.next_at = time.monotonic()

    def ask(self, now):
        """Sends the next request of the loop."""
        state = self.run.state
        step = self.turn % 3 if self.keys else 0
        if self.keys:
            # A read is of another key than the last write: what was written long ago must still be there.
            place = (self.turn // 3) * 7919 + (len(self.keys) // 2 if step == 2 else 0)
            number = self.keys[place % len(self.keys)]
        self.turn += 1
        if step == 0:
            self.pending = ("INCR", None, None)
            data = request("INCR", f"counter:{self.index}")
        elif step == 1:
            version = state.versions[number] + 1
            if number in state.unsure:
                version = max(version, state.unsure[number] + 1)
            self.pending = ("SET", number, version)
            data = request("SET", state.key(number), state.value(number, version))
        else:
            self.pending = ("GET", number, None)
            data = request("GET", state.key(number))
        self.sent_at = now
        self.push(data)

    def push(self, data):
        """Writes what the socket takes, and waits to write the rest."""
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        self.unsent = data[sent:]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)
        self.run.selector.modify(self.socket, events, self)

    def pull(self, now):
        """Reads what has come and checks each answer."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.buffer += data
        while True:
            parsed = parse(self.buffer)
            if parsed is None:
                return
            answer, end = parsed
            del self.buffer[:end]
            self.take(answer, now)

    def take(self, answer, now):
        faults = self.run.faults
        if self.pending is None:
            faults["unasked"] += 1
            self.run.note(f"connection {self.index} got an answer that it had not asked for: {short(answer)}")
            return
        command, number, version = self.pending
        self.pending = None
        self.seen(now)
        if isinstance(answer, RedisError):
            faults["errors"] += 1
            self.run.note(f"connection {self.index}: {command} was answered with the error {answer}")
        elif command == "INCR":
            self.take_count(answer)
        elif command == "SET":
            if answer == "OK":
                self.run.state.versions[number] = version
                self.run.state.unsure.pop(number, None)
            else:
                self.wrong(f"SET was answered {short(answer)}")
        elif answer is NIL or not self.run.state.holds(number, answer):
            seen = "nothing" if answer is NIL else short(answer)
            self.wrong(f"{self.run.state.key(number)} holds {seen}, version {self.run.state.versions[number]} was written")

    def take_count(self, answer):
        expected = self.counter + 1
        if not isinstance(answer, int):
            self.wrong(f"INCR was answered {short(answer)}")
            return
        if answer > expected and not (self.unsure_counter and answer == expected + 1):
            self.run.faults["duplicates"] += answer - expected
            self.run.note(f"connection {self.index}: counter at {answer}, {expected} expected: executed more than once")
        elif answer < expected:
            self.run.faults["lost"] += expected - answer
            self.run.note(f"connection {self.index}: counter at {answer}, {expected} expected: answered and then forgotten")
        self.counter, self.unsure_counter = answer, False

    def wrong(self, text):
        self.run.faults["wrong"] += 1
        self.run.note(f"connection {self.index}: {text}")

    def seen(self, now):
        """Book-keeping of one answer: how long did this connection, and how long did all of them, wait?"""
        self.answers += 1
        if self.answers > 1:
            self.stall.see(self.answered_at, now, self.run.epoch)
        self.wait = max(self.wait, now - self.sent_at)
        self.answered_at = now
        self.next_at = max(self.sent_at + self.run.interval, now)
        self.run.seen(now)

    def broke(self, error, now):
        """Counts the loss, remembers what is now unsure, and dials again."""
        faults = self.run.faults
        faults["resets"] += 1
        self.run.note(f"connection {self.index} broke at {now + self.run.epoch:.3f}: {error}")
        if self.pending:
            faults["unanswered"] += 1
            command, number, version = self.pending
            if command == "SET":
                self.run.state.unsure[number] = version
            elif command == "INCR":
                self.unsure_counter = True
        self.close()
        try:
            self.open()
            faults["reconnects"] += 1
        except OSError as failure:
            self.socket = None
            self.next_at = now + 0.2
            self.run.note(f"connection {self.index} could not be made again: {failure}")

    def close(self):
        if self.socket is not None:
            self.run.selector.unregister(self.socket)
            self.socket.close()
            self.socket = None


def short(answer):
    return describe(answer) if isinstance(answer, bytes) else repr(answer)


class Run:
    """All connections of one `run`, in one thread: the clock of one is the clock of all."""

    def __init__(self, options):
        self.options = options
        self.state = State.read(options.state)
        self.state.counters += [0] * (options.connections - len(self.state.counters))
        self.selector = selectors.DefaultSelector()
        self.epoch = time.time() - time.monotonic()
        self.interval = options.connections / options.rate if options.rate else 0.0
        names = "resets reconnects wrong lost duplicates unasked unanswered errors timeouts idle_lost"
        self.faults = dict.fromkeys(names.split(), 0)
        self.samples, self.stalls = [], []
        self.longest, self.last_answer, self.answers = Gap(), None, 0
        self.own_pause = 0.0
        self.stopping = False
        self.connections = [Connection(self, index) for index in range(options.connections)]
        self.idle = []

    def note(self, text):
        note(self.samples, text)

    def seen(self, now):
        self.answers += 1
        if self.last_answer is not None:
            self.longest.see(self.last_answer, now, self.epoch)
            if now - self.last_answer >= STALL_FLOOR:
                gap = Gap()
                gap.see(self.last_answer, now, self.epoch)
                self.stalls.append(gap)
        self.last_answer = now

    def go(self):
        options = self.options
        begin = time.monotonic()
        for connection in self.connections:
            connection.open()
            # Spread over the interval: all at once would be a stall between the bursts.
            connection.next_at += self.interval * connection.index / options.connections
        # Connections on which nothing is said until the end must outlive every migration too.
        self.idle = [Link(options.host, options.port, options.patience) for _ in range(options.idle)]
        for link in self.idle:
            link.ask("PING")
        deadline = begin + options.seconds if options.seconds else None
        ready, polled = bool(not options.ready_file), 0.0
        while True:
            now = time.monotonic()
            if now - polled > 0.05:
                polled = now
                self.stopping = self.stopping or bool(options.stop_file and os.path.exists(options.stop_file))
                self.watch_patience(now)
                if not ready and all(c.answers > 2 for c in self.connections):
                    ready = True
                    write_text(options.ready_file, f"{os.getpid()}\n")
            if deadline and now >= deadline:
                self.stopping = True
            if self.stopping and all(c.pending is None for c in self.connections):
                break
            self.turn(now)
        seconds = time.monotonic() - begin
        self.farewell()
        return self.told(seconds)

    def turn(self, now):
        """Sends what is due, then waits for answers, at most until the next is due."""
        due = now + 0.05
        for connection in self.connections:
            if connection.pending is None and not self.stopping:
                if connection.next_at <= now:
                    self.guard(connection, now, connection.ask if connection.socket else self.redial)
                due = min(due, connection.next_at) if connection.pending is None else due
        self.own_pause = max(self.own_pause, time.monotonic() - now)
        events = self.selector.select(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for key, mask in events:
            connection = key.data
            if mask & selectors.EVENT_WRITE and connection.socket is key.fileobj:
                self.guard(connection, now, lambda _, c=connection: c.push(c.unsent))
            if mask & selectors.EVENT_READ and connection.socket is key.fileobj:
                self.guard(connection, now, connection.pull)
        self.own_pause = max(self.own_pause, time.monotonic() - now)

    def guard(self, connection, now, action):
        try:
            action(now)
        except (OSError, Broken) as error:
            connection.broke(error, now)

    def redial(self, now):
        for connection in self.connections:
            if connection.socket is None and connection.next_at <= now:
                try:
                    connection.open()
                    self.faults["reconnects"] += 1
                except OSError:
                    connection.next_at = now + 0.2

    def watch_patience(self, now):
        for connection in self.connections:
            if connection.pending and now - connection.sent_at > self.options.patience:
                self.faults["timeouts"] += 1
                connection.broke(TimeoutError(f"no answer within {self.options.patience} s"), now)

    def farewell(self):
        """The idle connections speak, and nobody may say anything more."""
        for link in self.idle:
            try:
                if link.ask("PING") != "PONG":
                    raise Broken("PING was not answered PONG")
            except (OSError, Broken, RedisError) as error:
                self.faults["idle_lost"] += 1
                self.note(f"an idle connection did not survive: {error}")
        time.sleep(0.05)
        now = time.monotonic()
        for connection in self.connections:
            if connection.socket is not None:
                try:
                    connection.pull(now)
                except (OSError, Broken) as error:
                    self.faults["resets"] += 1
                    self.note(f"connection {connection.index} broke at the end: {error}")
            self.state.counters[connection.index] = connection.counter
            connection.close()
        self.state.write(self.options.state)

    def told(self, seconds):
        self.stalls.sort(key=lambda gap: -gap.seconds)
        report = {
            "seconds": round(seconds, 3),
            "answers": self.answers,
            "answers_per_second": round(self.answers / seconds, 1) if seconds else None,
            **self.faults,
            "longest_stall": self.longest.told(),
            "stalls": [gap.told() for gap in self.stalls[:MOST_LISTED]],
            "longest_own_pause": round(self.own_pause, 6),
            "connections": [
                {"answers": c.answers, "longest_stall": c.stall.told(), "longest_wait": round(c.wait, 6)}
                for c in self.connections
            ],
            "idle_connections": self.options.idle,
            "samples": self.samples,
        }
        return report, not any(self.faults.values()) and self.answers > 0


def run(options):
    runner = Run(options)

    def stop(_signal, _frame):
        runner.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    gc.freeze()
    gc.disable()
    return runner.go()


# ---- the command line


def write_text(path, text):
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


def positive(text):
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("a number above 0 is expected")
    return number


def arguments():
    parser = argparse.ArgumentParser(description="A Redis client that trusts nothing.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, action in (("load", load), ("run", run), ("verify", verify)):
        sub = verbs.add_parser(verb)
        sub.set_defaults(action=action)
        sub.add_argument("--host", required=True)
        sub.add_argument("--port", type=positive, default=6379)
        sub.add_argument("--state", required=True, help="file that keeps what the database must hold")
        sub.add_argument("--patience", type=positive, default=60, help="seconds to wait for an answer")
        sub.add_argument("--report", help="write the report to this file too")
        if verb == "load":
            sub.add_argument("--mib", type=positive, default=256, help="MiB of values")
            sub.add_argument("--value-size", type=positive, default=4096, help="bytes of one value, 64 at least")
            sub.add_argument("--seed", default="godwit")
            sub.add_argument("--flush", action="store_true", help="empty the database first")
        if verb == "run":
            sub.add_argument("--connections", type=positive, default=8)
            sub.add_argument("--idle", type=int, default=2, help="connections that say nothing until the end")
            sub.add_argument("--rate", type=float, default=0, help="requests a second, all together; 0: no limit")
            sub.add_argument("--seconds", type=float, default=0, help="end after this time; 0: never")
            sub.add_argument("--stop-file", help="end when this file exists")
            sub.add_argument("--ready-file", help="written when every connection has had answers")
    options = parser.parse_args()
    if options.verb == "load" and options.value_size < 64:
        parser.error("--value-size: 64 bytes at least")
    return options


def main():
    options = arguments()
    try:
        report, good = options.action(options)
    except (OSError, Broken, RedisError) as error:
        report, good = {"failed": f"{options.verb} with {options.host}:{options.port}: {error}"}, False
    text = json.dumps(report, indent=2)
    print(text)
    if options.report:
        write_text(options.report, text + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
