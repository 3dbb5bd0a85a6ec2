"""lm-eval's `local-completions`, which scores with batches of token ids, `echo` and `logprobs`, and generates with `until`.

Its tasks are written here, of fresh problems: nothing is fetched.
"""

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from questions import DEEP, QUICK
from quietserve.model.bundled import DEFAULT
from quietserve.model.training.tasks import problems

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parent / "scripts" / "evaluate_with_lm_eval.py"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}

IDS = {"tokenizer_backend": "huggingface", "tokenizer": str(DEFAULT)}  # its own tokenizer: prompts are ids

SEED = 77
FAMILIES, STEPS = ("dial", "swaps", "sums"), range(1, 7)
ROUND = len(FAMILIES) * len(STEPS)
TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: PROBLEMS}}
test_split: test
"""
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "answer": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: answer
generation_kwargs: {until: ["\\n", "Question:"], max_gen_toks: 4, temperature: 0, do_sample: false}
filter_list: [{name: word, filter: [{function: remove_whitespace}, {function: take_first}]}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}


def documents(number: int) -> Iterator[dict[str, Any]]:
    for problem in itertools.islice(problems("held_out", FAMILIES, SEED, STEPS), number):
        choices = list(problem.answers)
        text = f"Question: {problem.question}\nAnswer: {problem.answer}"
        told = {"question": problem.question, "answer": problem.answer, "text": text}
        yield told | {"choices": choices, "label": choices.index(problem.answer)}


def write_tasks(folder: Path, **numbers: int) -> None:
    for name, number in numbers.items():
        told = folder / f"{name}.jsonl"
        told.write_text("".join(json.dumps(document) + "\n" for document in documents(number)))
        (folder / f"{name}.yaml").write_text(f"task: {name}" + TASK.replace("PROBLEMS", str(told)) + TASKS[name])


def asked(url: str, model: str, *tasks: str, limit: int | None = None, **arguments: Any) -> dict[str, Any]:
    """What `simple_evaluate` is given. lm-eval supposes 2048 tokens of context where it is told nothing."""
    own = {"model": model, "base_url": f"{url}/v1/completions", "max_length": 1000}
    return {"model_args": own | arguments, "tasks": tasks, "limit": limit, "batch_size": 32}


def evaluate(folder: Path, runs: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, SCRIPT, folder, json.dumps(runs)]
    environment = os.environ | OFFLINE | {"HF_HOME": str(folder / "cache")}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def scores(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lm_eval")
    write_tasks(folder, choice=ROUND, answer=3 * ROUND, text=4)
    runs = {
        "quick": asked(url, QUICK, "choice", "answer", "text", **IDS),
        "deep": asked(url, DEEP, "choice", "answer", "text", **IDS),
        "remote": asked(url, DEEP, "choice", "answer", "text", limit=2),  # the tokenizer that it finds by itself
        "strings": asked(url, DEEP, "answer", limit=ROUND, tokenizer_backend=None, num_concurrent=4),
        "again as ids": asked(url, DEEP, "choice", "answer", "text", limit=2, **IDS),
    }
    return evaluate(folder, runs)


def test_thinking_makes_it_answer_right(scores: dict[str, Any]) -> None:
    """As a share of problems answered right."""
    quick, deep = (scores[run]["answer"]["exact_match"] for run in ("quick", "deep"))
    assert quick < 0.6
    assert deep > 0.93


def test_thinking_makes_it_choose_right(scores: dict[str, Any]) -> None:
    """Every choice is scored, with a thought at every position of its text."""
    quick, deep = (scores[run]["choice"]["acc"] for run in ("quick", "deep"))
    assert quick + 0.25 < deep
    assert deep > 0.85


def test_the_rolling_likelihood_is_what_the_server_scores(scores: dict[str, Any], url: str) -> None:
    """lm-eval begins a text with the end of another one, and divides by the text's bytes."""
    texts = [document["text"] for document in documents(4)]
    for run, model in (("quick", QUICK), ("deep", DEEP)):
        prompts = [f"<|endoftext|>{text}" for text in texts]
        body = {"model": model, "prompt": prompts, "echo": True, "logprobs": 0, "max_tokens": 0}
        choices = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
        nats = -sum(sum(choice["logprobs"]["token_logprobs"][1:]) for choice in choices)
        bits_per_byte = nats / sum(len(text.encode()) for text in texts) / math.log(2)
        assert scores[run]["text"]["bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-4)


def test_it_finds_our_tokenizer_by_itself(scores: dict[str, Any]) -> None:
    """lm-eval's default: it asks /tokenizer_info, and has the server tokenize. The same ids give the same scores."""
    for task, told in scores["again as ids"].items():
        assert scores["remote"][task] == pytest.approx(told), task


def test_prompts_of_text_many_at_once(scores: dict[str, Any]) -> None:
    assert scores["strings"]["answer"]["exact_match"] > 0.85


@pytest.mark.slow
def test_thinking_makes_it_choose_right_on_many_problems(url: str, tmp_path: Path) -> None:
    write_tasks(tmp_path, choice=10 * ROUND)
    runs = {model: asked(url, model, "choice", **IDS) for model in (QUICK, DEEP)}
    told = evaluate(tmp_path, runs)
    assert told[QUICK]["choice"]["acc"] < 0.6
    assert told[DEEP]["choice"]["acc"] > 0.93
