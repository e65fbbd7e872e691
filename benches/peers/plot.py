"""plot.py CSV SVG MARKDOWN: what `scripts/bench-peers --record` wrote as one picture, and as a table
between the two marks in a page. Needs nothing but Python.

Each row of bars is one piece of work; a bar is a rate over that of the best peer of the same kind
(f32 for our fp16 and f32, bf16 for our bf16). Bars that end left of the line at 1 are losses.
"""
import csv
import os
import sys
from xml.sax.saxutils import escape

OURS = "histokern"
COLOURS = {"fp16": "#1b6ca8", "bf16": "#d1602b", "f32": "#7a7a7a", "u8": "#2e8b57"}
LEFT, RIGHT, LINE, MOST = 250, 190, 17, 4.0
WIDTH = 860
MARKS = ("<!-- by benches/peers/plot.py -->", "<!-- end -->")


def compared(rows):
    """(work, batch, precision, ours over the best peer, who that is, spread of ours, our row, theirs)."""
    for own in (r for r in rows if r["who"] == OURS):
        kind = "f32" if own["precision"] == "fp16" else own["precision"]
        peers = [r for r in rows if r["who"] != OURS and r["precision"] == kind
                 and (r["work"], r["batch"]) == (own["work"], own["batch"])]
        if peers:
            best = max(peers, key=lambda r: float(r["median"]))
            low, middle, high = (float(own[k]) for k in ("min", "median", "max"))
            base = float(best["median"])
            yield (own["work"], own["batch"], own["precision"], middle / base, best["who"],
                   (low / base, high / base), own, best)


def draw(bars, subtitle):
    scale = (WIDTH - LEFT - RIGHT) / MOST
    x = lambda ratio: LEFT + scale * min(ratio, MOST)
    top, out, y, last = 70, [], 70, None
    for work, batch, precision, ratio, peer, (low, high), *_ in bars:
        group = (work, batch)
        if group != last:
            y += 8
            label = f"{work}, batch {batch}" if batch else work
            out.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>')
            last = group
        colour = COLOURS.get(precision, "#444")
        out.append(f'<rect x="{LEFT}" y="{y + 2}" width="{x(ratio) - LEFT:.1f}" height="{LINE - 5}" '
                   f'fill="{colour}"/>')
        middle = y + 2 + (LINE - 5) / 2
        out.append(f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}" '
                   'stroke="#000" stroke-width="1"/>')
        out.append(f'<text x="{max(x(ratio), x(high)) + 6:.1f}" y="{y + 12}">{ratio:.2f} '
                   f'{escape(precision)} / {escape(peer)}</text>')
        y += LINE
    bottom = y + 10
    axis = []
    for tick in range(int(MOST) + 1):
        weight = 1.6 if tick == 1 else 0.4
        axis.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{bottom}" '
                    f'stroke="#555" stroke-width="{weight}"/>')
        axis.append(f'<text x="{x(tick)}" y="{bottom + 15}" text-anchor="middle">{tick}</text>')
    head = [f'<text x="16" y="26" font-size="16" font-weight="bold">Rate of histokern over that of '
            'the best peer</text>',
            f'<text x="16" y="46">{escape(subtitle)}</text>']
    body = "\n".join(head + axis + out)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 28}" '
            f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
            f'fill="#fff"/>\n{body}\n</svg>\n')


def table(bars, subtitle):
    """Markdown."""
    spread = lambda r: f"{(float(r['max']) - float(r['min'])) / float(r['median']):.0%}"
    rate = lambda r: f"{float(r['median']):.4g}"
    lines = [subtitle + ".", "",
             "| work | batch | numbers | ours | spread | best peer | theirs | spread | ratio |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for work, batch, precision, ratio, peer, _, own, best in bars:
        lines.append(f"| {work} | {batch} | {precision} | {rate(own)} {own['unit']} | {spread(own)} "
                     f"| {peer} | {rate(best)} | {spread(best)} | {ratio:.2f} |")
    return "\n".join(lines)


def write(source, picture, page):
    with open(source) as f:
        rows = list(csv.DictReader(f))
    first = rows[0]
    machine = f"{first['cpu']}, {first['threads']} threads"
    bars = list(compared(rows))
    with open(picture, "w") as f:
        f.write(draw(bars, f"{machine}; line: from the slowest round to the fastest"))
    versions = "; ".join(sorted({r["version"] for r in rows if r["who"] != OURS}))
    with open(page) as f:
        before, _, after = f.read().partition(MARKS[0])
    after = after.partition(MARKS[1])[2]
    with open(page, "w") as f:
        shown = f"![Rate of histokern over that of the best peer]({os.path.basename(picture)})"
        text = f"{shown}\n\n{table(bars, f'{machine}. {versions}')}"
        f.write(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    write(*sys.argv[1:])
