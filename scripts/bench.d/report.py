"""bench.md: the figures as tables, and what must be shown."""

HEAD = (
    ("blackout, ms", "blackout_ms", "{:.0f}"),
    ("stall, ms", "stall_ms", "{:.0f}"),
    ("retrans.", "retransmissions", "{:.0f}"),
    ("total, s", "total_ms", "{:.2f}"),
    ("wire, MiB", "wire_bytes", "{:.0f}"),
    ("CPU, s", "cpu_s", "{:.2f}"),
    ("extra source, MiB", "source", "{:.0f}"),
    ("extra dest., MiB", "destination", "{:.0f}"),
    ("kept", "kept_throughput", "{:.0%}"),
)
SCALE = {"total_ms": 1e-3, "wire_bytes": 1 / (1 << 20)}

NOTES = """
Median (min–max). *Blackout*: the longest hole in a 1 ms CLOCK_REALTIME log that the workload itself keeps. *Stall*: the
longest time between two answers to a client that asks every millisecond over one TCP connection; *retrans.*: that
connection's retransmissions on the client's side. (On emulated machines, which are
that much slower, log and client tick at 8 ms, and an eighth of the pages is dirtied per second.) *Total*: from the command to its end. *Wire*: bytes that the hosts
sent each other, counted at the switch; of subjects that write images, the images' size. *CPU*: both hosts', the
workload's own taken off, until both are at rest again. *Extra*: the most memory beyond what the host held before, with
page cache and tmpfs; of subjects on one host, that host's. *Kept*: the workload's own throughput while being copied, to
that before.

`godwit-*` moves between two hosts over a virtual cable. `runc` and `crun` checkpoint and restore on one host, through
images on tmpfs that nobody has to send; `runc-lazy` restores on the second host and fetches memory from the first;
`runc-predump` sends two pre-dumps and the rest to page servers on the second host, which restores.
No container has a user namespace of its own, which is Godwit's default: the others' have none.
`criu-floor` is stock `criu dump` and `criu restore` of an empty container with the same mounts and namespaces (external
network, no lock), measured beside each size and rate; `criu-bare` the same with no mounts but its root and /proc. The
hosts, the client and the measuring share the machine's cores.
"""


def value(cell, metric):
    return cell["extra_memory_mib"][metric] if metric in ("source", "destination") else cell[metric]


def shown(cell, metric, form):
    found = value(cell, metric)
    if not found:
        return "–"
    scale = SCALE.get(metric, 1)
    low, middle, high = (form.format(found[key] * scale) for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}–{high})"


def machine_lines(machine, skipped):
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
    yield f"- {machine['godwit']} ({machine['commit']}), CRIU {machine['criu']}, {peers or 'no peers'}"
    yield f"- kernel {machine['kernel']}, {machine['distribution']}, soft-dirty: {'yes' if machine['soft_dirty'] else 'no'}"
    yield (
        f"- {machine['cores']} cores ({machine['processor']}; virtualization: {machine['virtual']}), {machine['memory_mib']} MiB;"
        f" load at the start {machine['load_at_start'][0]}"
    )
    yield f"- {machine['started_at']}; {machine['runs']} runs each; memory that compresses {machine['data']}, THP {machine['thp']}"
    yield f"- hosts: {machine['backend']}"
    yield f"- memory accounting: {machine['memory_accounting']}"
    for name, why in skipped.items():
        yield f"- {name} left out: {why}"


def rule_line(rule):
    verdict = {True: "yes", False: "NO", None: "not measured"}[rule["holds"]]
    sign = "≤" if rule["at_most"] else "≥"
    number = "" if rule["value"] is None else f" {rule['value']:.3g}"
    text = f" ({rule['text']})" if rule["text"] else ""
    return f"{verdict}: {rule['rule']}:{number} {sign} {rule['limit']:.3g}{text}"


def table(cells):
    yield "| subject | " + " | ".join(title for title, _, _ in HEAD) + " |"
    yield "|---|" + "---:|" * len(HEAD)
    for cell in cells:
        name = cell["subject"] + (f" ({len(cell['failures'])} failed)" if cell["failures"] else "")
        yield f"| {name} | " + " | ".join(shown(cell, metric, form) for _, metric, form in HEAD) + " |"


def spans(result):
    """Where the blackout of the largest container goes, by the report of the run nearest to the median."""
    cells = [c for c in result["cells"] if c["samples"] and c["samples"][0].get("report", {}).get("spans")]
    cells = [c for c in cells if c["dirty_pages_per_s"] == 0]
    if not cells:
        return
    cell = max(cells, key=lambda c: c["memory_mib"])
    sample = min(cell["samples"], key=lambda s: abs(s["blackout_ms"] - cell["blackout_ms"]["median"]))
    yield "\n## Where a blackout goes\n"
    yield f"{cell['subject']}, {cell['memory_mib']} MiB, idle writer; {sample['blackout_ms']:.1f} ms. Steps lie in and beside each other.\n"
    yield "| side | step | begin, ms | length, ms |\n|---|---|---:|---:|"
    for span in sorted(sample["report"]["spans"], key=lambda s: (s["begin"]["secs"], s["begin"]["nanos"])):
        begin, length = ((span[key]["secs"] * 1e3 + span[key]["nanos"] / 1e6) for key in ("begin", "length"))
        yield f"| {span['side']} | {span['name']} | {begin:.1f} | {length:.1f} |"


def markdown(result):
    lines = ["# What a move costs\n", *machine_lines(result["machine"], result["skipped"])]
    lines += ["\n![blackout against memory](bench.svg)\n", "## What must be shown\n", "| holds | what | is | must be | of |", "|---|---|---:|---:|---|"]
    for rule in result["must_show"]:
        holds = {True: "yes", False: "**no**", None: "not measured"}[rule["holds"]]
        number = "–" if rule["value"] is None else f"{rule['value']:.3g}"
        lines.append(f"| {holds} | {rule['rule']} | {number} | {'≤' if rule['at_most'] else '≥'} {rule['limit']:.3g} | {rule['text']} |")
    lines.append("\n## The figures")
    lines.append(NOTES)
    groups = dict.fromkeys((cell["memory_mib"], cell["dirty_pages_per_s"]) for cell in result["cells"])
    for mib, rate in groups:
        lines.append(f"\n### {mib} MiB, {rate or 'no'} dirtied pages per second\n")
        lines += table([c for c in result["cells"] if (c["memory_mib"], c["dirty_pages_per_s"]) == (mib, rate)])
    lines += spans(result)
    if result["extras"]:
        lines.append("\n## Besides\n")
        for name, extra in result["extras"].items():
            known = ", ".join(f"{key} {number:.4g}" if isinstance(number, float) else f"{key} {number}" for key, number in extra.items() if key != "samples")
            lines.append(f"- **{name}**: {known}")
    failures = [(c, f) for c in result["cells"] for f in c["failures"]]
    if failures:
        lines.append("\n## What failed\n")
        lines += [f"- {c['subject']}, {c['memory_mib']} MiB, {c['dirty_pages_per_s']} pages/s: {text}" for c, text in failures]
    return "\n".join(lines) + "\n"
