"""A case from start to end: its servers, a warm-up, and rounds in which ours and each peer take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from .cases import CEILING, FLOOD_MEMORY, GIB, LOOP, MIB, OURS, Case, Measure, Way
from .jobs import Bench
from .load import LoadProblemError
from .measures import Stage, cpu, flood, health, import_, startup, throughput
from .results import CaseResult, Run, summed_up
from .servers import Server, ServerProblemError, Target
from .stores import bucket_of, transfer

CEILING_ROUNDS = 2
FLOOD_ROUNDS = 1
WARM_UP_SECONDS = 1.0

Progress = Callable[[str], None]
Turn = Callable[[int, float], Run]
"""One run of a server: the round's number, and its seconds."""


def run_case(stage: Stage, case: Case, rounds: int, progress: Progress) -> CaseResult:
    """Run a case. A server that does not start, or fails, has a run that says so."""
    if case.measure is Measure.STARTUP:
        turns = {key: _startup_turn(stage, case, key) for key in (OURS, *case.peers)}
        return summed_up(case, _rounds(turns, rounds, 0, progress))
    if case.measure is Measure.IMPORT:
        turns = {key: _import_turn(stage, case, key) for key in (OURS, *case.peers)}
        return summed_up(case, _rounds(turns, rounds, 0, progress))
    if case.measure is Measure.STORE:
        return summed_up(case, _transfers(stage, case, rounds, progress))
    if case.measure is Measure.FLOOD:
        return summed_up(case, _one_after_another(stage, case, min(rounds, FLOOD_ROUNDS), progress))
    if case.measure is Measure.JOB:
        progress(f"{case.title}: making the objects")
        with Bench(case, stage.environment.cache) as bench:
            turns = {key: _job_turn(bench, key) for key in (OURS, *case.peers)}
            return summed_up(case, _rounds(turns, rounds, 0, progress))
    return summed_up(case, _side_by_side(stage, case, rounds, progress))


def shortened(case: Case) -> Case:
    """The case as `--quick` runs it."""
    if case.measure is Measure.JOB and case.count:
        return replace(case, count=case.count // 10, title=f"{case.title} (quick: a tenth of them)")
    if case.size >= GIB:
        return replace(case, size=128 * MIB, title=f"{case.title} (quick: 128 MiB)")
    if case.store == "list":
        return replace(case, count=5000, title=f"{case.title} (quick: 5,000)")
    if case.measure is Measure.FLOOD:
        environment = {**case.environment, "ETL_MAX_MEMORY": str(FLOOD_MEMORY // 8)}
        title = f"{case.title} (quick: 50 of 16 MiB)"
        bound = 1.5 * FLOOD_MEMORY / 8
        return replace(
            case, size=16 * MIB, count=50, connections=50, environment=environment, title=title, at_most=bound
        )
    return case


def _side_by_side(stage: Stage, case: Case, rounds: int, progress: Progress) -> list[Run]:
    """All servers of a case run at the same time, and are loaded in turns."""
    runs: list[Run] = []
    turns: dict[str, Turn] = {}
    with ExitStack() as stack:
        target = stack.enter_context(_target(stage, case))
        cores = stage.both if case.measure is Measure.CPU else stage.cores.server
        for key in _participants(case):
            if key == LOOP:
                turns[key] = lambda number, seconds: cpu(stage, case, None, None, number, seconds)
                continue
            progress(f"{case.title}: starting {key}")
            try:
                server = stack.enter_context(Server(stage.environment, case, key, cores, stage.logs, target))
            except ServerProblemError as error:
                runs.append(Run(server=key, round=1, errors=[str(error)]))
                continue
            turns[key] = _turn(stage, case, server, target)
        runs += _rounds(turns, rounds, stage.seconds, lambda text: progress(f"{case.title}: {text}"))
    return runs


def _one_after_another(stage: Stage, case: Case, rounds: int, progress: Progress) -> list[Run]:
    """Every run has a server of its own: what is measured is left behind in it."""
    runs = []
    for number in range(1, rounds + 1):
        for key in (OURS, *case.peers):
            progress(f"{case.title}: {key}, round {number} of {rounds}")
            try:
                with Server(stage.environment, case, key, stage.cores.server, stage.logs, None) as server:
                    runs.append(flood(stage, case, server, None, number, 0))
            except (ServerProblemError, LoadProblemError) as error:
                runs.append(Run(server=key, round=number, errors=[str(error)]))
    return runs


def _transfers(stage: Stage, case: Case, rounds: int, progress: Progress) -> list[Run]:
    """Every run has a process of its own, over one bucket."""
    try:
        with bucket_of(case, stage.cores.load, stage.logs) as bucket:

            def turn(key: str) -> Turn:
                return lambda number, _: transfer(case, key, bucket, stage.cores.server, number)

            turns = {key: turn(key) for key in (OURS, *case.peers)}
            return _rounds(turns, rounds, 0, lambda text: progress(f"{case.title}: {text}"))
    except ServerProblemError as error:
        return [Run(server=OURS, round=1, errors=[str(error)])]


def _rounds(turns: dict[str, Turn], rounds: int, seconds: float, progress: Progress) -> list[Run]:
    """A warm-up, then the rounds. Every second one goes backwards, so that nobody always runs after the same other."""
    for key, turn in turns.items():
        progress(f"{key}, warm-up")
        _guarded(turn, key, 0, min(seconds, WARM_UP_SECONDS))
    runs = []
    for number in range(1, rounds + 1):
        order = list(turns) if number % 2 else list(reversed(turns))
        for key in order:
            if key != CEILING or number <= CEILING_ROUNDS:
                progress(f"{key}, round {number} of {rounds}")
                runs.append(_guarded(turns[key], key, number, seconds))
    return runs


def _guarded(turn: Turn, key: str, number: int, seconds: float) -> Run:
    try:
        return turn(number, seconds)
    except (ServerProblemError, LoadProblemError) as error:
        return Run(server=key, round=number, errors=[str(error)])


def _participants(case: Case) -> tuple[str, ...]:
    keys = (OURS, *case.peers)
    return (*keys, CEILING) if case.measure is Measure.THROUGHPUT else keys


def _turn(stage: Stage, case: Case, server: Server, target: Target | None) -> Turn:
    measure = {Measure.THROUGHPUT: throughput, Measure.HEALTH: health, Measure.CPU: cpu}[case.measure]
    return lambda number, seconds: measure(stage, case, server, target, number, seconds)


def _startup_turn(stage: Stage, case: Case, key: str) -> Turn:
    return lambda number, seconds: startup(stage, case, key, number)


def _import_turn(stage: Stage, case: Case, key: str) -> Turn:
    return lambda number, seconds: import_(stage, case, key, number)


def _job_turn(bench: Bench, key: str) -> Turn:
    return lambda number, seconds: bench.run(key, number)


@contextmanager
def _target(stage: Stage, case: Case) -> Iterator[Target | None]:
    if case.way not in (Way.PULL, Way.DIRECT_PUT, Way.PIPELINE):
        yield None
        return
    target = Target(stage.environment, case.size, stage.cores.load, stage.logs)
    try:
        yield target
    finally:
        target.stop()
