"""Alert rules and dashboard, held against the metrics that there are. No database."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
# What Prometheus adds to every sample, and how it tells of a target.
ADDED = {"job", "instance"}
SYNTHETIC: dict[str, set[str]] = {"up": set()}


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            yield f"{panel['title']} {target['refId']}", expression


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Every series that /metrics can tell, with its labels."""
    metrics = Metrics(pool_size=1)
    metrics.requests.labels("/interceptions", "GET", 200).inc()
    metrics.duration.labels("/interceptions", "GET").observe(1)
    metrics.recorded.labels("created").inc()
    metrics.refusals.labels("RateExceeded").inc()
    metrics.reads.labels("standby").inc()
    for gauge in (metrics.standby_in_use, metrics.standby_lag_seconds, metrics.standby_lag_bytes):
        gauge.labels("standby:5432").set(1)
    metrics.retention_behind.labels("content").set(0)
    metrics.recorder_records.labels("buried").inc()
    metrics.ran("tokens/find_tokens", 1)
    metrics.waited(1)
    found = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }
    return found | SYNTHETIC


def nodes(expression: Any) -> Iterator[Any]:
    yield expression
    below = [getattr(expression, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")]
    for node in [*below, *(getattr(expression, "args", None) or [])]:
        if node is not None:
            yield from nodes(node)


def problems(expression: str, exposed: dict[str, set[str]]) -> list[str]:
    parsed = promql_parser.parse(expression)
    selectors = [node for node in nodes(parsed) if isinstance(node, promql_parser.VectorSelector)]
    found = [] if selectors else ["it selects nothing"]
    labels: set[str] = set(ADDED)
    for selector in selectors:
        if selector.name not in exposed:
            found.append(f"no metric {selector.name}")
            continue
        labels |= exposed[selector.name]
        asked = {matcher.name for matcher in selector.matchers.matchers}
        found += [f"{selector.name} has no label {name}" for name in asked - exposed[selector.name] - ADDED]
    for node in nodes(parsed):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            found += [f"nothing has the label {name}" for name in set(node.modifier.labels) - labels]
    return found


@pytest.mark.parametrize(("name", "expression"), [*expressions()])
def test_what_is_asked_for_exists(name: str, expression: str, exposed: dict[str, set[str]]) -> None:
    assert problems(expression, exposed) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("sum(rate(bridgelog_http_request_total[5m]))", "no metric bridgelog_http_request_total"),
        ('bridgelog_http_requests_total{code="500"}', "bridgelog_http_requests_total has no label code"),
        ("sum by (path) (rate(bridgelog_http_requests_total[5m]))", "nothing has the label path"),
        ("1 / (bridgelog_rollup_lag_seconds + bridgelog_lag)", "no metric bridgelog_lag"),
        ("vector(1)", "it selects nothing"),
    ],
)
def test_what_does_not_exist_is_found(expression: str, problem: str, exposed: dict[str, set[str]]) -> None:
    assert problems(expression, exposed) == [problem]


def test_every_alert_says_what_to_do() -> None:
    found = alerts()
    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())
    known = set(re.findall(r"\$\{?(\w+)", (DEPLOY / "grafana-dashboard.json").read_text()))
    assert known == {"datasource", "instance", "__rate_interval", "__all"}
