"""bench.svg: blackout against memory, a panel per dirty rate, a line per subject; both axes logarithmic."""

import math
from html import escape

WIDTH, HEIGHT = 340, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 64, 52
LEGEND_LINE = 20
COLOURS = {
    "godwit-uffd-wp": "#0b6e4f",
    "godwit-soft-dirty": "#1f5fbf",
    "godwit-hash": "#6fb98f",
    "godwit": "#0b6e4f",
    "runc": "#c0392b",
    "runc-lazy": "#e08e79",
    "crun": "#d18b00",
    "criu-floor": "#555555",
    "criu-bare": "#999999",
}
DASHED = {"criu-floor": "5 4", "criu-bare": "1 3", "runc-lazy": "2 3", "godwit-hash": "7 3"}
SPARE = ("#7d3c98", "#2e86c1", "#b9770e")


def ticks(low, high):
    """1, 2 and 5 times powers of ten within, and one on each side."""
    steps = [m * 10**e for e in range(-1, 7) for m in (1, 2, 5)]
    inside = [s for s in steps if low <= s <= high]
    below = max((s for s in steps if s < low), default=steps[0])
    above = min((s for s in steps if s > high), default=steps[-1])
    return [below, *inside, above]


def length(ms):
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


def size(mib):
    return f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib} MiB"


class Axes:
    def __init__(self, left, sizes, marks):
        self.left, self.sizes, self.marks = left, sizes, marks

    def x(self, mib):
        low, high = math.log(max(1, self.sizes[0])), math.log(max(1, self.sizes[-1]))
        part = (math.log(max(1, mib)) - low) / (high - low) if high > low else 0.5
        return self.left + LEFT + 14 + part * (WIDTH - LEFT - RIGHT - 28)

    def y(self, ms):
        low, high = math.log(self.marks[0]), math.log(self.marks[-1])
        part = (math.log(min(max(ms, self.marks[0]), self.marks[-1])) - low) / (high - low)
        return TOP + (1 - part) * (HEIGHT - TOP - BOTTOM)

    def frame(self, title):
        x0, x1 = self.left + LEFT, self.left + WIDTH - RIGHT
        yield f'<text class="panel" x="{(x0 + x1) / 2:.0f}" y="{TOP - 12}">{escape(title)}</text>'
        for mark in self.marks:
            y = self.y(mark)
            yield f'<line class="grid" x1="{x0}" y1="{y:.1f}" x2="{x1}" y2="{y:.1f}"/>'
            yield f'<text class="y" x="{x0 - 6}" y="{y + 4:.1f}">{length(mark)}</text>'
        for mib in self.sizes:
            x, y = self.x(mib), HEIGHT - BOTTOM
            yield f'<line class="axis" x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 5}"/>'
            yield f'<text class="x" x="{x:.1f}" y="{y + 19}">{size(mib)}</text>'
        yield f'<path class="axis" d="M{x0} {TOP}V{HEIGHT - BOTTOM}H{x1}"/>'
        yield f'<text class="x" x="{(x0 + x1) / 2:.0f}" y="{HEIGHT - BOTTOM + 38}">memory of the container</text>'

    def line(self, cells, colour, dash):
        points = [(self.x(c["memory_mib"]), c["blackout_ms"]) for c in cells]
        path = " ".join(f"{x:.1f},{self.y(b['median']):.1f}" for x, b in points)
        style = f'stroke="{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")
        yield f'<polyline class="line" {style} points="{path}"/>'
        for x, b in points:
            yield f'<line class="spread" stroke="{colour}" x1="{x:.1f}" y1="{self.y(b["min"]):.1f}" x2="{x:.1f}" y2="{self.y(b["max"]):.1f}"/>'
            yield f'<circle fill="{colour}" cx="{x:.1f}" cy="{self.y(b["median"]):.1f}" r="3.2"/>'


STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: 600 } .panel { font-weight: 600; text-anchor: middle }
.y { text-anchor: end; fill: #555 } .x { text-anchor: middle; fill: #555 } .note { fill: #555 }
.grid { stroke: #e4e4e4 } .axis { stroke: #888; fill: none }
.line { fill: none; stroke-width: 2 } .spread { stroke-width: 1.4; opacity: .55 }
"""


def svg(result):
    cells = [c for c in result["cells"] if c["blackout_ms"]]
    subjects = list(dict.fromkeys(c["subject"] for c in cells))
    rates = sorted({c["dirty_pages_per_s"] for c in cells})
    sizes = sorted({c["memory_mib"] for c in cells})
    width = max(1, len(rates)) * WIDTH + 10
    columns = max(1, (width - LEFT) // 170)
    height = HEIGHT + LEGEND_LINE * math.ceil(len(subjects) / columns) + 12
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="title" x="{LEFT}" y="24">Blackout against memory: median, with min and max</text>',
    ]
    if not cells:
        return "\n".join([*out, f'<text x="{LEFT}" y="60">nothing was measured</text></svg>\n'])
    marks = ticks(min(c["blackout_ms"]["min"] for c in cells), max(c["blackout_ms"]["max"] for c in cells))
    colours = colours_of(subjects)
    for index, rate in enumerate(rates):
        axes = Axes(index * WIDTH, sizes, marks)
        out += axes.frame(f"{rate:,} dirtied pages/s" if rate else "idle writer")
        for subject in subjects:
            mine = [c for c in cells if c["subject"] == subject and c["dirty_pages_per_s"] == rate]
            out += axes.line(sorted(mine, key=lambda c: c["memory_mib"]), colours[subject], DASHED.get(subject))
    for index, subject in enumerate(subjects):
        x, y = LEFT + index % columns * 170, HEIGHT + LEGEND_LINE * (index // columns) + 8
        dash = f' stroke-dasharray="{DASHED[subject]}"' if subject in DASHED else ""
        out.append(f'<line class="line" stroke="{colours[subject]}"{dash} x1="{x}" y1="{y - 4}" x2="{x + 28}" y2="{y - 4}"/>')
        out.append(f'<text x="{x + 34}" y="{y}">{escape(subject)}</text>')
    return "\n".join([*out, "</svg>\n"])


def colours_of(subjects):
    spare = iter(SPARE * 3)
    return {subject: COLOURS.get(subject) or next(spare) for subject in subjects}
