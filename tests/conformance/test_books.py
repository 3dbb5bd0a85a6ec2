"""The metrics, after all that traffic: what was begun has ended, and was counted once in every family."""

import re
import shutil
import subprocess
import time

import httpx
import pytest


@pytest.fixture(params=["url", "small_url"])
def told(request: pytest.FixtureRequest) -> str:
    """The text of /metrics, when nothing runs any more: answers whose clients left end with their next forward."""
    url = request.getfixturevalue(request.param)
    asked = {"prompt": "Question: A dial is", "n": 2, "max_tokens": 4}  # one more, so that the books are never empty
    assert httpx.post(f"{url}/v1/completions", json=asked, timeout=60).status_code == 200
    for _ in range(100):
        text = httpx.get(f"{url}/metrics").text
        if not total(text, "num_requests_running"):
            return text
        time.sleep(0.1)
    raise AssertionError("something still runs")


def total(told: str, name: str, label: str = "") -> float:
    """The sum over the samples of that name that have the label."""
    samples = re.findall(rf"^quietserve_{name}(?:{{(.*)}})? (\S+)$", told, re.MULTILINE)
    assert samples, f"there is no {name}"
    return sum(float(value) for labels, value in samples if label in labels)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_no_fault(told: str) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=told, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize(
    "family",
    ["e2e_request_latency_seconds", "request_generation_tokens", "request_thought_tokens"],
)
def test_every_family_counts_every_answer_once(told: str, family: str) -> None:
    assert total(told, f"{family}_count") == total(told, "requests_finished_total") >= 2


def test_every_prompt_is_counted_once_with_all_its_answers(told: str) -> None:
    assert total(told, "request_params_best_of_sum") == total(told, "requests_finished_total")
    prompts = total(told, "request_prompt_tokens_count")
    assert total(told, "request_params_best_of_count") == total(told, "request_params_thought_depth_count") == prompts


def test_no_token_is_counted_twice(told: str) -> None:
    assert total(told, "prompt_tokens_total") == total(told, "request_prompt_tokens_sum")
    assert total(told, "generation_tokens_total", 'kind="thought"') == total(told, "request_thought_tokens_sum")


def test_nothing_is_left_over(told: str) -> None:
    assert total(told, "num_requests_running") == total(told, "num_requests_waiting") == 0
    assert total(told, "kv_cache_usage_ratio") == 0


def test_nothing_went_wrong(told: str) -> None:
    """No client may have met a fault of ours."""
    assert total(told, "requests_finished_total", 'finished_reason="error"') == 0
    assert total(told, "http_requests_total", 'status="500"') == 0
