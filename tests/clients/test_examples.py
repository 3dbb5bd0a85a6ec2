"""Every example, as a user runs it, against a real server; and what the client does that only a real server shows."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import tiny
from quietserve.clients import examples
from quietserve.clients.client import Client
from quietserve.model import checkpoint
from quietserve.model.bundled import DEFAULT
from serving import serving

pytestmark = pytest.mark.processes

EXAMPLES = sorted(path.stem for path in Path(examples.__path__[0]).glob("*.py") if path.stem != "__init__")
ANSWER = re.compile(r"answer:? (\w+)")
NUM_PLACES = 4 + 8  # answers that run and that wait


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that is soon full, with a random probe."""
    probe = tiny.save_probe(tmp_path_factory.mktemp("probe"), checkpoint.load(DEFAULT))
    with serving("--max-num-seqs", "4", "--max-num-queued-reqs", "8", "--probe", f"karel.way={probe}") as address:
        yield address


@pytest.fixture
def lines(url: str) -> Callable[[str], list[str]]:
    """Runs an example and gives what it printed."""
    return lambda name: printed_by(name, url)


def printed_by(name: str, url: str) -> list[str]:
    """What an example prints; a warning is an error."""
    argv = [sys.executable, "-W", "error", "-m", f"quietserve.clients.examples.{name}"]
    environment = os.environ | {"QUIETSERVE_URL": url}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def numbers(pattern: str, text: str) -> list[int]:
    return [int(number) for number in re.findall(pattern, text)]


def test_show_thoughts(lines):
    answer, first, *_, usage = lines("show_thoughts")
    assert answer == "answer: 0"
    assert "Tuesday 0" in first  # the note of the step before the last
    hidden, total = numbers(r"\d+", usage)
    assert 0 < hidden < total


def test_stream(lines):
    text, end = lines("stream")
    assert re.sub(r"\[.*?\]", "", text) == " Ben"
    assert "[" in text
    assert end == "ended: stop"


def test_compare_depths(lines):
    told = {depth: line for line in lines("compare_depths") for depth in numbers(r"^depth +(\d+)", line)}
    sure = {depth: max(numbers(r"\b0 (\d+)%", line), default=0) for depth, line in told.items()}
    assert list(sure) == [0, 4, 8, 12]
    assert sure[0] < 50 < sure[12]
    assert "says 0" in told[12]


def test_parallel_thoughts(lines):
    *thoughts, answer = lines("parallel_thoughts")
    assert [numbers(r"^thought (\d)", thought) for thought in thoughts] == [[0], [1], [2], [3]]
    assert len({thought.partition(": ")[2] for thought in thoughts}) > 1
    assert answer == "answer: 0"


def test_adaptive_thinking(lines):
    fixed, adaptive = lines("adaptive_thinking")
    assert [ANSWER.findall(line) for line in (fixed, adaptive)] == [["0"], ["0"]]
    (fixed_cost,), (adaptive_cost,) = (numbers(r"(\d+) hidden", line) for line in (fixed, adaptive))
    assert 0 < adaptive_cost < fixed_cost


def test_score_text(lines):
    scored = [float(re.findall(r"([\d.]+)%", line)[0]) for line in lines("score_text")]
    right_unthought, wrong_unthought, right, wrong = scored
    assert right_unthought < 50 < right
    assert max(wrong, wrong_unthought) < 5


def test_thinking_budget(lines):
    printed = lines("thinking_budget")
    pairs = [(numbers(r"budget +(\d+)", line)[0], numbers(r"after (\d+)", line)[0]) for line in printed]
    assert [budget for budget, _ in pairs] == [0, 4, 8, 64]
    assert all(used <= budget for budget, used in pairs)
    assert pairs[0][1] < pairs[1][1] < pairs[3][1]
    assert ANSWER.findall(printed[-1]) == ["0"]


def test_best_of(lines):
    *texts, usage = lines("best_of")
    means = [float(re.findall(r"-[\d.]+", text)[0]) for text in texts]
    assert len(means) == 2
    assert means == sorted(means, reverse=True)
    returned, discarded, thought = numbers(r"\d+", usage)
    assert returned < discarded < thought


def test_voting(lines):
    *groups, answer, agreement = lines("voting")
    counts = [numbers(r"^(\d+) for", group)[0] for group in groups]
    assert counts == sorted(counts, reverse=True)
    assert ANSWER.findall(answer) == re.findall(r"for (\d+)", groups[0])
    assert numbers(r"\d+", agreement) == [round(100 * counts[0] / sum(counts)), sum(counts)]


def test_self_correction(lines):
    draft, answer, usage = lines("self_correction")
    assert draft.startswith("draft: ")
    changed = draft.partition(":")[2].strip() != answer.partition(":")[2].strip()
    assert usage.startswith("changed;" if changed else "kept;")
    drafted, decoded = numbers(r"\d+", usage)
    assert 0 < drafted < decoded


def test_probes(lines):
    described, *told = lines("probes")
    assert described == "karel.way tells north, south, east apart"
    assert len(told) > 1
    assert all(re.fullmatch(r"at '.*', karel.way: (north|south|east) \(\d+%\)", line) for line in told)


def test_probes_of_a_further_model_that_does_not_think(tmp_path):
    """The example used to look at the first model alone, and to ask for thoughts."""
    folder = tiny.save(tmp_path / "plain", quiet=None)
    probe = tiny.save_probe(tmp_path / "probe", checkpoint.load(folder))
    with serving("--also", f"plain={folder}", "--probe", f"way={probe}") as address:
        described, *told = printed_by("probes", address)
    assert described == "way tells north, south, east apart"
    assert told


def test_cancel(lines):
    printed = lines("cancel")
    cancelled, ended = sorted(printed)  # two threads print
    assert cancelled == "cancelled: True"
    assert ended.startswith("ended: abort")
    assert numbers(r"after (\d+)", ended)[0] < 400


def test_many_requests(lines):
    (line,) = lines("many_requests")
    num_right, num_asked = numbers(r"\d+", line)
    assert num_right > 0.9 * num_asked


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
def test_openai_sdk(lines):
    answer, thought = lines("openai_sdk")
    assert answer == "answer: Ben"
    assert "Monday Ben" in thought


def test_no_example_is_forgotten():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert tested >= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name):
    source = (Path(examples.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40


# --- not an example --------------------------------------------------------------------------------------------------


def test_a_full_server_is_asked_again(url):
    """Whoever fills the server is cancelled while we wait: the next attempt gets a place."""
    waits = []

    def free_a_place(wait_s: float) -> None:
        waits.append(wait_s)
        assert other.cancel("filler") or len(waits) > 1

    with Client(url) as other, Client(url, max_retries=1000, sleep=free_a_place) as client:
        filling = other.stream_complete(
            "Question:", n=NUM_PLACES, max_tokens=500, ignore_eos=True, thought_depth=12, request_id="filler"
        )
        with closing(filling):
            next(filling)
            reply = client.complete("Question:", max_tokens=1)
    assert reply.usage.completion_tokens > 0
    assert len(waits) >= 1
    assert all(wait_s >= 1 for wait_s in waits)  # as the server asks


def test_nothing_to_cancel(url):
    with Client(url) as client:
        assert client.cancel("nobody") is False


def test_tokens_there_and_back(url):
    text = "Question: A dial is at 3."
    with Client(url) as client:
        told = client.tokenize(text, return_token_strs=True)
        assert client.detokenize(told.ids) == text
        assert "".join(told.strings) == text
        assert told.max_model_len == client.models()[0].max_model_len


def test_candidates_vote(url):
    with Client(url) as client:
        told = client.vote(["it is 0.5", "1/2", "2"], answer_pattern="last_number")
    assert [(group.answer, group.sample_indices) for group in told.groups] == [("0.5", (0, 1)), ("2", (2,))]


def test_a_reply_tells_how_long_it_took(url):
    with Client(url) as client:
        reply = client.complete("Question:", max_tokens=2, request_id="timed")
    assert reply.request_id == "timed"
    assert reply.metrics is not None
    assert (reply.metrics.generation_time_ms or 0) > 0


def test_what_a_model_can(url):
    with Client(url) as client:
        (model,) = client.models()
        assert client.ready()
    assert model.capabilities.thinking
    assert (model.max_thought_depth or 0) >= 12
