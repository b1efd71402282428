#!/usr/bin/env python3
"""Lays the reports of migrations beside what the client saw, prints both, and judges.

    timeline.py --client client.json [--verify verify.json] [--brief] migration.json...

The exit status is 1 when anything is not as it must be; each reason is a line on standard error.
"""

import argparse
import json
import sys
from datetime import datetime

FAULTS = (
    "resets reconnects wrong lost duplicates unasked unanswered errors timeouts idle_lost".split()
)
BAR = 30


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def seconds(duration):
    """A duration as serde writes it, or a plain number of seconds."""
    if duration is None:
        return None
    if isinstance(duration, dict):
        return duration["secs"] + duration["nanos"] / 1e9
    return float(duration)


def size(count):
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def span(length):
    return f"{length * 1000:.1f} ms" if length < 1 else f"{length:.3f} s"


def clock(at):
    return datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]


def rate(wire, length):
    """A throughput, where there is enough of it to mean anything."""
    return f"{size(wire / length)}/s" if length > 0.001 and wire > 65536 else ""


def stall_during(client, migration):
    """The longest gap in the client's answers that touches the migration."""
    begin, end = migration["begin"], migration["end"]
    touching = [gap for gap in client["stalls"] if gap["from"] <= end and gap["to"] >= begin]
    return max(touching, key=lambda gap: gap["seconds"], default=None)


def show(migration, stall):
    report = migration["report"]
    total = seconds(report["total"])
    print(f"\n{report['source']} → {report['destination']}: {report['container']}, {report['outcome']['result']}")
    print(f"  {'phase':<11}{'begin':>10}{'length':>11}{'wire':>11}{'throughput':>14}")
    for phase in report["phases"]:
        begin, length = seconds(phase["begin"]), seconds(phase["length"])
        left = min(BAR - 1, int(begin / total * BAR)) if total else 0
        width = max(1, min(BAR - left, round(length / total * BAR))) if total else 1
        bar = " " * left + "█" * width
        wire = phase["wire"]
        line = f"  {phase['phase']:<11}{span(begin):>10}{span(length):>11}{size(wire) if wire else '':>11}"
        print(f"{line}{rate(wire, length):>14}  {bar}".rstrip())
    for one in report["rounds"]:
        length = seconds(one["duration"])
        line = f"  round {one['number']:<5}{'':>10}{span(length):>11}{size(one['wire']):>11}{rate(one['wire'], length):>14}"
        print(f"{line}  {one['sent']} of {one['scanned']} pages")
    for decision in report["decisions"]:
        print(f"  policy: {decision}")
    print(f"  in all     {span(total):>10}, {size(report['wire'])} over the wire, {report['pages']} pages")
    blackout = seconds(report["blackout"])
    if blackout is not None:
        print(f"  blackout   {span(blackout):>10}  from the freeze until the source knew that it runs again")
    if stall:
        print(f"  stall      {span(stall['seconds']):>10}  the client's longest wait, {clock(stall['from'])} to {clock(stall['to'])}")
    else:
        print("  stall            none  no gap of 20 ms or more in the client's answers")


def brief(migration, stall):
    report = migration["report"]
    blackout = seconds(report["blackout"])
    print(
        f"{report['source']} → {report['destination']}: {report['outcome']['result']} in {span(seconds(report['total']))},"
        f" {size(report['wire'])}, blackout {span(blackout) if blackout is not None else '-'},"
        f" stall {span(stall['seconds']) if stall else 'under 20 ms'}"
    )


def judge(migrations, client, verified):
    """Everything that is not as it must be."""
    bad = []
    for migration in migrations:
        report = migration["report"]
        outcome = report["outcome"]
        way = f"{report['source']} → {report['destination']}"
        if outcome["result"] != "moved":
            bad.append(f"{way}: {outcome['result']}: {outcome.get('why', '')}")
        elif report["blackout"] is None:
            bad.append(f"{way}: moved, and reports no blackout")
        elif report["wire"] == 0:
            bad.append(f"{way}: moved, and reports no bytes")
    if "failed" in client:
        bad.append(f"the client failed: {client['failed']}")
    else:
        bad += [f"the client counted {client[fault]} {fault.replace('_', ' ')}" for fault in FAULTS if client[fault]]
        bad += client["samples"]
        if not client["answers"]:
            bad.append("the client got no answer at all")
    if verified is not None:
        if "failed" in verified:
            bad.append(f"verifying failed: {verified['failed']}")
        else:
            bad += [f"{verified[what]} keys are {what}" for what in ("wrong", "missing", "extra") if verified[what]]
            bad += verified["samples"]
    return bad


def main():
    parser = argparse.ArgumentParser(description="Shows what migrations cost, and judges.")
    parser.add_argument("--client", required=True)
    parser.add_argument("--verify")
    parser.add_argument("--brief", action="store_true", help="a line per migration")
    parser.add_argument("migrations", nargs="+")
    options = parser.parse_args()
    client = read(options.client)
    verified = read(options.verify) if options.verify else None
    migrations = [read(path) for path in options.migrations]
    for migration in migrations:
        stall = stall_during(client, migration) if "stalls" in client else None
        (brief if options.brief else show)(migration, stall)
    if "answers" in client:
        print(
            f"\nclient: {client['answers']} answers in {client['seconds']} s on {len(client['connections'])} busy and"
            f" {client['idle_connections']} idle connections; "
            + ", ".join(f"{client[fault]} {fault.replace('_', ' ')}" for fault in FAULTS)
        )
    bad = judge(migrations, client, verified)
    for reason in bad:
        print(f"WRONG: {reason}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
