"""The rules, the dashboard and Prometheus' configuration, held against a real server's metrics and by a real Prometheus.

What Grafana would ask is asked with its variables filled in, so that every panel must show something after some traffic.
"""

import contextlib
import itertools
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import tiny
from promql import grouping_labels, sample_labels, selectors
from quietserve.model import checkpoint
from quietserve.model.bundled import DEFAULT
from serving import serving

pytestmark = pytest.mark.processes

FOLDER = Path(__file__).parents[2] / "docs/deploy"
GROUPS = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
CASES = yaml.safe_load((FOLDER / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
ROWS, PANELS = (
    [panel for panel in DASHBOARD["panels"] if (panel["type"] == "row") == is_row] for is_row in (True, False)
)
TARGETS = [(panel["title"], target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

FROM_SCRAPING = {"job", "instance"}
KEY = "a-key-of-the-tests"
RANGE = "30s"  # of every rate, instead of minutes
PROMPT = "Question: A dial is at 3. It goes up 4 on Monday. Where is the dial now?\nAnswer:"


def filled(query: str) -> str:
    """A panel's query as Grafana sends it with everything selected."""
    return re.sub(r"\$(model_name|instance|thinking)\b", ".*", query).replace("$__rate_interval", RANGE)


def queries() -> Iterator[tuple[str, str]]:
    """All queries there are, and where each stands."""
    yield from ((rule.get("record") or rule["alert"], rule["expr"]) for rule in RULES)
    yield from ((title, filled(query)) for title, query, _ in TARGETS)
    yield from ((f"variable {name}", found) for name, found in label_values())
    for case in CASES:
        yield from ((case["name"], series["series"]) for series in case["input_series"])


def label_values() -> list[tuple[str, str]]:
    asked = [(name, variable["query"]["query"]) for name, variable in VARIABLES.items() if variable["type"] == "query"]
    return [(name, query.removeprefix("label_values(").rpartition(",")[0]) for name, query in asked]


# --- a server and its traffic ----------------------------------------------------------------------------------------


def make_traffic(url: str) -> None:
    """Something for every metric: each way to think, a probe, a correction, a vote, a refusal, a client that leaves."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 16, "ignore_eos": True}
        adaptive = {"thought_mode": "adaptive", "thought_threshold": 0.1}
        corrected = {"thought_depth": 0, "self_correction_turns": 1}
        voting = {"thought_depth": 0, "temperature": 1, "best_of": 2, "voting": "majority"}
        ranked = voting | {"voting": "ranker", "ranker": "random"}
        for more in (
            {"thought_depth": 0, "probes": ["way"]},
            {"thought_depth": 4},
            {"thought_depth": 4, **adaptive},
            corrected,
            voting,
            ranked,
        ):
            assert client.post("/v1/completions", json=body | more).status_code == 200
        assert client.post("/v1/completions", json=body | {"temperature": "hot"}).status_code == 400
        long = body | {"thought_depth": 12, "max_tokens": 150, "stream": True}
        with client.stream("POST", "/v1/completions", json=long) as reply:
            next(reply.iter_bytes())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("key") / "api_key"
    file.write_text(KEY)
    loaded = checkpoint.load(DEFAULT)
    ranker = tiny.save_ranker(tmp_path_factory.mktemp("ranker"), loaded)
    probe = tiny.save_probe(tmp_path_factory.mktemp("probe"), loaded)
    flags = ["--api-key-file", str(file), "--ranker", f"random={ranker}", "--probe", f"way={probe}"]
    with serving(*flags) as address:
        make_traffic(address)
        yield address


@pytest.fixture(scope="module")
def labels(url: str) -> dict[str, set[str]]:
    """The labels of every metric there is, recorded ones included."""
    exposition = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    told = {metric: names | FROM_SCRAPING for metric, names in sample_labels(exposition).items()}
    return told | {"up": FROM_SCRAPING} | {record: grouping_labels(query) for record, query in RECORDED.items()}


def test_every_metric_and_label_is_the_servers(labels: dict[str, set[str]]) -> None:
    for where, query in queries():
        asked = list(selectors(query))
        assert asked, f"{where} asks for nothing"
        for selector in asked:
            assert selector.metric in labels, f"{where}: there is no {selector.metric}"
            assert selector.labels <= labels[selector.metric], f"{where}: labels of {selector.metric}"
        assert grouping_labels(query) <= set().union(*(labels[selector.metric] for selector in asked)), where


# --- promtool --------------------------------------------------------------------------------------------------------

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str | Path) -> None:
    checked = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_promtool_accepts_the_rules_and_the_configuration(tmp_path: Path) -> None:
    """The configuration names two files beside it, and promtool looks for both."""
    for name in ("prometheus.yml", "rules.yml"):
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "api_key").write_text(KEY)
    promtool("check", "rules", "--lint=all", "--lint-fatal", tmp_path / "rules.yml")
    promtool("check", "config", "--lint=all", "--lint-fatal", tmp_path / "prometheus.yml")


@needs_promtool
def test_promtool_sees_the_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", FOLDER / "rules_test.yml")


@needs_promtool
def test_promtool_understands_the_dashboard(tmp_path: Path) -> None:
    """It reads no dashboards; it reads their queries as rules."""
    rules = [{"record": f"panel:{i}", "expr": filled(query)} for i, (_, query, _) in enumerate(TARGETS)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_is_tried_both_ways_and_says_what_to_do(name: str) -> None:
    """In a case where it fires it also has not fired yet; and its text names no label that it does not have."""
    alert = ALERTS[name]
    text = alert["annotations"]["summary"]
    cases = [asserted for case in CASES if any(asserted := firing(case, name))]
    assert cases
    assert all(not all(asserted) for asserted in cases)
    told = [sample for asserted in cases for samples in asserted for sample in samples]
    assert all(f'severity="{alert["labels"]["severity"]}"' in sample for sample in told)
    assert any(all(f"{label}=" in sample for label in re.findall(r"\$labels\.(\w+)", text)) for sample in told)
    assert len(alert["annotations"]["description"].split(". ")) > 1, "what it means, and what to do"
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert "for" in alert


def firing(case: dict[str, Any], name: str) -> list[list[str]]:
    """The series of an alert that a case expects, moment by moment."""
    moments = [test["exp_samples"] for test in case["promql_expr_test"] if test["expr"].startswith("ALERTS")]
    return [[s["labels"] for s in samples if f'alertname="{name}"' in s["labels"]] for samples in moments]


# --- the dashboard ---------------------------------------------------------------------------------------------------


def test_panels_do_not_overlap() -> None:
    for one, other in itertools.combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])


def test_every_counter_has_a_panel(labels: dict[str, set[str]]) -> None:
    """That of what probes read had none."""
    shown = {selector.metric for _, query, _ in TARGETS for selector in selectors(filled(query))}
    counters = {metric for metric in labels if metric.startswith("quietserve_") and metric.endswith("_total")}
    assert counters <= shown


def test_panels_are_told_apart_and_explained() -> None:
    for key in ("id", "title"):
        values = [panel[key] for panel in DASHBOARD["panels"]]
        assert len(values) == len(set(values)), key
    assert len(ROWS) == 6
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])])
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_the_page_says_which_question_each_panel_answers() -> None:
    page = (FOLDER.parent / "operate.md").read_text(encoding="utf-8")
    table = page.partition("| question | panel | metric |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    assert {title for _, titles, _ in rows for title in titles.split("; ")} == {panel["title"] for panel in PANELS}
    for question, titles, metrics in rows:
        asked = "".join(query for title, query, _ in TARGETS if title in titles.split("; "))
        named = re.findall(r"`(\w+)", metrics)
        assert named, question
        assert [metric for metric in named if f"quietserve_{metric}" not in asked] == [], question


def test_the_dashboard_is_of_no_particular_grafana() -> None:
    """It can be imported anywhere: no number in a database, and no data source but the chosen one."""
    assert "id" not in DASHBOARD
    assert VARIABLES["datasource"]["type"] == "datasource"
    sources = [panel["datasource"] for panel in PANELS] + [
        t["datasource"] for panel in PANELS for t in panel["targets"]
    ]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used == VARIABLES.keys()


# --- a real Prometheus -----------------------------------------------------------------------------------------------


class Prometheus:
    """One that runs; its answers are lists of series."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **params: str) -> Any:
        return httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30).raise_for_status().json()["data"]

    def query(self, query: str) -> list[dict[str, Any]]:
        """The series that have a value now, and one that is a number."""
        return [each for each in self.get("query", query=query)["result"] if each["value"][1] != "NaN"]


@pytest.fixture(scope="module")
def prometheus(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Ours in everything but the target, the pace and the minutes of the rules' rates."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    config = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    config = config.replace("quietserve:8000", url.removeprefix("http://")).replace(": 15s", ": 1s")
    (folder / "prometheus.yml").write_text(config)
    (folder / "rules.yml").write_text((FOLDER / "rules.yml").read_text(encoding="utf-8").replace("[5m]", f"[{RANGE}]"))
    (folder / "api_key").write_text(KEY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*taken.getsockname())
    flags = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
    }
    command = [program, *(f"--{name}={value}" for name, value in flags.items())]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log, stdout=log) as process:
        try:
            running = Prometheus(f"http://{address}")
            wait_for(lambda: running.query("up == 1"), folder / "log")
            yield running
        finally:
            process.terminate()


def wait_for(condition: Callable[[], Any], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return
        time.sleep(0.2)
    pytest.fail(log.read_text()[-2000:])


@pytest.fixture(scope="module")
def watched(prometheus: Prometheus, url: str) -> Prometheus:
    """One that has seen metrics change: every panel needs two different samples, and a busy machine more time for them."""
    for round_ in range(20):
        make_traffic(url)
        time.sleep(1.5)
        if round_ >= 2 and all(prometheus.query(record) for record in RECORDED):
            break
    return prometheus


def test_every_panel_shows_something(watched: Prometheus) -> None:
    for title, query, legend in TARGETS:
        series = watched.query(filled(query))
        assert series, f"{title}: {query}"
        for each in series:
            assert set(re.findall(r"{{(\w+)}}", legend)) <= each["metric"].keys(), f"{title}: {legend}"


def test_every_variable_has_values(watched: Prometheus) -> None:
    for name, query in label_values():
        assert [name in each["metric"] for each in watched.query(filled(query))] == [True]


def test_every_rule_records_something(watched: Prometheus) -> None:
    groups = watched.get("rules")["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} == RECORDED.keys() | ALERTS.keys()
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []
    assert [record for record in RECORDED if not watched.query(record)] == []


def test_no_alert_fires_at_a_server_that_is_well(watched: Prometheus) -> None:
    assert watched.get("alerts")["alerts"] == []
