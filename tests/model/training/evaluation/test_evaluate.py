"""The measurement itself: what it counts, what it repeats, and what the bundled checkpoint gets under it."""

import json
import re
from pathlib import Path

import pytest

import tiny
from quietserve.model import bundled, checkpoint, drawing
from quietserve.model.bundled import DEFAULT
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.training.evaluation import evaluate as module
from quietserve.model.training.evaluation.evaluate import evaluate
from quietserve.model.training.evaluation.family_items import draw_items
from quietserve.model.training.tasks import EVERY, FAMILIES
from quietserve.model.training.tasks.files import EXAMPLES
from quietserve.model.training.tasks.item import Wording
from quietserve.model.training.tasks.numeric import Numeric

GSM8K, COMMONSENSE = EXAMPLES / "gsm8k_shaped.jsonl", EXAMPLES / "commonsense_qa_shaped.jsonl"
FAMILY = next(iter(FAMILIES))
BUNDLED = ("dial", "swaps", "sums")  # what `quiet-small` was taught
ROOMY = {"max_position_embeddings": 2048}  # a letter is a token here


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "thinker", base=tiny.config(**ROOMY))


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "mute", quiet=None)


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert module.main([str(arg) for arg in argv]) == 0
    return capsys.readouterr().out


def test_it_counts_what_decoding_one_by_one_answers(thinker: Path, tmp_path: Path) -> None:
    """A random model says numbers now and then; those that it says at depth 0 are made to be right."""
    loaded, file = checkpoint.load(thinker), tmp_path / "task.jsonl"
    decoder = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 1, 128, 2))
    blank = Numeric("", "", "", "", Wording())
    prompts = [loaded.tokens.encode(f"Q: How many {what}?\nA:") for what in ("oars", "owls", "oxen", "eggs")]
    told = {}
    for depth in (0, 2):
        params = SamplingParams(max_tokens=16, temperature=0, stop=("\n",), thought_depth=depth, thought_temperature=0)
        told[depth] = [generate(decoder, [prompt], params)[0] for prompt in prompts]
    said = [blank.extract(each.text) or "1" for each in told[0]]
    lines = zip(("oars", "owls", "oxen", "eggs"), said, strict=True)
    file.write_text("".join(json.dumps({"question": f"How many {w}?", "answer": f"#### {a}"}) + "\n" for w, a in lines))
    report = evaluate(loaded, [0, 2], 4, 5, (str(file),), 0.0)
    for depth, every in told.items():
        cell = report["tasks"][str(file)]["generated"][str(depth)]
        right = [blank.extract(each.text) == answer for each, answer in zip(every, said, strict=True)]
        assert cell["value"] == report["mean"][str(depth)] == sum(right) / 4
        assert cell["tokens"] == sum(len(each.tokens) for each in every)
        assert cell["n"] == 4
    assert report["mean"]["0"] > 0


@pytest.mark.skipif(not DEFAULT.exists(), reason="no bundled checkpoint")
def test_it_counts_right_answers() -> None:
    loaded, items = checkpoint.load(DEFAULT), draw_items("sums", 8, 5)
    report = evaluate(loaded, [0, 12], n=8, seed=5, tasks=("sums",), thought_temperature=0.0)
    decoder = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 1, 256, 12))
    for depth in (0, 12):
        params = SamplingParams(max_tokens=3, temperature=0, thought_depth=depth, thought_temperature=0)
        told = [generate(decoder, [loaded.tokens.encode(item.prompt)], params)[0].text for item in items]
        right = [item.verify(text) and "---" not in text for item, text in zip(items, told, strict=True)]
        cell = report["tasks"]["sums"]["generated"][str(depth)]
        assert cell["value"] == sum(right) / 8 > 0
        steps = [hit for item, hit in zip(items, right, strict=True) if item.num_steps == 2]
        assert cell["by_steps"]["2"] == pytest.approx(sum(steps) / len(steps), abs=1e-3)
    gain = report["tasks"]["sums"]["generated"]["12"]["gain"]
    assert gain["value"] == pytest.approx(report["mean"]["12"] - report["mean"]["0"])
    assert gain["ci95"][0] <= gain["value"] <= gain["ci95"][1]
    alone = evaluate(loaded, [0, 12], 8, 5, ("sums",), 0.0, batch=1)["tasks"]["sums"]["generated"]
    assert [alone[depth]["value"] for depth in alone] == [report["mean"][depth] for depth in alone]


def test_every_metric_over_every_kind_of_task(
    thinker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out, png = tmp_path / "notes.txt", tmp_path / "report.json", tmp_path / "report.png"
    text.write_text("It rains on the just and on the unjust. " * 3)
    flags = ["--metrics", "generated", "scored", "maj", "perplexity", "--depths", "0,1", "--n", "2", "--samples", "2"]
    flags += [
        "--max-tokens",
        "3",
        "--reasoning-tokens",
        "4",
        "--positions",
        "6",
        "--length",
        "40",
        "--thought-temperature",
        "1",
    ]
    flags += ["--tasks", FAMILY, str(GSM8K), str(COMMONSENSE), "--text", str(text), "--out", str(out)]
    drawn = ["--png", str(png)] if drawing.available() else []
    printed = json.loads(run(capsys, thinker, *flags, *drawn, "--json"))
    assert printed == json.loads(out.read_text())
    assert {file.name for file in tmp_path.iterdir()} <= {text.name, out.name, png.name}  # nothing is left aside
    assert printed["command"][:3] == ["quietserve", "evaluate", str(thinker)]
    assert printed["versions"].keys() == {"python", "torch", "transformers"}
    assert printed["tasks"].keys() == {FAMILY, str(GSM8K), str(COMMONSENSE), str(text)}
    assert printed["tasks"][str(text)].keys() == {"perplexity"}
    for cells in printed["tasks"].values():
        for by_depth in cells.values():
            assert by_depth.keys() == {"0", "1"}
            for cell in by_depth.values():
                low, high = cell["ci95"]
                assert low - 1e-9 <= cell["value"] <= high * (1 + 1e-9) + 1e-9
                assert cell["n"] == 2
    assert ("likeliest" in printed["tasks"][str(COMMONSENSE)]["scored"]["0"]) is True
    assert ("likeliest" in printed["tasks"][str(GSM8K)]["scored"]["0"]) is False
    assert not drawn or png.read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_a_task_and_a_column_a_depth(thinker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(capsys, thinker, "--tasks", str(GSM8K), str(COMMONSENSE), "--depths", "2,0", "--n", "2")
    lines = told.splitlines()
    assert re.fullmatch(r"generated answers right +depth 0 +depth 2", lines[0])
    assert re.fullmatch(r"gsm8k_shaped.jsonl( +\d\.\d{3} \[\d\.\d{3} \d\.\d{3}\]){2}", lines[1])
    assert [line.split()[0] for line in lines[2:5]] == ["commonsense_qa_shaped.jsonl", "mean", "forwards"]
    assert lines[-1] == "with 95 % intervals; 2 items a task or fewer, seed 1"


def test_a_report_is_a_function_of_its_seed(thinker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And not of what shares a batch, but for the rounding of sums."""
    flags = [thinker, "--tasks", FAMILY, "--metrics", "scored", "maj", "--depths", "2", "--n", "2", "--json"]
    flags += ["--thought-temperature", "1", "--samples", "2", "--reasoning-tokens", "5"]

    def measured(*more: str) -> tuple[float, float]:
        cells = json.loads(run(capsys, *flags, *more))["tasks"][FAMILY]
        return cells["scored"]["2"]["value"], cells["maj"]["2"]["answered"]

    assert measured() == measured()
    assert measured("--batch", "1") == pytest.approx(measured(), abs=1e-4)
    assert measured("--seed", "2")[0] != measured()[0]


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["/none"], f"/none: no such checkpoint folder; bundled are {', '.join(bundled.BUNDLED)}"),
        (["--n", "0"], "--n is 0; it must be 1 or more"),
        (
            ["--metrics", "bleu"],
            "--metrics is bleu; it must be among generated, scored, maj, corrected, budget, perplexity",
        ),
        (
            ["--tasks", "chess"],
            f"--tasks is chess; it must be among {', '.join(EVERY)}, or a JSONL file that exists",
        ),
        (
            ["--text", "a.txt"],
            "--metrics is generated; it must be perplexity alone: a plain text (--text) has no other metric",
        ),
        (["--text", "a.txt", "--metrics", "perplexity"], "a.txt: cannot be read: No such file or directory"),
        (["--tasks", "README.md"], None),
        (["--template", "Answer:"], "--template is 'Answer:'; it must hold {question} and not end in white space"),
        (
            ["--depths", "0,1022"],
            "--depths is 0 1022; it must be 1021 or less each: the model's context is 1024 tokens",
        ),
        (["--dtype", "int3"], "--dtype is int3; it must be one of auto, float32, bfloat16, float16"),
        (["--quantization", "x"], "--quantization is x; it must be one of none, bnb-8bit, bnb-4bit"),
        (["--device", "abacus"], "--device is abacus; it must be cpu, or a device that torch can use here"),
        (["--out", "/none/x.json"], "--out /none/x.json: there is no such folder"),
        (["--samples", "0"], "--samples is 0; it must be 1 or more"),
        (["--temperature", "3"], "--temperature is 3.0; it must be between 0 and 2"),
    ],
)
@pytest.mark.skipif(not DEFAULT.exists(), reason="no bundled checkpoint")
def test_bad_arguments_are_one_line(argv: list[str], reason: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(argv) == 2
    told = capsys.readouterr().err
    assert told.startswith("quietserve evaluate: ")
    assert told.count("\n") == 1
    assert reason is None or told == f"quietserve evaluate: {reason}\n"


def test_who_cannot_think_is_measured_at_depth_0(mute: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main([str(mute), "--depths", "0,4"]) == 2
    assert capsys.readouterr().err == (
        "quietserve evaluate: --depths is 0 4; it must be 0: this model has no mixing head\n"
    )
    assert "depth 0" in run(capsys, mute, "--depths", "0", "--n", "1", "--tasks", str(GSM8K))


def test_a_prompt_longer_than_the_context_is_named(
    mute: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(GSM8K.read_text() + json.dumps({"question": "Why? " * 120, "answer": "#### 1"}) + "\n")
    for metric in ("generated", "scored", "maj", "perplexity"):
        argv = [str(mute), "--depths", "0", "--tasks", str(file), "--metrics", metric, "--reasoning-tokens", "2"]
        assert module.main(argv) == 2
        assert re.search(rf"{file}:21: 6\d\d tokens .* has room for 512\n", capsys.readouterr().err)


@pytest.mark.skipif(not DEFAULT.exists(), reason="no bundled checkpoint")
def test_the_bundled_checkpoint_thinks() -> None:
    """More right answers at depth 12 than at depth 0; 40 problems a family, the table in docs has 2000."""
    loaded = checkpoint.load(DEFAULT)
    report = evaluate(loaded, [0, 12], n=40, seed=77, tasks=BUNDLED)
    for cells in report["tasks"].values():
        assert cells["generated"]["12"]["value"] > cells["generated"]["0"]["value"] + 0.15
    assert report["mean"]["12"] > 1.6 * report["mean"]["0"]
    assert sum(file.stat().st_size for file in DEFAULT.iterdir()) < 16 * 2**20


@pytest.mark.skipif(not DEFAULT.exists(), reason="no bundled checkpoint")
def test_the_bundled_checkpoint_gains_on_hard_tokens() -> None:
    """As the paper says: the average moves little, the hardest tokens much."""
    report = evaluate(checkpoint.load(DEFAULT), [12], n=12, seed=3, tasks=("dial",), metrics=("perplexity",))
    gains = [tenth["gain"] for tenth in report["tasks"]["dial"]["perplexity"]["12"]["tenths"]]
    assert gains[9] > 0.2
    assert gains[9] > 5 * max(gains[:5])
