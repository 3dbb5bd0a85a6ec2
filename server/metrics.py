"""What Prometheus sees. Labels are of low cardinality and never hold a user's input."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product
from typing import Any, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from ..model.progress import Counts
from ..model.voting import Strategy, Verdict
from .errors import ApiError
from .scheduler import Attempt, Ticket
from .vllm_metrics import VllmNames

PHASES = ("waiting", "prefill", "decode", "thought")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
    600,
    1800,
    3600,
    7200,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_DEPTHS = (0, 1, 2, 4, 8, 12, 16, 24, 32, 64)
_RATIOS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 9, 13, 17, 33, 65)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

disable_created_metrics()


class Metrics:
    """The server's metrics. It is the engine's observer too: `admitted` to `finished` are called on the device thread.

    Args:
        model_name: the value of the label of that name.
        vllm_names: tell everything by vLLM's names too.
        beside: those of another model of the same server, which render these too.
    """

    def __init__(self, model_name: str, vllm_names: bool = False, beside: "Metrics | None" = None) -> None:
        self.registry = beside.registry if beside else CollectorRegistry()
        self._families: dict[str, Any] = beside._families if beside else {}
        self._compat = CollectorRegistry()
        if not beside:
            ProcessCollector(registry=self.registry)
        if vllm_names and not beside:
            self._compat.register(VllmNames(self.registry))
        self._model = model_name
        self._counted: dict[int, _Counted] = {}  # what has been counted so far, by running ticket
        self._describe_requests()
        self._describe_corrections()
        self._describe_votes()
        self._describe_tokens()
        self._describe_server()

    def describe_model(self, quantization: str, dtype: str, device: str, model_bytes: int, kv_cache_bytes: int) -> None:
        """Tell what was loaded."""
        info = self._gauge("model_info", "What the model runs as.", "quantization", "dtype", "device")
        info.labels(self._model, quantization, dtype, device).set(1)
        self._gauge("model_memory_bytes", "Memory of the weights.").labels(self._model).set(model_bytes)
        self._gauge("kv_cache_bytes", "Memory of the key-value cache.").labels(self._model).set(kv_cache_bytes)

    def admitted(self, ticket: Ticket) -> None:
        """A ticket got a slot."""
        self._queue_time.labels(self._model, _thinking(ticket)).observe(ticket.timing.queue or 0.0)

    def decided(self, ticket: Ticket, num_visible: int, seconds_since_last: float | None) -> None:
        """A ticket got visible tokens; None where they are its first."""
        self._count_tokens(ticket)
        if seconds_since_last is not None and num_visible:
            latency = self._inter_token.labels(self._model, _thinking(ticket))
            for _ in range(num_visible):
                latency.observe(seconds_since_last / num_visible)

    def forward(self, num_rows: int, seconds: float, in_flight: int) -> None:
        """The model ran once, with up to `in_flight` positions of each attempt thinking."""
        self._pipeline_depth.labels(self._model).set(in_flight)
        self._batch_rows.labels(self._model).observe(num_rows)
        self._forward_time.labels(self._model).observe(seconds)

    def finished(self, ticket: Ticket) -> None:
        """A ticket ended, however it did."""
        self._count_tokens(ticket)
        del self._counted[ticket.number]
        timing, reason = ticket.timing, ticket.finish_reason or "error"
        self._finished.labels(self._model, ticket.attempt.endpoint, reason).inc()
        if reason == "abort":
            self._cancelled.labels(self._model, _phase(ticket)).inc()
        for histogram, seconds in (
            (self._first_token, timing.time_to_first_token),
            (self._first_output, timing.time_to_first_output),
            (self._prefill_time, timing.prefill),
            (self._decode_time, timing.decode),
            (self._thought_time, timing.thought_s),
            (self._per_token_time, timing.per_token(ticket.num_output_tokens)),
        ):
            if seconds is not None:
                histogram.labels(self._model, _thinking(ticket)).observe(seconds)
        corrects = "on" if ticket.attempt.draft_params else "off"
        e2e = self._e2e.labels(self._model, _thinking(ticket), corrects, ticket.attempt.voting)
        e2e.observe(timing.total or 0.0)
        self._output_length.labels(self._model).observe(ticket.num_output_tokens)
        self._thought_length.labels(self._model).observe(ticket.num_thought_tokens)
        if decided := ticket.num_output_tokens + ticket.num_draft_tokens:
            per_token = ticket.counts.forwards / decided
            self._forwards.labels(self._model, _thinking(ticket)).observe(per_token)
        if not ticket.attempt.sample:
            self._count_prompt(ticket.attempt)
        if ticket.drafts and reason in ("stop", "length"):
            self._count_correction(ticket)

    def judged(self, ticket: Ticket) -> None:
        """It is known of a contested ticket that has ended whether its answer is returned."""
        self._tokens.labels(self._model, "visible" if ticket.kept else "discarded").inc(ticket.num_output_tokens)

    def voted(self, strategy: str, verdict: Verdict) -> None:
        """The answers to a prompt have voted."""
        outcome = "tie" if verdict.tie else "decided" if verdict.groups else "no_answer"
        self._votes.labels(self._model, strategy, outcome).inc()
        self._agreement.labels(self._model).observe(verdict.agreement)

    def ranked(self, ranker: str, num_answers: int, seconds: float) -> None:
        """A trained ranker has scored answers."""
        self._ranker_time.labels(self._model, ranker).observe(seconds)
        self._ranked.labels(self._model, ranker).inc(num_answers)

    def describe_probes(self, names: Sequence[str]) -> None:
        """Tell which there are, before they have anything to say."""
        for name in names:
            self._readouts.labels(self._model, name)

    def read(self, probe: str, num_tokens: int) -> None:
        """A probe had something to say of tokens."""
        self._readouts.labels(self._model, probe).inc(num_tokens)

    def out_of_memory(self, times: int) -> None:
        """Memory did not suffice for forwards."""
        self._oom.labels(self._model).inc(times)

    def gauges(self, running: int, waiting: int, cache_usage: float) -> None:
        """How many tickets have a slot, how many wait for one, and how much of the cache is used."""
        self._running.labels(self._model).set(running)
        self._waiting.labels(self._model).set(waiting)
        self._cache_usage.labels(self._model).set(cache_usage)

    def drain(self) -> None:
        """No new work is taken from now on."""
        self._draining.labels(self._model).set(1)

    def refused(self, error: ApiError) -> None:
        """A request was refused; a fault of ours is none of these."""
        if error.status != 500:
            self._rejected.labels(self._model, error.code).inc()

    def replied(self, handler: str, method: str, status: int) -> None:
        """A reply was sent; the handler is a route's template."""
        self._http.labels(handler, method, str(status)).inc()

    def render(self) -> bytes:
        """The exposition, as text."""
        return generate_latest(self.registry) + generate_latest(self._compat)

    def _describe_requests(self) -> None:
        self._first_token = self._seconds(
            "time_to_first_token_seconds", "From submission to the first token, hidden or visible."
        )
        self._first_output = self._seconds(
            "time_to_first_output_token_seconds", "From submission to the first visible token."
        )
        self._inter_token = self._seconds("inter_token_latency_seconds", "Between one visible token and the next.")
        self._e2e = self._seconds(
            "e2e_request_latency_seconds", "From submission to the end.", "self_correction", "voting"
        )
        self._queue_time = self._seconds("request_queue_time_seconds", "From submission to a slot.")
        self._prefill_time = self._seconds("request_prefill_time_seconds", "From a slot to the prompt's last token.")
        self._decode_time = self._seconds("request_decode_time_seconds", "From the prompt's last token to the end.")
        self._per_token_time = self._seconds(
            "request_time_per_output_token_seconds", "Mean time between the visible tokens of an answer."
        )
        self._thought_time = self._seconds("request_thought_time_seconds", "In forwards that thought for this answer.")
        self._finished = self._counter("requests_finished_total", "Answers that ended.", "endpoint", "finished_reason")
        self._rejected = self._counter("requests_rejected_total", "Requests that were refused.", "reason")
        self._cancelled = self._counter("cancelled_requests_total", "Answers whose client left.", "phase")
        # A counter that is not there before it counts hides its first event from every rate.
        for endpoint, reason in product(
            ("completions", "chat"), ("stop", "length", "abort", "timeout", "outvoted", "error")
        ):
            self._finished.labels(self._model, endpoint, reason)
        for reason in ("queue_full", "draining", "out_of_memory", "request_timeout"):
            self._rejected.labels(self._model, reason)
        for phase in PHASES:
            self._cancelled.labels(self._model, phase)

    def _describe_corrections(self) -> None:
        self._correction_time = self._seconds(
            "self_correction_time_seconds", "From the end of the first draft to the end of its last correction."
        )
        self._corrections = self._counter("self_correction_total", "Answers that were corrected to the end.", "outcome")
        for outcome in ("changed", "kept"):
            self._corrections.labels(self._model, outcome)

    def _describe_votes(self) -> None:
        self._agreement = self._histogram(
            "voting_agreement_ratio", "Share of the answers to a prompt that give the one that won.", _SHARES
        )
        self._votes = self._counter("voting_total", "Prompts whose answers voted.", "strategy", "outcome")
        self._ranker_time = self._histogram(
            "ranker_time_seconds", "For the answers that a trained ranker scores together.", _SECONDS, "ranker"
        )
        self._ranked = self._counter("ranked_answers_total", "Answers that a trained ranker has scored.", "ranker")
        for strategy, outcome in product(get_args(Strategy), ("decided", "tie", "no_answer")):
            self._votes.labels(self._model, strategy, outcome)

    def _describe_tokens(self) -> None:
        self._prompt_length = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._output_length = self._histogram("request_generation_tokens", "Visible tokens of an answer.", _TOKENS)
        self._thought_length = self._histogram("request_thought_tokens", "Thought tokens of an answer.", _TOKENS)
        self._depth = self._histogram(
            "request_params_thought_depth", "The thought depth asked for, once a prompt.", _DEPTHS
        )
        self._best_of = self._histogram(
            "request_params_best_of", "Answers drawn for a prompt.", (1, 2, 4, 8, 16, 32, 64, 128)
        )
        self._forwards = self._histogram(
            "forwards_per_token", "Forwards of an answer for each of its visible tokens.", _RATIOS, "thinking"
        )
        self._prompt_tokens = self._counter(
            "prompt_tokens_total", "Prompt tokens; a prompt counts once, however many answers are drawn for it."
        )
        self._prefix_queries = self._counter(
            "prefix_cache_queries_total", "Prompt tokens that were looked for in the cache."
        )
        self._prefix_hits = self._counter("prefix_cache_hits_total", "Prompt tokens that were found there.")
        self._speculative = self._counter(
            "speculative_tokens_total", "Drafts that were decided as drafted, otherwise, or not at all.", "outcome"
        )
        self._adaptive = self._counter("adaptive_positions_total", "Positions of adaptive requests.", "decision")
        self._readouts = self._counter("probe_readouts_total", "Visible tokens that a probe has read.", "probe")
        self._tokens = self._counter("generation_tokens_total", "Tokens decoded.", "kind")

    def _describe_server(self) -> None:
        self._batch_rows = self._histogram("batch_rows", "Rows of a forward.", _ROWS)
        self._forward_time = self._histogram("forward_time_seconds", "Duration of a forward.", _SECONDS)
        self._pipeline_depth = self._gauge("pipeline_depth", "Positions of an answer that may think at once.")
        self._running = self._gauge("num_requests_running", "Answers with a slot.")
        self._waiting = self._gauge("num_requests_waiting", "Answers that wait for a slot.")
        self._cache_usage = self._gauge("kv_cache_usage_ratio", "Share of the cache that running requests use.")
        self.gauges(0, 0, 0.0)
        self._draining = self._gauge("draining", "1 while running work finishes and no new work is taken.")
        self._draining.labels(self._model).set(0)
        self._oom = self._counter("oom_total", "Forwards that memory did not suffice for; they are repeated by halves.")
        self._oom.labels(self._model)
        self._http = self._family(Counter, "http_requests_total", "HTTP replies.", ("handler", "method", "status"))
        build = self._family(Gauge, "build_info", "The version that runs.", ("version",))
        build.labels(version("quietserve")).set(1)

    def _count_prompt(self, attempt: Attempt) -> None:
        """Enter what is the same for all answers to a prompt."""
        self._prompt_length.labels(self._model).observe(len(attempt.prompt))
        self._depth.labels(self._model).observe(attempt.params.thought_depth)
        self._best_of.labels(self._model).observe(attempt.num_samples)

    def _count_correction(self, ticket: Ticket) -> None:
        """Enter one that came to its end."""
        self._corrections.labels(self._model, "changed" if ticket.changed else "kept").inc()
        self._correction_time.labels(self._model, _thinking(ticket)).observe(ticket.timing.correction or 0.0)

    def _count_tokens(self, ticket: Ticket) -> None:
        """Add what a ticket decoded since the last time; the first time, its prompt, which it may share with others."""
        if (before := self._counted.get(ticket.number)) is None:
            before = _Counted()
            self._prompt_tokens.labels(self._model).inc(0 if ticket.attempt.sample else len(ticket.attempt.prompt))
        visible = (
            0 if ticket.is_draft and not ticket.finish_reason else ticket.num_output_tokens
        )  # it may yet be a draft
        now = _Counted(visible, ticket.num_draft_tokens, ticket.num_thought_tokens, replace(ticket.counts))
        self._counted[ticket.number] = now
        if not ticket.attempt.contested:  # those are counted when it is known what becomes of them
            self._tokens.labels(self._model, "visible").inc(now.visible - before.visible)
        self._tokens.labels(self._model, "draft").inc(now.drafts - before.drafts)
        self._tokens.labels(self._model, "thought").inc(now.hidden - before.hidden)
        self._prefix_queries.labels(self._model).inc(now.counts.looked_up - before.counts.looked_up)
        self._prefix_hits.labels(self._model).inc(now.counts.reused - before.counts.reused)
        for outcome in ("accepted", "rejected", "dropped"):
            more = getattr(now.counts, outcome) - getattr(before.counts, outcome)
            self._speculative.labels(self._model, outcome).inc(more)
        if ticket.attempt.params.thought_threshold is not None:
            for decision in ("thought", "skipped"):
                more = getattr(now.counts, decision) - getattr(before.counts, decision)
                self._adaptive.labels(self._model, decision).inc(more)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return self._histogram(name, text, _SECONDS, "thinking", *labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return self._family(Histogram, name, text, ("model_name", *labels), buckets=buckets)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._family(Counter, name, text, ("model_name", *labels))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._family(Gauge, name, text, ("model_name", *labels))

    def _family(self, kind: type[Any], name: str, text: str, labels: Sequence[str], **more: Any) -> Any:
        """The family of this name, which all models of a server share; made the first time."""
        if name not in self._families:
            self._families[name] = kind(f"quietserve_{name}", text, labels, registry=self.registry, **more)
        return self._families[name]


@dataclass(frozen=True)
class _Counted:
    """What has been added to the counters for one ticket."""

    visible: int = 0
    drafts: int = 0
    hidden: int = 0
    counts: Counts = field(default_factory=Counts)


def _thinking(ticket: Ticket) -> str:
    if not ticket.attempt.params.thought_depth:
        return "off"
    return "fixed" if ticket.attempt.params.thought_threshold is None else "adaptive"


def _phase(ticket: Ticket) -> str:
    """How far a cancelled ticket had got: one of `PHASES`."""
    if ticket.timing.started is None:
        return "waiting"
    if ticket.timing.first_token is None:
        return "prefill"
    return "thought" if ticket.decoding is not None and ticket.decoding.thinking else "decode"
