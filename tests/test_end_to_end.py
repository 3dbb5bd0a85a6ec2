"""A real server process, its real command, real clients: what a user sees."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import tiny
from quietserve.model import checkpoint
from quietserve.model.answers import normalise
from quietserve.model.bundled import DEFAULT
from quietserve.model.probe import Probe, load_probe, read_text
from quietserve.model.ranker import load_ranker
from quietserve.model.training.evaluation.corrected import make_player
from quietserve.model.training.evaluation.evaluation import Evaluation
from quietserve.model.training.evaluation.family_items import draw_items
from quietserve.model.training.evaluation.programs import operation_ids
from quietserve.model.voting import SELF_RANKERS, Candidate, Entry, judge, vote
from quietserve.server.__main__ import main as serve
from serving import ENVIRONMENT, running, serving

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parent.parent
CORRECTOR, RANKER, KAREL = "score-small", "score-ranker", "karel-small"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tiny.save(tmp_path_factory.mktemp("served") / "tiny-quiet")
    with serving(str(folder), "--max-model-len", "256", "--max-num-seqs", "6") as address:
        yield address


def body(number: int) -> dict[str, Any]:
    thinking = {"thought_depth": number % 5, "return_thoughts": True}
    return {"model": "tiny-quiet", "prompt": f"tell me {number}", "max_tokens": 12, "seed": number, **thinking}


def test_alone_and_beside_fifteen_others_over_curl_and_the_sdk(url: str) -> None:
    """The same answer for the same seed, `==`."""
    curl = ["curl", "-sS", f"{url}/v1/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body(3))]
    alone = json.loads(subprocess.run(curl, capture_output=True, check=True, timeout=60).stdout)["choices"]

    async def together() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            own = {"thought_depth", "return_thoughts"}
            requests = [
                client.completions.create(
                    **{k: v for k, v in body(i).items() if k not in own},
                    extra_body={k: v for k, v in body(i).items() if k in own},
                )
                for i in range(16)
            ]
            return await asyncio.gather(*requests)

    beside = asyncio.run(together())[3].model_dump()["choices"]
    for one, other in zip(alone, beside, strict=True):
        assert (one["text"], one["finish_reason"]) == (other["text"], other["finish_reason"])
        assert [t["token_ids"] for t in one["thoughts"]] == [t["token_ids"] for t in other["thoughts"]]


def test_streamed_text_joins_to_the_unstreamed(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked: dict[str, Any] = {
            "model": "tiny-quiet",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 24,
            "seed": 11,
            "stop": ["e"],
            "extra_body": {"thought_depth": 3},
        }
        whole = client.chat.completions.create(**asked).choices[0]
        pieces = list(client.chat.completions.create(stream=True, **asked))
        joined = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert joined == whole.message.content
        assert pieces[-1].choices[0].finish_reason == whole.finish_reason


def test_usage_counts_thoughts_exactly(url: str) -> None:
    reply = httpx.post(f"{url}/v1/completions", json=body(4) | {"n": 3, "ignore_eos": True}, timeout=60).json()
    hidden = sum(len(thought["token_ids"]) for choice in reply["choices"] for thought in choice["thoughts"])
    assert hidden == 3 * 12 * 4
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == hidden
    assert reply["usage"]["completion_tokens"] == hidden + 3 * 12


def test_parallel_thoughts_are_returned_and_counted_one_by_one(url: str) -> None:
    asked = body(4) | {"num_thoughts": 3, "ignore_eos": True, "max_tokens": 5}
    reply = httpx.post(f"{url}/v1/completions", json=asked, timeout=60).json()
    thoughts = reply["choices"][0]["thoughts"]
    assert [(t["position"], t["thought_index"]) for t in thoughts] == [(i, k) for i in range(5) for k in range(3)]
    assert len({tuple(t["token_ids"]) for t in thoughts}) == 15
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5 * 3 * 4


def test_adaptive_thinking_thinks_where_it_is_unsure(url: str) -> None:
    def thoughts(threshold: float) -> int:
        asked = body(4) | {"thought_mode": "adaptive", "thought_threshold": threshold, "ignore_eos": True}
        return len(httpx.post(f"{url}/v1/completions", json=asked, timeout=60).json()["choices"][0]["thoughts"])

    assert (thoughts(0.0), thoughts(99.0)) == (12, 0)


def test_what_the_pipeline_did_is_in_the_metrics(url: str) -> None:
    prompt = "a prompt that is long enough to be worth sharing between answers"
    httpx.post(f"{url}/v1/completions", json=body(4) | {"prompt": prompt, "n": 4}, timeout=60)
    told = httpx.get(f"{url}/metrics").text
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in told.splitlines() if line[0] != "#"}

    def total(name: str) -> float:
        return sum(value for key, value in values.items() if key.startswith(f"quietserve_{name}"))

    assert total("prefix_cache_hits_total") >= 3 * (len(prompt) - 1)
    assert total("prefix_cache_queries_total") > total("prefix_cache_hits_total")
    assert total("speculative_tokens_total") > 0
    assert total("forwards_per_token_count") > 0
    assert total("pipeline_depth") >= 1


def test_scoring_at_a_depth_scores_every_token_with_a_thought(url: str) -> None:
    asked = {
        "model": "tiny-quiet",
        "prompt": "score me",
        "max_tokens": 1,
        "echo": True,
        "logprobs": 1,
        "temperature": 0,
    }
    plain, thought = (
        httpx.post(f"{url}/v1/completions", json=asked | {"thought_depth": depth}, timeout=60).json()
        for depth in (0, 4)
    )
    scores = [reply["choices"][0]["logprobs"]["token_logprobs"] for reply in (plain, thought)]
    assert scores[0][0] is scores[1][0] is None
    assert len(scores[0]) == len(scores[1]) == len("score me") + 1
    assert all(one != other for one, other in zip(scores[0][1:-1], scores[1][1:-1], strict=True))
    # Hidden tokens of the scored positions count too: one thought after each of the eight letters.
    assert thought["usage"]["completion_tokens_details"]["reasoning_tokens"] == 8 * 4


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_metrics(url: str) -> None:
    httpx.post(f"{url}/v1/completions", json=body(1), timeout=60)
    metrics = httpx.get(f"{url}/metrics").text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics, text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_client_that_leaves_frees_its_slot(url: str) -> None:
    """200 tokens of depth 16 are 3,400 forwards: neither request below can have ended by itself."""
    long = body(2) | {"max_tokens": 200, "ignore_eos": True, "thought_depth": 16}
    with httpx.stream("POST", f"{url}/v1/completions", json=long | {"stream": True}, timeout=60) as reply:
        next(reply.iter_bytes())
    wait_for_gauge(url, "quietserve_num_requests_running", 0.0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=long, timeout=0.3)
    wait_for_gauge(url, "quietserve_num_requests_running", 0.0)


def wait_for_gauge(url: str, name: str, value: float) -> None:
    for _ in range(200):
        found = re.search(rf"^{name}{{[^}}]*}} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        if found and float(found.group(1)) == value:
            return
    raise AssertionError(f"{name} never became {value}")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["/no/such/checkpoint"], "/no/such/checkpoint: no such checkpoint folder"),
        (["--port", "http"], "--port"),
        (["--max-thought-depth", "-1"], "--max-thought-depth"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(flags) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert len(told.strip().splitlines()) == 1


def test_a_port_that_is_taken(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = url.rsplit(":", 1)[1]
    assert serve(["--port", port]) == 2
    told = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in told
    assert len(told.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def corrector() -> Iterator[httpx.Client]:
    with (
        serving(CORRECTOR, "--ranker", f"checker={RANKER}") as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def test_corrections_over_http_are_those_that_were_trained(corrector: httpx.Client) -> None:
    """The bundled corrector's two turns, `==` to the attempts its training made and measured; and they are corrections."""
    loaded, items = checkpoint.load(CORRECTOR), draw_items("signed-sum", 48, seed=5)
    player = make_player(Evaluation(loaded), items, temperature=0.0, depth=0)
    episodes = player.play(items, [0] * len(items), loaded.model)
    body = {"temperature": 0, "max_tokens": player.max_tokens, "self_correction_turns": 1, "return_drafts": True}
    for item, episode in zip(items, episodes, strict=True):
        reply = corrector.post("/v1/completions", json=body | {"prompt": item.prompt})
        (choice,) = reply.json()["choices"]
        drafts = [turn["text"] for turn in choice["self_correction"]["turns"]]
        assert [*drafts, choice["text"]] == [turn.answer.text for turn in episode.turns]
    first, second = (sum(episode.turns[turn].right for episode in episodes) for turn in (0, 1))
    assert second > first + 4


def test_votes_over_http_are_those_of_the_same_answers(corrector: httpx.Client) -> None:
    """Each answer is corrected before it votes; the vote is better than an answer, and the same wherever it is counted."""
    items, single, voted = draw_items("signed-sum", 12, seed=6), 0.0, 0
    asked = {"max_tokens": 16, "self_correction_turns": 1, "best_of": 10, "voting": "majority"}
    for seed, item in enumerate(items):
        body = asked | {"prompt": item.prompt, "seed": seed}
        whole = corrector.post("/v1/completions", json=body | {"return_samples": True}).json()
        texts = [sample["text"] for sample in whole["voting"]["samples"]]
        likely = [sample["mean_logprob"] for sample in whole["voting"]["samples"]]
        offline = vote([Candidate(i, normalise(text), 0.0, likely[i]) for i, text in enumerate(texts)], "majority")
        (choice,) = whole["choices"]
        assert choice["text"] == texts[offline.groups[0].members[0].index]
        counted = corrector.post("/v1/vote", json={"candidates": texts}).json()
        assert [group["count"] for group in counted["groups"]] == [len(group.members) for group in offline.groups]
        (early,) = corrector.post("/v1/completions", json=body).json()["choices"]
        assert early["text"] == choice["text"], "some were not drawn to their end"
        single += sum(map(item.verify, texts)) / len(texts)
        voted += item.verify(choice["text"])
    assert voted > single + 1


def test_votes_that_a_ranker_weighs_are_those_of_the_same_answers(corrector: httpx.Client) -> None:
    """Scored offline, the samples of a reply have the scores and the winner that it tells; `/v1/score` says the same."""
    loaded = checkpoint.load(CORRECTOR)
    ranker, single, voted = load_ranker(RANKER, loaded), 0.0, 0
    items = draw_items("signed-sum", 16, seed=7)
    for seed, item in enumerate(items):
        asked = {"prompt": item.prompt, "seed": seed, "max_tokens": 16, "best_of": 8, "voting": "ranker"}
        reply = corrector.post("/v1/completions", json=asked | {"return_samples": True}).json()
        samples = reply["voting"]["samples"]
        scores = ranker.score([Entry(tuple(loaded.tokens.encode(item.prompt)), one["text"]) for one in samples])
        assert [one["score"] for one in samples] == pytest.approx(scores, abs=2e-6)
        told = zip(samples, scores, strict=True)
        candidates = [
            Candidate(i, normalise(one["text"]), mean_logprob=one["mean_logprob"], score=score)
            for i, (one, score) in enumerate(told)
        ]
        assert reply["choices"][0]["text"] == samples[vote(candidates, "ranker").groups[0].members[0].index]["text"]
        body = {"prompt": item.prompt, "candidates": [one["text"] for one in samples]}
        judged = corrector.post("/v1/score", json=body).json()
        assert [one["score"] for one in judged["data"]] == pytest.approx(scores, abs=2e-6)
        assert (judged["ranker"], reply["voting"]["ranker"]) == ("checker", "checker")
        single += sum(item.verify(one["text"]) for one in samples) / len(samples)
        voted += item.verify(reply["choices"][0]["text"])
    assert voted > single + 6


@pytest.mark.parametrize(
    "how", [{"voting": "likelihood"}, *({"voting": "ranker", "ranker": name} for name in SELF_RANKERS)], ids=str
)
def test_votes_that_need_no_training_are_those_of_the_same_answers(
    corrector: httpx.Client, how: dict[str, str]
) -> None:
    """Counted offline from the log-probabilities of each answer's tokens, and again by the server from what it told of them."""
    for seed, item in enumerate(draw_items("signed-sum", 6, seed=8)):
        asked = {"prompt": item.prompt, "seed": seed, "max_tokens": 16, "best_of": 8, "temperature": 1.3}
        drawn = corrector.post("/v1/completions", json=asked | {"n": 8, "logprobs": 0}).json()["choices"]
        logprobs = {choice["text"]: choice["logprobs"]["token_logprobs"] for choice in drawn}
        told = corrector.post("/v1/completions", json=asked | how | {"return_samples": True}).json()
        samples = told["voting"]["samples"]
        candidates = [
            judge(i, normalise(s["text"]), logprobs[s["text"]], how.get("ranker")) for i, s in enumerate(samples)
        ]
        groups = vote(candidates, how["voting"]).groups
        assert [(g["answer"], g["count"]) for g in told["voting"]["groups"]] == [
            (g.answer, len(g.members)) for g in groups
        ]
        assert told["choices"][0]["text"] == samples[groups[0].members[0].index]["text"]
        kept = ("text", "logprob", "mean_logprob", "score")
        body = {"candidates": [{name: s[name] for name in kept if name in s} for s in samples], "voting": how["voting"]}
        again = corrector.post("/v1/vote", json=body).json()
        assert again["groups"] == told["voting"]["groups"]


def test_probes_over_http_read_what_they_read_offline(tmp_path: Path) -> None:
    """Whole and streamed, deep and plain, drawn and corrected; and they count what they said."""
    folder = tiny.save(tmp_path / "tiny")
    loaded = checkpoint.load(folder)
    paths = {"one": tiny.save_probe(tmp_path / "one", loaded)}
    paths["karel.two"] = tiny.save_probe(
        tmp_path / "two", loaded, seed=1, layers=(0, 2), widths=(8,), tokens=("a", "e")
    )
    probes = {name: load_probe(path, loaded) for name, path in paths.items()}
    flags = [part for name, path in paths.items() for part in ("--probe", f"{name}={path}")]
    count = Counter[str]()
    with serving(str(folder), "--max-model-len", "256", *flags) as address, httpx.Client(base_url=address) as client:
        for number in range(4):
            asked = body(number) | {"model": "tiny", "probes": list(paths), "n": 2, "return_token_ids": True}
            for choice in client.post("/v1/completions", json=asked, timeout=60).json()["choices"]:
                count += check_probes(choice, probes, loaded)
        told = client.get("/metrics").text
        (model,) = client.get("/v1/models").json()["data"]
    assert [probe["name"] for probe in model["capabilities"]["probes"]] == list(paths)
    for name in paths:
        assert f'quietserve_probe_readouts_total{{model_name="tiny",probe="{name}"}} {float(count[name])}' in told
    assert 0 < count["karel.two"] < count["one"]


def check_probes(choice: dict[str, Any], probes: dict[str, Probe], loaded: checkpoint.Loaded) -> Counter[str]:
    """How often each probe had something to say, which is what it says of the same text offline."""
    ids = [*choice["prompt_token_ids"], *choice["token_ids"]]
    assert [told["position"] for told in choice["probes"]] == list(range(len(choice["token_ids"])))
    count = Counter[str]()
    for name, probe in probes.items():
        offline = read_text(loaded, probe, ids, len(choice["prompt_token_ids"]))
        for told, expected in zip(choice["probes"], offline, strict=True):
            readout = told["readouts"][name]
            assert (readout is None) == (expected is None)
            if readout and expected:
                count[name] += 1
                assert readout["class"] == expected.class_
                assert readout["probability"] == pytest.approx(expected.probability, abs=2e-4)
    return count


def test_the_bundled_model_of_programs_and_what_its_probes_read() -> None:
    """Beside another model in one server: its programs do what is asked, and readouts are those of the same text offline.

    Classes `==`, and probabilities but where the fifth decimal stands at the edge: .62195 is told as .622 in one batch and as .6219
    in another, whose sums differ by a millionth. One of some hundred once ended this test.
    """
    edges = Counter[bool]()
    loaded = checkpoint.load(KAREL)
    probes = {"karel.obstacle": load_probe("karel-obstacle", loaded)}
    preset = {"model": KAREL, "allowed_token_ids": [*operation_ids(loaded), *loaded.tokens.eos_ids], "min_tokens": 1}
    preset |= {"temperature": 0, "probes": list(probes)}
    flags = ["quiet-small", "--also", KAREL, "--model-preset", f"programs={json.dumps(preset)}"]
    flags += [part for name in probes for part in ("--probe", f"{name}={name.replace('.', '-')}")]
    items = draw_items("karel-4x4", 40, 9)
    with serving(*flags) as address, httpx.Client(base_url=address, timeout=60) as client:
        prompts = [item.prompt for item in items]
        asked = {"model": "programs", "prompt": prompts, "max_tokens": 12, "return_token_ids": True}
        choices = client.post("/v1/completions", json=asked).json()["choices"]
        told = {model["id"]: model["capabilities"]["probes"] for model in client.get("/v1/models").json()["data"]}
    assert [probe["name"] for probe in told[KAREL]] == list(probes)
    assert told["quiet-small"] == []
    assert sum(item.verify(choice["text"]) for item, choice in zip(items, choices, strict=True)) >= 30
    for choice in choices:
        ids = [*choice["prompt_token_ids"], *choice["token_ids"]]
        for name, probe in probes.items():
            offline = read_text(loaded, probe, ids, len(choice["prompt_token_ids"]))
            readouts = [told["readouts"][name] for told in choice["probes"]]
            assert [one and one["class"] for one in readouts] == [one and one.class_ for one in offline]
            both = [
                (own["probability"], one.probability) for own, one in zip(readouts, offline, strict=True) if own and one
            ]
            assert all(abs(one - other) < 1.01e-4 for one, other in both)
            edges.update(one != other for one, other in both)
    assert edges[True] <= 2 < 60 < edges[False]


def test_a_probe_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stops the start with one line that says why; or it is left out, where that is asked for, and this is logged."""
    folder = tiny.save(tmp_path / "tiny")
    good = tiny.save_probe(tmp_path / "good", checkpoint.load(folder))
    bad = tiny.save_probe(tmp_path / "bad", checkpoint.load(tiny.save(tmp_path / "other", seed=1)))
    flags = [str(folder), "--port", "0", "--probe", f"bad={bad}", "--probe", f"good={good}"]
    assert serve(flags) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("quietserve serve: ")
    assert "probe.json: is of a model with the fingerprint: " in told
    with running(*flags, "--skip-bad-probes") as server:
        (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
        asked = {"prompt": "x", "max_tokens": 2, "probes": ["bad"]}
        error = httpx.post(f"{server.url}/v1/completions", json=asked).json()["error"]
    assert [probe["name"] for probe in model["capabilities"]["probes"]] == ["good"]
    assert error["message"] == "probes has 'bad'; this model has good."


def test_several_models_answer_as_each_alone(tmp_path: Path) -> None:
    """A checkpoint that thinks, one that does not and one with a ranker, all at once; what is attached finds its model."""
    folders = {"tiny": tiny.save(tmp_path / "tiny"), "plain": tiny.save(tmp_path / "plain", quiet=None, seed=1)}
    probes = {
        name: tiny.save_probe(tmp_path / f"{name}-probe", checkpoint.load(path)) for name, path in folders.items()
    }
    flags = ["--also", f"plain={folders['plain']}", "--also", CORRECTOR, "--ranker", f"checker={RANKER}"]
    flags += [part for name, path in probes.items() for part in ("--probe", f"way.{name}={path}")]
    flags += ["--max-thought-depth", "6", "--model-preset", 'brief={"model": "plain", "max_tokens": 3}']
    asked = [
        {"model": name, "prompt": f"tell me {seed}", "max_tokens": 12, "seed": seed, "n": 2}
        for name in (*folders, CORRECTOR)
        for seed in range(4)
    ]
    alone = [texts for name, path in folders.items() for texts in answers(str(path), asked, name)]
    alone += answers(CORRECTOR, asked, CORRECTOR)
    with serving(str(folders["tiny"]), *flags) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert asyncio.run(all_at_once(address, asked)) == alone
        told = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        brief = client.post("/v1/completions", json={"model": "brief", "prompt": "x", "ignore_eos": True}).json()
        metrics = client.get("/metrics").text
    assert {name: model["parent"] for name, model in told.items()} == {
        "tiny": None,
        "plain": None,
        "brief": "plain",
        CORRECTOR: None,
    }
    able = {name: model["capabilities"] for name, model in told.items()}
    assert [probe["name"] for name in told for probe in able[name]["probes"]] == ["way.tiny", "way.plain", "way.plain"]
    assert [name for name in told if "checker" in able[name]["rankers"]] == [CORRECTOR]
    assert {name: able[name]["max_thought_depth"] for name in folders} == {"tiny": 6, "plain": 0}
    assert (brief["model"], brief["usage"]["completion_tokens"]) == ("brief", 3)
    for name, count in (("tiny", 8), ("plain", 9), (CORRECTOR, 8)):
        assert total(metrics, "requests_finished_total", name) == count
        assert total(metrics, "e2e_request_latency_seconds_count", name) == count
        assert total(metrics, "num_requests_running", name) == 0


def answers(path: str, asked: list[dict[str, Any]], name: str) -> list[list[str]]:
    """Those of a server of this model alone, whose requests are asked one after the other."""
    with serving(path, "--served-model-name", name, "--max-thought-depth", "6" if name == "tiny" else "0") as address:
        return [texts for one in asked if one["model"] == name for texts in asyncio.run(all_at_once(address, [one]))]


async def all_at_once(address: str, asked: list[dict[str, Any]]) -> list[list[str]]:
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        replies = await asyncio.gather(*(client.post("/v1/completions", json=one) for one in asked))
    return [[choice["text"] for choice in reply.json()["choices"]] for reply in replies]


def total(metrics: str, name: str, model: str) -> float:
    found = re.findall(rf'^quietserve_{name}{{[^}}]*model_name="{model}"[^}}]*}} (\S+)$', metrics, re.MULTILINE)
    return sum(map(float, found))


def test_a_ranker_that_fits_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(tiny.save(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "two"))]
    assert serve([folders[0], "--port", "0", "--also", folders[1], "--ranker", f"checker={RANKER}"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "one's are 32 wide, of 259" in told
    assert "two's are 32 wide, of 259" in told


@pytest.mark.skipif(not DEFAULT.exists(), reason="no bundled checkpoint")
def test_the_wheel_serves_the_bundled_checkpoint(tmp_path: Path) -> None:
    """Built from what git tracks, unpacked elsewhere, run from there."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, tracked)):
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(tmp_path / "source"),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 16 * 2**20
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    settings = {"cwd": tmp_path, "env": ENVIRONMENT | {"PYTHONPATH": str(tmp_path / "site")}}
    where = [sys.executable, "-c", "import quietserve.model.config as m; print(m.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, **settings).stdout
    assert found.startswith(str(tmp_path / "site")), "the wheel's own code runs, not the checkout's"
    with running(**settings) as server:
        asked = {"prompt": "Question: A dial is at 3. It goes up 4 on Monday. Where is the dial now?\nAnswer:"}
        reply = httpx.post(
            f"{server.url}/v1/completions", json=asked | {"temperature": 0, "thought_depth": 12}, timeout=60
        )
        assert reply.json()["choices"][0]["text"].strip() == "7"
        for path in ("/", "/playground/app.js", "/playground/app.css", "/playground/icon.svg"):
            assert httpx.get(server.url + path).status_code == 200, path
        server.process.terminate()
        assert server.process.wait(30) == 0
