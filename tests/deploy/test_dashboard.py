"""The dashboard: Grafana can read it, and every expression asks for what the server measures."""

from __future__ import annotations

import json
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from etl_server.runtime.counts import Counts
from etl_server.runtime.metrics import Families

from ..helpers import ROOT

HISTOGRAM = ("_bucket", "_sum", "_count")


def exposed() -> dict[str, set[str]]:
    """The labels of each series that a server shows which has counted something of everything."""
    counts = Counts()
    counts.push.answered(200)
    counts.push.times.add(1)
    counts.passed(1, 1)
    counts.direct_puts["delivered"] += 1
    families = Families("Any")
    families.publish(counts, in_flight=1, admitted=1)
    page = families.page("")[0].decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


LABELS = exposed()
HISTOGRAMS = {name.removesuffix("_bucket") for name in LABELS if name.endswith("_bucket")}
COUNTERS_AND_GAUGES = {name for name in LABELS if not any(name.startswith(f"{each}_") for each in HISTOGRAMS)}

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
VARIABLES: dict[str, dict[str, Any]] = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def parse(expression: str) -> promql_parser.Expr:
    """`expression`, once Grafana has put its interval in."""
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def series_and_labels(expression: str) -> tuple[list[str], set[str]]:
    """The series that `expression` reads, and every label that it selects or groups by."""
    series: list[str] = []
    labels: set[str] = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            series.append(node.name or "")
            labels.update(matcher.name for matcher in node.matchers.matchers)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            labels.update(node.modifier.labels)
        return True

    promql_parser.walk(parse(expression), visit)
    return series, labels


def test_the_data_source_is_chosen_by_who_looks() -> None:
    assert (VARIABLES["datasource"]["type"], VARIABLES["datasource"]["query"]) == ("datasource", "prometheus")
    assert VARIABLES["job"]["query"] == "label_values(etl_build_info, job)"
    assert [item["datasource"] for item in (*DASHBOARD["panels"], VARIABLES["job"])] == [SOURCE] * (
        len(DASHBOARD["panels"]) + 1
    )


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_what_the_server_measures(expression: str) -> None:
    series, labels = series_and_labels(expression)
    (name,) = series
    assert name in LABELS
    assert "job" in labels, "it would add up the servers of every job"
    assert labels <= LABELS[name] | {"job"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_counter_is_shown_as_a_rate_and_a_gauge_as_it_is(expression: str) -> None:
    (name,), _ = series_and_labels(expression)
    counts = name.endswith(("_total", *HISTOGRAM))
    assert counts == ("rate(" in expression or "increase(" in expression)


def test_everything_that_is_measured_is_shown() -> None:
    shown = {name for expression in EXPRESSIONS for name in series_and_labels(expression)[0]}
    assert shown >= COUNTERS_AND_GAUGES
    assert {name.rpartition("_")[0] for name in shown if name.endswith(HISTOGRAM)} == HISTOGRAMS


def test_a_legend_names_the_labels_that_are_left() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            result = parse(target["expr"])
            while isinstance(result, promql_parser.Call):
                result = result.args[-1]
            assert isinstance(result, promql_parser.AggregateExpr)
            left = set(result.modifier.labels if result.modifier else []) - {"le"}
            assert {label for label in left if f"{{{{{label}}}}}" in target["legendFormat"]} == left
            assert target["legendFormat"].count("{{") == len(left)


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
