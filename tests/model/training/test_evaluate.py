"""The measurement itself: what it counts, what it repeats, and what the bundled checkpoint gets under it."""

import itertools
import json
import re
from pathlib import Path

import pytest

from quietserve.model import checkpoint
from quietserve.model.bundled import DEFAULT
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.training import evaluate as module
from quietserve.model.training import study
from quietserve.model.training.documents import write_prompt
from quietserve.model.training.evaluate import evaluate, wilson
from quietserve.model.training.quiet_star import main as train
from quietserve.model.training.tasks import FAMILIES, is_held_out, problems


@pytest.fixture(scope="module")
def thinker(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinker") / "out"
    sizes = ["--batch", "2", "--depths", "4", "--positions", "1", "--thoughts", "2", "--steps", "1"]
    assert train(["--base", str(base), "--out", str(folder), *sizes]) == 0
    return folder


def test_the_interval_is_wilsons() -> None:
    assert wilson(50, 100) == (0.4038, 0.5962)  # the textbook's example
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


def test_it_counts_what_decoding_one_by_one_answers(thinker: Path) -> None:
    loaded = checkpoint.load(thinker)
    report = evaluate(loaded, [0, 3], n=12, seed=5, families=("sums",), thought_temperature=0.0)
    drawn = list(itertools.islice(problems("held_out", ("sums",), 5), 12))
    assert all(is_held_out(problem) for problem in drawn)
    decoder = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 1, 256, 3))
    for depth in (0, 3):
        right = 0
        for problem in drawn:
            params = SamplingParams(max_tokens=3, temperature=0, thought_depth=depth, thought_temperature=0)
            text = generate(decoder, [loaded.tokens.encode(write_prompt(problem))], params)[0].text
            right += FAMILIES["sums"].verify(problem, text) and "---" not in text
        assert report["families"]["sums"]["accuracy"][str(depth)] == right / 12
    assert evaluate(loaded, [0, 3], 12, 5, ("sums",), 0.0) == report


def test_the_command_prints_the_documented_json(thinker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main([str(thinker), "--depths", "0,2", "--n", "6", "--seed", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["families"]) == set(FAMILIES)
    for cells in report["families"].values():
        assert cells["n"] == 6
        assert set(cells["accuracy"]) == {"0", "2"}
    assert module.main([str(thinker), "--depths", "0", "--n", "6"]) == 0
    assert "95 % interval over 6 held-out problems a family" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["/none"], "/none: no such checkpoint folder"),
        (["--n", "0"], "--n is 0; it must be 1 or more"),
        (["--families", "chess"], "--families is chess; it must be among dial, swaps, sums"),
    ],
)
def test_bad_arguments_are_one_line(argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(argv) == 2
    assert capsys.readouterr().err == f"quietserve evaluate: {reason}\n"


def test_untrained_thoughts_have_all_the_weight(base: Path) -> None:
    loaded = study._untrained(base, 4)
    hidden = loaded.model.start_embedding.expand(3, -1)
    mixed, weight = loaded.model.mix(hidden, 2 * hidden)
    assert weight.tolist() == [1.0, 1.0, 1.0]
    assert (mixed == 2 * hidden).all()


@pytest.mark.skipif(not DEFAULT.exists(), reason="no bundled checkpoint")
def test_the_bundled_checkpoint_thinks() -> None:
    """More right answers at depth 12 than at depth 0; 60 problems a family, the table in the README has 2000."""
    loaded = checkpoint.load(DEFAULT)
    report = evaluate(loaded, [0, 12], n=60, seed=77)
    for cells in report["families"].values():
        assert cells["accuracy"]["12"] > cells["accuracy"]["0"] + 0.15
    assert report["mean"]["12"] > 1.6 * report["mean"]["0"]
    assert sum(file.stat().st_size for file in DEFAULT.iterdir()) < 16 * 2**20


@pytest.mark.skipif(not DEFAULT.exists(), reason="no bundled checkpoint")
def test_the_readmes_questions_are_answered_right() -> None:
    """A person's first question is one of these."""
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    dial = re.search(r'"prompt": "(.+?)"', readme)
    swaps = re.search(r'"content": "(.+?)"', readme)
    assert dial is not None
    assert swaps is not None
    loaded = checkpoint.load(DEFAULT)
    prompts = [loaded.tokens.encode(dial[1].replace("\\n", "\n"))]
    prompts.append(loaded.tokens.render([{"role": "user", "content": swaps[1]}]))
    decoder = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 2, 128, 12))
    params = SamplingParams(max_tokens=8, temperature=0, thought_depth=12, thought_temperature=0)
    assert [answer.text.strip() for answer in generate(decoder, prompts, params)] == ["0", "Ben"]
