"""What must be shown, as ratios of the medians of one run: each with its limit and whether it holds."""

# Growth with memory, by tracker: the larger size, and the most times the blackout of 16 MiB and an idle writer.
GROWTH = {
    "godwit-soft-dirty": (1024, {0: 1.3, 1000: 1.5}),
    "godwit-uffd-wp": (2048, {0: 1.6, 1000: 2.0}),
}
SMALL = 16
BESIDE = 512
OF_RUNC = 1 / 12
OF_FLOOR = 1.5
STALL_MORE_MS = 30
PRECOPY = 0.6
KEPT = 0.9
DESTINATION = 1.15
SOURCE_MIB = 128


class Cells:
    def __init__(self, cells):
        self.cells = {(c["subject"], c["memory_mib"], c["dirty_pages_per_s"]): c for c in cells}

    def get(self, subject, mib, rate):
        return self.cells.get((subject, mib, rate))

    def median(self, subject, mib, rate, metric="blackout_ms"):
        cell = self.get(subject, mib, rate)
        return cell[metric]["median"] if cell and cell[metric] else None

    def of(self, subject):
        return [cell for cell in self.cells.values() if cell["subject"] == subject and cell["runs"]]


def rule(name, value, limit, at_most=True, text=""):
    """One ratio; `holds` is None when this run did not measure what it needs."""
    holds = None
    if value is not None:
        holds = value <= limit if at_most else value >= limit
    return {"rule": name, "value": value, "limit": limit, "at_most": at_most, "holds": holds, "text": text}


def over(one, other):
    return one / other if one is not None and other else None


def ms(value):
    return f"{value:.1f} ms" if value is not None else "not measured"


def growth(cells, subject):
    large, limits = GROWTH[subject]
    base = cells.median(subject, SMALL, 0)
    for rate, limit in limits.items():
        value, same = cells.median(subject, large, rate), cells.median(subject, SMALL, rate)
        text = f"{ms(value)} / {ms(base)}"
        if rate and same and value:
            text += f"; {value / same:.2f} × the one of {SMALL} MiB at the same rate"
        name = f"{subject}: blackout at {large} MiB, {rate} pages/s, to {SMALL} MiB with an idle writer"
        yield rule(name, over(value, base), limit, text=text)


def beside_others(cells, subject):
    mine = cells.median(subject, BESIDE, 0)
    for other, limit, what in (("runc", OF_RUNC, "runc's checkpoint and restore"), ("criu-floor", OF_FLOOR, "the floor")):
        theirs = cells.median(other, BESIDE, 0)
        name = f"{subject}: blackout at {BESIDE} MiB to {what}"
        yield rule(name, over(mine, theirs), limit, text=f"{ms(mine)} / {ms(theirs)}")


def clients(cells, subject):
    mine = [cell for cell in cells.of(subject) if cell["stall_ms"] and cell["blackout_ms"]]
    more = [(cell["stall_ms"]["median"] - cell["blackout_ms"]["median"], cell) for cell in mine]
    worst = max(more, key=lambda pair: pair[0], default=None)
    text = f"at {worst[1]['memory_mib']} MiB, {worst[1]['dirty_pages_per_s']} pages/s" if worst else ""
    name = f"{subject}: client stall beyond the blackout, the worst cell, ms"
    yield rule(name, worst[0] if worst else None, STALL_MORE_MS, text=text)
    runs = sum(cell["runs"] for cell in mine)
    clean = sum(cell["runs_without_retransmission"] for cell in mine)
    name = f"{subject}: runs without a retransmission"
    yield rule(name, clean / runs if runs else None, 0.5, at_most=False, text=f"{clean} of {runs}")


def memory(cells, subject):
    mine = [cell for cell in cells.of(subject) if cell["extra_memory_mib"]["destination"]]
    cell = max(mine, key=lambda c: (c["memory_mib"], -c["dirty_pages_per_s"]), default=None)
    size = cell["memory_mib"] if cell else None
    there = cell["extra_memory_mib"]["destination"]["median"] if cell else None
    sources = [cell["extra_memory_mib"]["source"]["median"] for cell in mine if cell["extra_memory_mib"]["source"]]
    here = max(sources, default=None)
    text = f"{there:.0f} MiB for {size} MiB" if cell else ""
    yield rule(f"{subject}: peak extra memory on the destination to the container's", over(there, size), DESTINATION, text=text)
    yield rule(f"{subject}: peak extra memory on the source, the worst cell, MiB", here, SOURCE_MIB)


def extras(found):
    precopy, link, redis = (found.get(name) or {} for name in ("precopy", "link", "redis"))

    def rates(extra):
        if not extra.get("ratio"):
            return extra.get("failed", "")
        return f"{extra['godwit_mib_per_s']:.0f} / {extra['plain_mib_per_s']:.0f} MiB/s"

    text = rates(precopy)
    if precopy.get("ratio"):
        text += f"; through a buffer and write {precopy['buffered_mib_per_s']:.0f}, of which it is {precopy['ratio_buffered']:.2f}"
    yield rule(
        "pre-copy of incompressible memory to a plain process_vm_readv into a mapping of tmpfs",
        precopy.get("ratio"), PRECOPY, at_most=False, text=text,
    )  # fmt: skip
    yield rule(
        "pre-copy of 3:1 memory over 1 Gbit/s to the plain copy over that link",
        link.get("ratio"), 1.0, at_most=False, text=rates(link),
    )  # fmt: skip
    text = redis.get("failed", "")
    if redis.get("ratio"):
        text = f"{redis['copying_per_s']:.0f} / {redis['before_per_s']:.0f} commands/s"
    yield rule("redis-benchmark's throughput while being copied to before", redis.get("ratio"), KEPT, at_most=False, text=text)


def judge(result):
    cells = Cells(result["cells"])
    rules = []
    for subject in sorted({cell["subject"] for cell in result["cells"]}):
        if not subject.startswith("godwit"):
            continue
        if subject in GROWTH:
            rules += growth(cells, subject)
            rules += beside_others(cells, subject)
        rules += clients(cells, subject)
        rules += memory(cells, subject)
    rules += extras(result["extras"])
    return rules
