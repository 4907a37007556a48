"""What the benchmark makes of its runs: it tells no ratio that it has not seen, and its documents say what it saw."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.cases import CASES, FASTAPI, GO, OURS, Case
from bench.report import END, START, markdown
from bench.results import Report, Run, summed_up

ROOT = Path(__file__).parents[2]
(STORED,) = (ROOT / "bench" / "results").glob("*.json")


def case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def runs(server: str, *rates: float) -> list[Run]:
    return [Run(server=server, round=number, rate=rate, checked=1) for number, rate in enumerate(rates)]


@pytest.fixture(scope="module")
def stored() -> Report:
    """The run that the documents tell of."""
    return Report.model_validate_json(STORED.read_text())


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    result = summed_up(case("push-1kib"), [*runs(OURS, 10, 60, 90), *runs(FASTAPI, 1, 10, 10), *runs(GO, 10, 60, 1000)])
    ratios = {ratio.peer: ratio for ratio in result.ratios}
    beside, go = ratios[FASTAPI], ratios[GO]
    assert (beside.median, beside.low, beside.high, beside.reached) == (9, 6, 10, True)
    assert (go.median, go.low, go.high, go.reached) == (1, 0.09, 1, True)


def test_a_ratio_below_its_mark_is_not_reached() -> None:
    result = summed_up(case("push-1kib"), [*runs(OURS, 59), *runs(FASTAPI, 10), *runs(GO, 59)])
    assert {ratio.peer: ratio.reached for ratio in result.ratios if ratio.peer in (FASTAPI, GO)} == {
        FASTAPI: False,
        GO: True,
    }


@pytest.mark.parametrize("wrong", [OURS, FASTAPI])
def test_one_wrong_answer_of_either_side_refuses_the_ratio(wrong: str) -> None:
    made = [*runs(OURS, 60, 60), *runs(FASTAPI, 10, 10)]
    next(run for run in made if run.server == wrong).errors.append("an answer was short")
    ratio = next(ratio for ratio in summed_up(case("push-1kib"), made).ratios if ratio.peer == FASTAPI)
    assert (ratio.median, ratio.reached) == (0, None)
    assert "an answer was short" in str(ratio.refused)


def test_who_did_not_run_or_did_nothing_has_no_ratio() -> None:
    result = summed_up(case("push-1kib"), [*runs(OURS, 60), *runs(FASTAPI, 0)])
    assert all(ratio.refused and ratio.reached is None for ratio in result.ratios)


def test_memory_is_bounded_and_not_compared_upwards() -> None:
    flood = case("flood")
    assert flood.at_most is not None
    for peak, reached in ((flood.at_most, True), (flood.at_most + 1, False)):
        bound = summed_up(flood, [Run(server=OURS, round=0, peak_bytes=int(peak), checked=1)]).bound
        assert bound is not None
        assert bound.reached is reached


def test_the_table_of_the_readme_is_that_of_the_stored_run(stored: Report) -> None:
    text = (ROOT / "bench" / "README.md").read_text()
    assert text.partition(START)[2].partition(END)[0].strip() == markdown(stored).strip()


def test_the_projects_own_readme_tells_the_same_numbers(stored: Report) -> None:
    table = (ROOT / "README.md").read_text().partition("<!-- performance -->")[2].partition("<!-- end of")[0]
    told = set(re.findall(r"[\d,]+\.?\d*", " ".join(re.findall(r"(?m)^\| [^`|]*\|(.*)\|$", table))))
    assert len(told) > 20
    whole = set(re.findall(r"[\d,]+\.?\d*", markdown(stored)))
    rounded = {
        f"{float(number.replace(',', '')):,.{digits}f}" for number in whole if number.strip(",.") for digits in (0, 1)
    }
    assert told <= whole | rounded


def test_what_a_stored_run_says_was_reached_follows_from_its_runs(stored: Report) -> None:
    known = {case.name: case for case in CASES}
    for result in stored.cases:
        assert summed_up(known[result.name], result.runs) == result
