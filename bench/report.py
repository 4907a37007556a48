"""The results as a table: on a terminal, and in Markdown."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from .cases import CEILING, MIB, OURS
from .results import Bound, CaseResult, Ratio, Report, Run

START = "<!-- results -->"
END = "<!-- end of results -->"

COLUMNS = (
    "case",
    "server",
    "objects/s",
    "MB/s",
    "p50 ms",
    "p99 ms",
    "peak MiB",
    "CPU",
    "load's CPU",
    "ours / it",
    "to reach",
    "",
)
NEAR_CEILING = 0.8
"""From this share of the generator's ceiling on, the generator may be what is measured."""
NOISE = 0.05
"""Share of the server's core, used by others, from which on a run is marked."""


def show(report: Report, console: Console) -> None:
    """Print the table and what it is to be read with."""
    table = Table(show_edge=False, pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=index != 0)
    for case in report.cases:
        for row in _rows(report, case):
            table.add_row(*row)
        table.add_section()
    wide = console.options.update(max_width=1000)
    needed = Measurement.get(console, wide, table).maximum
    Console(width=max(needed, console.width)).print(table)
    for line in _remarks(report):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def markdown(report: Report) -> str:
    """The table in Markdown, with the machine and the remarks."""
    lines = [_machine(report), "", _row(COLUMNS), _row(["---", "---", *["---:"] * (len(COLUMNS) - 2)])]
    lines += [_row(row) for case in report.cases for row in _rows(report, case)]
    remarks = _remarks(report)
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks)]).rstrip() + "\n"


def write_markdown(report: Report, path: Path) -> None:
    """Put the table into a file: between its marks where it has them, else as the whole of it."""
    text = markdown(report)
    if path.exists():
        before, mark, rest = path.read_text().partition(START)
        if mark and END in rest:
            text = f"{before}{START}\n\n{text}\n{END}{rest.partition(END)[2]}"
    path.write_text(text)


def _rows(report: Report, case: CaseResult) -> list[list[str]]:
    rows = []
    for index, server in enumerate(case.servers()):
        runs = case.of(server)
        good = [run for run in runs if not run.errors]
        numbers = _numbers(good) if good else _refused(runs)
        label = report.labels.get(server, server)
        noisy = "~" if any(run.other_cpu > NOISE for run in good) else ""
        rows.append([case.title if index == 0 else "", label + noisy, *numbers, *_verdict(case, server)])
    return rows


def _refused(runs: list[Run]) -> list[str]:
    peak = max(run.peak_bytes for run in runs)
    return ["refused", "", "", "", f"> {peak / MIB:,.0f}" if peak else "", "", ""]


def _numbers(runs: list[Run]) -> list[str]:
    def middle(name: str) -> float:
        return float(median(getattr(run, name) for run in runs))

    formats = (
        ("rate", "{:,.0f}", 1.0),
        ("mb_per_s", "{:,.0f}", 1.0),
        ("p50_ms", "{:,.2f}", 1.0),
        ("p99_ms", "{:,.2f}", 1.0),
        ("peak_bytes", "{:,.0f}", 1 / MIB),
        ("server_cpu", "{:.0%}", 1.0),
        ("load_cpu", "{:.0%}", 1.0),
    )
    cells = []
    for name, pattern, factor in formats:
        value = middle(name) * factor
        if name == "rate" and 0 < value < 100:
            pattern = "{:,.2f}"
        cells.append(pattern.format(value) if value else "")
    return cells


def _verdict(case: CaseResult, server: str) -> list[str]:
    """Ratio, what is to be reached, and whether it is."""
    if server == OURS and case.bound:
        return _bound(case, case.bound)
    for ratio in case.ratios:
        if ratio.peer == server:
            return _ratio(ratio)
    return ["", "", ""]


def _bound(case: CaseResult, bound: Bound) -> list[str]:
    limit = f"≤ {bound.at_most / MIB:,.0f} MiB" if case.unit == "bytes" else f"≤ {bound.at_most:g} {case.unit}"
    return ["", limit, "refused" if bound.refused else _mark(bound.reached)]


def _ratio(ratio: Ratio) -> list[str]:
    goal = f"≥ {ratio.to_reach:g}" if ratio.to_reach is not None else ""
    if ratio.refused:
        return ["refused", goal, ""]
    return [f"{_short(ratio.median)} [{_short(ratio.low)}-{_short(ratio.high)}]", goal, _mark(ratio.reached)]


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _mark(reached: bool | None) -> str:
    return "" if reached is None else "yes" if reached else "NO"


def _remarks(report: Report) -> list[str]:
    remarks = [
        "Medians over the rounds. A ratio is the median of the rounds' ratios, with their range; of objects/s, but of "
        "what the case is named for where that is a time or memory: there, less is better."
    ]
    if report.quick:
        remarks.append("A quick run: too short to be quoted.")
    for case in report.cases:
        refusals = dict.fromkeys(error for run in case.runs for error in run.errors)
        for server in case.servers():
            errors = [error for run in case.of(server) for error in run.errors]
            if errors:
                remarks.append(
                    f"{case.title}, {report.labels.get(server, server)}: {' / '.join(errors[0].splitlines())}"
                )
        if not refusals:
            remarks += _near_ceiling(report, case)
    if any(run.other_cpu > NOISE for case in report.cases for run in case.runs):
        remarks.append(f"~ somebody else used more than {NOISE:.0%} of the server's core in a run.")
    return remarks


def _near_ceiling(report: Report, case: CaseResult) -> list[str]:
    ceiling = case.of(CEILING)
    if not ceiling:
        return []
    most = median(run.rate for run in ceiling)
    remarks = []
    for server in case.servers():
        share = median(run.rate for run in case.of(server)) / most
        if server != CEILING and share > NEAR_CEILING:
            label = report.labels.get(server, server)
            remarks.append(f"{case.title}: {label} is at {share:.0%} of what the generator can do.")
    return remarks


def _machine(report: Report) -> str:
    of = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"{report.started}, {report.rounds} rounds of {report.seconds:g} s. "
        f"{of['cpu']}, {of['cores']} cores, {of['memory']}, Linux {of['kernel']}, Python {of['python']}. {versions}."
    )


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
