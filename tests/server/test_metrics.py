"""The books: what a ticket's way adds to which metric."""

import shutil
import subprocess

import pytest
from fake_engine import MODEL, Client, FakeEngine

from quietserve.model.config import SamplingParams
from quietserve.model.progress import Generation, Token
from quietserve.model.voting import Candidate, vote
from quietserve.server.metrics import Metrics
from quietserve.server.scheduler import Attempt, Ticket


def ticket(depth: int = 4, endpoint: str = "chat") -> Ticket:
    made = Ticket(Attempt((1, 2, 3), SamplingParams(thought_depth=depth), endpoint))
    made.timing.submitted = 100.0
    return made


def run(metrics: Metrics, made: Ticket, reason: str = "stop") -> None:
    made.timing.started = 100.5
    metrics.admitted(made)
    made.timing.first_token, made.timing.first_output, made.timing.last_output = 101.0, 102.0, 102.5
    made.num_output_tokens, made.num_thought_tokens = 1, 4
    made.counts.looked_up, made.counts.reused, made.counts.accepted = 3, 2, 1
    metrics.decided(made, 1, None)
    made.num_output_tokens, made.num_thought_tokens = 3, 9
    metrics.decided(made, 2, 0.5)
    made.num_thought_tokens, made.finish_reason = 10, reason
    made.counts.forwards, made.counts.accepted, made.counts.rejected, made.counts.dropped = 6, 2, 1, 3
    made.timing.finished, made.timing.thought_s = 104.0, 2.5
    metrics.finished(made)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"quietserve_{name}", {"model_name": MODEL, **labels})


def test_a_ticket_is_entered_everywhere(metrics: Metrics) -> None:
    run(metrics, ticket())
    sums = {
        "request_queue_time_seconds": 0.5,
        "time_to_first_token_seconds": 1.0,
        "time_to_first_output_token_seconds": 2.0,
        "request_prefill_time_seconds": 0.5,
        "request_decode_time_seconds": 3.0,
        "request_time_per_output_token_seconds": 0.25,
        "request_thought_time_seconds": 2.5,
    }
    for name, total in sums.items():
        assert value(metrics, f"{name}_count", thinking="fixed") == 1
        assert value(metrics, f"{name}_sum", thinking="fixed") == total
    for name, total in {"e2e_request_latency_seconds_count": 1, "e2e_request_latency_seconds_sum": 4.0}.items():
        assert value(metrics, name, thinking="fixed", self_correction="off", voting="none") == total
    assert value(metrics, "inter_token_latency_seconds_count", thinking="fixed") == 2
    assert value(metrics, "inter_token_latency_seconds_sum", thinking="fixed") == 0.5
    assert value(metrics, "prompt_tokens_total") == value(metrics, "request_prompt_tokens_sum") == 3
    assert value(metrics, "generation_tokens_total", kind="visible") == 3
    assert value(metrics, "generation_tokens_total", kind="thought") == 10
    assert value(metrics, "request_params_thought_depth_sum") == 4
    assert value(metrics, "request_params_best_of_sum") == 1
    assert value(metrics, "prefix_cache_queries_total") == 3
    assert value(metrics, "prefix_cache_hits_total") == 2
    assert value(metrics, "forwards_per_token_sum", thinking="fixed") == 2
    for outcome, count in {"accepted": 2, "rejected": 1, "dropped": 3}.items():
        assert value(metrics, "speculative_tokens_total", outcome=outcome) == count
    assert value(metrics, "requests_finished_total", endpoint="chat", finished_reason="stop") == 1


def test_what_adaptive_requests_decide_is_counted(metrics: Metrics) -> None:
    made = Ticket(Attempt((1, 2, 3), SamplingParams(thought_depth=4, thought_threshold=0.5), "chat"))
    made.counts.thought, made.counts.skipped = 3, 5
    run(metrics, made)
    assert value(metrics, "adaptive_positions_total", decision="thought") == 3
    assert value(metrics, "adaptive_positions_total", decision="skipped") == 5
    assert (
        value(metrics, "e2e_request_latency_seconds_count", thinking="adaptive", self_correction="off", voting="none")
        == 1
    )


def test_the_books_balance(metrics: Metrics) -> None:
    for depth, reason in ((0, "stop"), (4, "length"), (4, "abort"), (0, "error")):
        run(metrics, ticket(depth), reason)
    waiting = ticket()
    waiting.finish_reason, waiting.timing.finished = "abort", 101.0
    metrics.finished(waiting)
    samples = [s for family in metrics.registry.collect() for s in family.samples]
    finished = sum(s.value for s in samples if s.name == "quietserve_requests_finished_total")
    ended = sum(s.value for s in samples if s.name == "quietserve_e2e_request_latency_seconds_count")
    assert finished == ended == 5
    assert value(metrics, "cancelled_requests_total", phase="decode") == 1
    assert value(metrics, "cancelled_requests_total", phase="waiting") == 1


def test_replies_are_counted_by_route_and_never_by_address(client: Client, metrics: Metrics) -> None:
    client.complete()
    client.get("/v1/models/some-name")
    client.get("/some/name")
    client.request("FROB", "/v1/completions")
    client.post("/v1/completions", {"prompt": "x", "suffix": "y"})
    exposition = client.get("/metrics").text
    for labels in (
        'handler="/v1/completions",method="POST",status="200"',
        'handler="/v1/models/{model_id:path}",method="GET",status="404"',
        'handler="unmatched",method="GET",status="404"',
        'method="other",status="405"',
    ):
        assert labels in exposition
    assert "some" not in exposition
    assert "FROB" not in exposition
    assert value(metrics, "requests_rejected_total", reason="unsupported_parameter") == 1


@pytest.mark.parametrize(("kept", "kind"), [(True, "visible"), (False, "discarded")])
def test_tokens_of_a_contested_answer_count_when_it_is_decided(metrics: Metrics, kept: bool, kind: str) -> None:
    contested = Ticket(Attempt((1, 2, 3), SamplingParams(), "chat", num_samples=4, contested=True))
    run(metrics, contested)
    assert value(metrics, "generation_tokens_total", kind="thought") == 10
    assert value(metrics, "generation_tokens_total", kind=kind) is None
    contested.kept = kept
    metrics.judged(contested)
    assert value(metrics, "generation_tokens_total", kind=kind) == 3
    assert value(metrics, "request_params_best_of_sum") == 4


def test_a_prompt_counts_once_however_many_answers_it_has(metrics: Metrics) -> None:
    """One prompt of 23 tokens with four answers had entered 92 prompt tokens, and four requests for four answers each."""
    for sample in range(4):
        run(metrics, Ticket(Attempt((1, 2, 3), SamplingParams(thought_depth=4), "chat", num_samples=4, sample=sample)))
    assert value(metrics, "prompt_tokens_total") == value(metrics, "request_prompt_tokens_sum") == 3
    for family, told in {
        "request_params_best_of": 4,
        "request_params_thought_depth": 4,
        "request_prompt_tokens": 3,
    }.items():
        assert (value(metrics, f"{family}_count"), value(metrics, f"{family}_sum")) == (1, told)
    assert value(metrics, "requests_finished_total", endpoint="chat", finished_reason="stop") == 4
    assert value(metrics, "request_generation_tokens_count") == 4


def test_the_answers_to_each_prompt_are_numbered(client: Client, engine: FakeEngine) -> None:
    client.complete(prompt=["a", "b"], n=2)
    assert [ticket.attempt.sample for ticket in engine.tickets] == [0, 1, 0, 1]


def corrected(metrics: Metrics, texts: tuple[str, str], reason: str) -> None:
    """A ticket of two turns: the first says three tokens, and so does the second."""
    made = Ticket(Attempt((1, 2, 3), SamplingParams(), "chat", draft_params=(SamplingParams(),)))
    made.answer = Generation(texts[0], [Token(7)] * 3)
    made.num_output_tokens, made.timing.submitted = 3, 98.0
    metrics.decided(made, 3, None)
    made.turn(now=100.0)
    made.answer.text = texts[1]
    run(metrics, made, reason)


@pytest.mark.parametrize(
    ("answers", "outcome", "agreement"),
    [(["a", "a", "b"], "decided", 2 / 3), (["a", "b"], "tie", 0.5), ([None], "no_answer", 0.0)],
)
def test_votes_are_counted(metrics: Metrics, answers: list[str | None], outcome: str, agreement: float) -> None:
    metrics.voted("majority", vote([Candidate(i, answer) for i, answer in enumerate(answers)], "majority"))
    for other in ("decided", "tie", "no_answer"):
        assert value(metrics, "voting_total", strategy="majority", outcome=other) == (other == outcome)
    assert value(metrics, "voting_total", strategy="ranker", outcome=outcome) == 0
    assert value(metrics, "voting_agreement_ratio_sum") == pytest.approx(agreement)


@pytest.mark.parametrize(
    ("texts", "reason", "outcome"),
    [(("6", "7"), "stop", "changed"), (("6", "6\n"), "length", "kept"), (("6", ""), "abort", None)],
)
def test_a_correction_counts_once_it_is_over(
    metrics: Metrics, texts: tuple[str, str], reason: str, outcome: str | None
) -> None:
    corrected(metrics, texts, reason)
    for kind, tokens in {"draft": 3, "visible": 3}.items():
        assert value(metrics, "generation_tokens_total", kind=kind) == tokens
    assert value(metrics, "request_generation_tokens_sum") == 3
    assert value(metrics, "e2e_request_latency_seconds_sum", thinking="off", self_correction="on", voting="none") == 6
    assert value(metrics, "forwards_per_token_sum", thinking="off") == 1
    for other in ("changed", "kept"):
        assert value(metrics, "self_correction_total", outcome=other) == (other == outcome)
    assert value(metrics, "self_correction_time_seconds_sum", thinking="off") == (4 if outcome else None)


def test_the_same_by_vllms_names() -> None:
    """A dashboard or an autoscaler made for vLLM finds what it looks for."""
    metrics = Metrics(MODEL, vllm_names=True)
    run(metrics, ticket())
    told = metrics.render().decode()
    for name in (
        'vllm:num_requests_running{model_name="fake"} 0.0',
        'vllm:kv_cache_usage_perc{model_name="fake"} 0.0',
        'vllm:prompt_tokens_total{model_name="fake"} 3.0',
        'vllm:request_success_total{endpoint="chat",finished_reason="stop",model_name="fake"} 1.0',
        'vllm:time_to_first_token_seconds_bucket{le="1.0",model_name="fake",thinking="fixed"} 1.0',
        'vllm:e2e_request_latency_seconds_sum{model_name="fake",self_correction="off",thinking="fixed",voting="none"} 4.0',
    ):
        assert name in told, name
    assert "vllm" not in Metrics(MODEL).render().decode()


def test_gauges(metrics: Metrics) -> None:
    metrics.describe_model("none", "float32", "cpu", model_bytes=5, kv_cache_bytes=7)
    metrics.gauges(2, 3, 0.25)
    metrics.forward(40, 0.01, in_flight=7)
    assert value(metrics, "num_requests_running") == 2
    assert value(metrics, "kv_cache_usage_ratio") == 0.25
    metrics.out_of_memory(2)
    assert value(metrics, "oom_total") == 2
    assert value(metrics, "draining") == 0
    metrics.drain()
    assert value(metrics, "draining") == 1
    assert value(metrics, "num_requests_waiting") == 3
    assert value(metrics, "model_memory_bytes") == 5
    assert value(metrics, "kv_cache_bytes") == 7
    assert value(metrics, "model_info", quantization="none", dtype="float32", device="cpu") == 1
    assert value(metrics, "batch_rows_sum") == 40
    assert value(metrics, "pipeline_depth") == 7


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_no_complaint(client: Client, metrics: Metrics) -> None:
    metrics.describe_model("none", "float32", "cpu", model_bytes=5, kv_cache_bytes=7)
    for depth, reason in ((0, "stop"), (4, "abort")):
        run(metrics, ticket(depth), reason)
    corrected(metrics, ("6", "7"), "stop")
    client.post("/v1/completions", {"prompt": ""})
    text = client.get("/metrics").content
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_head_is_answered_as_get_and_counted_as_itself(client: Client) -> None:
    for path in ("/health", "/ready", "/ping", "/v1/models", "/metrics"):
        assert client.request("HEAD", path).status_code == 200
    assert 'handler="/ready",method="HEAD",status="200"' in client.get("/metrics").text
