"""The results of a benchmark, as they stand in its JSON."""

from __future__ import annotations

from statistics import median

from pydantic import BaseModel

from .cases import OURS, Case


class Run(BaseModel):
    """One server under load once. What was not measured is 0."""

    server: str
    round: int
    objects: int = 0
    seconds: float = 0
    rate: float = 0
    """Objects a second."""
    mb_per_s: float = 0
    """Millions of bytes of objects a second, counted once."""
    p50_ms: float = 0
    p99_ms: float = 0
    peak_bytes: int = 0
    """Resident memory at its peak, over the process and its children."""
    server_cpu: float = 0
    """Share of a core that the server used."""
    load_cpu: float = 0
    """Share of a core that the load generator and the target used."""
    other_cpu: float = 0
    """Share of the server's core that somebody else used."""
    checked: int = 0
    """Answers of which the content was compared."""
    errors: list[str] = []
    """What was not right. A run with errors gives no ratio."""


class Ratio(BaseModel):
    """Ours/peer, over the rounds."""

    peer: str
    median: float = 0
    low: float = 0
    high: float = 0
    to_reach: float | None = None
    reached: bool | None = None
    refused: str | None = None
    """Why there is no ratio."""


class Bound(BaseModel):
    """What our own number may be at most."""

    at_most: float
    value: float = 0
    reached: bool | None = None
    refused: str | None = None


class CaseResult(BaseModel):
    """What came of one case."""

    name: str
    title: str
    metric: str
    unit: str
    higher_is_better: bool
    size: int
    connections: int
    generator: str
    runs: list[Run]
    ratios: list[Ratio]
    bound: Bound | None = None

    def of(self, server: str) -> list[Run]:
        """The runs of one server."""
        return [run for run in self.runs if run.server == server]

    def servers(self) -> list[str]:
        """The servers that took part, in order."""
        return list(dict.fromkeys(run.server for run in self.runs))


class Report(BaseModel):
    """A whole run of the benchmark."""

    started: str
    quick: bool
    rounds: int
    seconds: float
    machine: dict[str, str]
    versions: dict[str, str]
    labels: dict[str, str]
    """Of each server, what to call it."""
    cases: list[CaseResult] = []


def summed_up(case: Case, runs: list[Run]) -> CaseResult:
    """The result of a case, with the ratios that its runs allow."""
    return CaseResult(
        name=case.name,
        title=case.title,
        metric=case.metric.name,
        unit=case.metric.unit,
        higher_is_better=case.metric.higher_is_better,
        size=case.size,
        connections=case.connections,
        generator=case.generator.value,
        runs=runs,
        ratios=[_ratio(case, runs, peer) for peer in case.peers],
        bound=_bound(case, runs) if case.at_most is not None else None,
    )


def _ratio(case: Case, runs: list[Run], peer: str) -> Ratio:
    ratio = Ratio(peer=peer, to_reach=case.ratios.get(peer))
    ours = {run.round: run for run in runs if run.server == OURS}
    theirs = {run.round: run for run in runs if run.server == peer}
    ratio.refused = _reason(list(ours.values()), "ours") or _reason(list(theirs.values()), "the peer")
    if ratio.refused:
        return ratio
    values = []
    for number in ours.keys() & theirs.keys():
        mine, other = (getattr(run, case.metric.name) for run in (ours[number], theirs[number]))
        if not other:
            ratio.refused = "the peer's number is 0"
            return ratio
        values.append(mine / other)
    ratio.median, ratio.low, ratio.high = median(values), min(values), max(values)
    if ratio.to_reach is not None:
        ratio.reached = ratio.median >= ratio.to_reach
    return ratio


def _bound(case: Case, runs: list[Run]) -> Bound:
    assert case.at_most is not None
    bound = Bound(at_most=case.at_most)
    ours = [run for run in runs if run.server == OURS]
    bound.refused = _reason(ours, "ours")
    if not bound.refused:
        bound.value = median(getattr(run, case.metric.name) for run in ours)
        bound.reached = bound.value <= case.at_most
    return bound


def _reason(runs: list[Run], whose: str) -> str | None:
    if not runs:
        return f"{whose} did not run"
    for run in runs:
        if run.errors:
            return f"{whose}: {run.errors[0]}"
    return None
