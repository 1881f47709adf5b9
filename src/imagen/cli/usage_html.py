"""The report of `imagen usage --html`: one file that needs nothing else, for eyes, printers and screen readers.

Whatever comes from outside (models, callers, names of keys) is escaped; the page has no script, and its policy allows none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from html import escape

from imagen.cli.tables import clean
from imagen.cli.usage_plot import every_day
from imagen.cli.usage_tables import (
    GROUP_COLUMNS,
    JUDGED_COLUMNS,
    group_cells,
    notes_on,
    shown_cost,
    shown_rate,
)
from imagen.domain.money import from_dollars
from imagen.service.usage import GroupFacts, UsageReport

Days = Sequence[tuple[str, GroupFacts | None]]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 800.0, 240.0, 90.0, 26.0, 10.0
_MOST_LABELS = 8
_TITLES = {
    "predictions": "Predictions",
    "succeeded": "Succeeded",
    "success": "Success rate",
    "images": "Pictures",
    "cost": "Cost",
    "p50_s": "Median, s",
    "p95_s": "95th percentile, s",
    "kept": "Kept",
    "cost_per_kept": "Cost per kept picture",
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --soft: #666; --line: #d0d0d5; --a: #0b62c4; --b: #b3520a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --paper: #16161a; --soft: #a6a6ae; --line: #3a3a42; --a: #6cb2ff; --b: #ffb267; }
}
body { margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
dl { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 1.5rem; overflow-x: auto; } figcaption { color: var(--soft); font-size: .85rem; }
svg { width: 100%; height: auto; min-width: 30rem; } svg text { fill: var(--soft); font-size: 12px; }
.rule { stroke: var(--line); } .bar { fill: var(--a); }
.middle { stroke: var(--a); fill: none; stroke-width: 2; } .slow { stroke: var(--b); fill: none; stroke-width: 2; stroke-dasharray: 6 3; }
.middle-dot { fill: var(--a); } .slow-dot { fill: var(--b); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 100%; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .4rem; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; } tbody th { font-weight: normal; } tfoot th, tfoot td { font-weight: bold; }
@media print { body { max-width: none; margin: 0; } }
"""


def usage_page(report: UsageReport, days: UsageReport, *, made_at: datetime) -> str:
    """A page of HTML.

    Args:
        report: added up as it was asked for.
        days: the same entries, added up by day.
        made_at: aware.
    """
    shown = list(every_day(days.groups))
    body = [
        f"<h1>{_TITLE}</h1>",
        f"<p>{_text(_period(report))} Made {_text(made_at.isoformat(sep=' ', timespec='minutes'))}.</p>",
        _facts(report.total),
    ]
    if shown:
        body += [
            "<h2>Each day</h2>",
            _spend(shown),
            _latency(shown),
        ]
    body += [f"<h2>By {_text(report.by)}</h2>", _table(report)]
    if report.by != "day" and days.groups:
        body += ["<h2>By day</h2>", _table(days)]
    body += [f"<p>{_text(note)}</p>" for note in notes_on(report.total)]
    return _PAGE.format(title=_TITLE, style=_STYLE, body="\n".join(body))


_TITLE = "imagen: what was made and what it cost"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _text(told: object) -> str:
    """Something as text of the page: nothing in it is markup, and nothing a control character."""
    return escape(clean(str(told)), quote=True)


def _period(report: UsageReport) -> str:
    begin, end = (
        None if one is None else one.isoformat(sep=" ", timespec="minutes")
        for one in (report.since, report.until)
    )
    match begin, end:
        case None, None:
            period = "Everything in the ledger."
        case _, None:
            period = f"Since {begin}."
        case None, _:
            period = f"Until {end}."
        case _:
            period = f"From {begin} until {end}."
    return f"{period} Days are {'those of UTC' if report.days == 'UTC' else 'local'}."


def _facts(total: GroupFacts) -> str:
    told = [
        ("Cost", shown_cost(total)),
        ("Predictions", total.predictions),
        ("Pictures", total.images),
        ("Success rate", "-" if total.success_rate is None else shown_rate(total.success_rate)),
        ("Median latency", f"{total.p50_seconds:.1f} s"),
        ("95th percentile", f"{total.p95_seconds:.1f} s"),
    ]
    if total.judged:
        told += [("Kept pictures", total.kept)]
    if total.cost_per_kept_usd is not None:
        told += [("Cost per kept picture", from_dollars(total.cost_per_kept_usd))]
    if total.cached:
        told += [("Saved by the cache", from_dollars(total.saved_usd))]
    pairs = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in told)
    return f"<dl>{pairs}</dl>"


# --- tables ----------------------------------------------------------------------------------------------


def _table(report: UsageReport) -> str:
    columns = GROUP_COLUMNS + (JUDGED_COLUMNS if report.total.judged else ())
    head = "".join(
        f'<th scope="col">{_text(name)}</th>' for name in (report.by, *map(_TITLES.__getitem__, columns))
    )
    rows = "\n".join(_line(group, len(columns)) for group in report.groups)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table by {_text(report.by)}"><table>\n'
        f"<caption>What was made and what it cost, by {_text(report.by)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n"
        f"<tfoot>{_line(report.total, len(columns))}</tfoot>\n</table></div>"
    )


def _line(group: GroupFacts, columns: int) -> str:
    name, *cells = group_cells(group)
    others = "".join(f"<td>{_text(cell)}</td>" for cell in cells[:columns])
    return f'<tr><th scope="row">{_text(name)}</th>{others}</tr>'


# --- charts ----------------------------------------------------------------------------------------------


def _spend(days: Days) -> str:
    costs = [0.0 if group is None else group.cost_usd or 0.0 for _, group in days]
    most = max(costs, default=0.0)
    step = (_WIDTH - _LEFT) / len(days)
    bars = []
    for number, ((day, group), cost) in enumerate(zip(days, costs, strict=True)):
        if group is None or not cost:
            continue
        height = _scaled(cost, most)
        bars.append(
            f'<rect class="bar" x="{_LEFT + number * step + step * 0.1:.2f}" y="{_base() - height:.2f}" '
            f'width="{step * 0.8:.2f}" height="{height:.2f}"><title>{_text(day)}: {_text(shown_cost(group))}</title></rect>'
        )
    top = f"{from_dollars(round(most, 6))}"
    return _figure("spend", "Cost of each day", days, "".join(bars), top=top)


def _latency(days: Days) -> str:
    most = max((group.p95_seconds for _, group in days if group), default=0.0)
    drawn = [
        _curve(days, "middle", [None if group is None else group.p50_seconds for _, group in days], most),
        _curve(days, "slow", [None if group is None else group.p95_seconds for _, group in days], most),
    ]
    caption = "Latency of each day: the median (solid) and the 95th percentile (dashed)"
    return _figure("latency", caption, days, "".join(drawn), top=f"{most:.1f} s")


def _curve(days: Days, kind: str, values: Sequence[float | None], most: float) -> str:
    """A line through the days that have a value; a day without one interrupts it."""
    step = (_WIDTH - _LEFT) / len(days)
    lines, dots = [], []
    for run in _runs(values):
        points = [
            (_LEFT + (number + 0.5) * step, _base() - _scaled(value, most), number, value)
            for number, value in run
        ]
        lines.append(" ".join(f"{x:.2f},{y:.2f}" for x, y, _, _ in points))
        dots += [
            f'<circle class="{kind}-dot" cx="{x:.2f}" cy="{y:.2f}" r="3"><title>{_text(days[number][0])}: {value:.1f} s</title></circle>'
            for x, y, number, value in points
        ]
    return "".join(f'<polyline class="{kind}" points="{line}"/>' for line in lines) + "".join(dots)


def _runs(values: Iterable[float | None]) -> Iterator[list[tuple[int, float]]]:
    run: list[tuple[int, float]] = []
    for number, value in enumerate(values):
        if value is not None:
            run.append((number, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _figure(name: str, caption: str, days: Days, drawn: str, *, top: str) -> str:
    """A drawing with its frame; the same numbers are in the table by day."""
    every = -(-len(days) // _MOST_LABELS)
    step = (_WIDTH - _LEFT) / len(days)
    labels = "".join(
        f'<text x="{_LEFT + (number + 0.5) * step:.2f}" y="{_HEIGHT - 8:.0f}" text-anchor="middle">{_text(day)}</text>'
        for number, (day, _) in enumerate(days)
        if number % every == 0
    )
    frame = (
        f'<line class="rule" x1="{_LEFT:g}" y1="{_base():g}" x2="{_WIDTH:g}" y2="{_base():g}"/>'
        f'<line class="rule" x1="{_LEFT:g}" y1="{_TOP:g}" x2="{_WIDTH:g}" y2="{_TOP:g}"/>'
        f'<text x="{_LEFT - 8:g}" y="{_TOP + 4:g}" text-anchor="end">{_text(top)}</text>'
        f'<text x="{_LEFT - 8:g}" y="{_base():g}" text-anchor="end">0</text>'
    )
    first, last = days[0][0], days[-1][0]
    told = f"{caption}, from {first} to {last}. The highest is {top}. The numbers are in the table by day."
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-labelledby="{name}-title {name}-told">'
        f'<title id="{name}-title">{_text(caption)}</title><desc id="{name}-told">{_text(told)}</desc>'
        f"{frame}{drawn}{labels}</svg><figcaption>{_text(caption)}</figcaption></figure>"
    )


def _base() -> float:
    return _HEIGHT - _BOTTOM


def _scaled(value: float, most: float) -> float:
    return (_base() - _TOP) * value / most if most else 0.0
