"""Checkpoints: what is saved loads, the public layout loads as it is, and everything broken is named."""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Lfm2Config, MistralConfig

import tiny
from quietserve.model import checkpoint
from quietserve.model.bundled import DEFAULT
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import CheckpointError
from quietserve.model.checkpoint_folder import find
from quietserve.model.config import QuietConfig, SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.quiet_model import QuietModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("own") / "tiny-quiet")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny-quiet"))


def test_what_is_saved_is_what_loads(saved: Path) -> None:
    model, loaded = tiny.quiet_model(), checkpoint.load(saved)
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert loaded.model.quiet == model.quiet
    assert loaded.name == "tiny-quiet"
    assert not [file for file in saved.parent.iterdir() if file != saved], "nothing is left aside"


def test_transformers_loads_our_layout_as_the_plain_base(saved: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(saved)
    ids = torch.tensor([[5, 6, 7, 8]])
    ours = checkpoint.load(saved)
    engine = Decoder(ours.model, ours.tokens, Cache(ours.model.backbone, 1, 16, 2))
    scored = generate(engine, [ids[0].tolist()], SamplingParams(max_tokens=0, prompt_logprobs=0))[0].prompt
    logits = plain(ids).logits[0].detach()
    logits[:, [1, 2]] = float("-inf")
    for i, token in enumerate(scored[1:]):
        assert token.logprob == pytest.approx(float(logits[i].log_softmax(-1)[token.id]), abs=1e-4)


def test_a_plain_model_loads_and_cannot_think(tmp_path: Path) -> None:
    loaded = checkpoint.load(tiny.save(tmp_path / "plain", quiet=None))
    assert not loaded.model.can_think


def test_thought_stop_tokens_become_ids(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "stops", quiet=QuietConfig(thought_stop_tokens=("<|endoftext|>", "a")))
    assert checkpoint.load(folder).model.stop_ids == {0, tiny.tokenizer().get_vocab()["a"]}
    (folder / "quiet_config.json").write_text(json.dumps({"thought_stop_tokens": ["nowhere"]}))
    with pytest.raises(
        CheckpointError, match=r"quiet_config.json: thought_stop_tokens: the tokenizer has no 'nowhere'"
    ):
        checkpoint.load(folder)


# The public layout: the seven tensors of METHODS among the model's own, their names and shapes written out here.


def public(folder: Path, head: str = "mlp", **flags: object) -> dict[str, torch.Tensor]:
    """Write a tiny checkpoint of the public layout; returns its seven (or fewer) tensors."""
    torch.manual_seed(1)
    lm = AutoModelForCausalLM.from_config(tiny.config(MistralConfig, sliding_window=None))
    lm.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    size = 32
    width = size if head == "thought" else 2 * size
    extra = {"start_embedding": torch.randn(2, size) / 100, "end_embedding": torch.randn(2, size) / 100}
    if head == "linear":
        extra |= {"talk_head.0.0.weight": torch.randn(1, width)}
    else:
        extra |= {"talk_head.0.0.weight": torch.randn(size, width) / 8, "talk_head.0.0.bias": torch.randn(size)}
        extra |= {"talk_head.0.2.weight": torch.randn(size, size) / 8, "talk_head.0.2.bias": torch.randn(size)}
        extra |= {"talk_head.0.4.weight": torch.randn(1, size) / 8}
    save_file(load_file(folder / "model.safetensors") | extra, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_thoughts": 10, "use_concat_talk_head": head != "thought", "use_complex_talk_head": head != "linear"}
    config |= {"use_weighted_talk_head": True, "use_shallow_talk": False, "merged_lm_and_talk_heads": False}
    (folder / "config.json").write_text(json.dumps(config | flags))
    return extra


def by_hand(
    folder: Path, extra: dict[str, torch.Tensor], text: list[int], depth: int
) -> tuple[torch.Tensor, list[int]]:
    """Mixed logits after `text` with a greedy thought, a step at a time, from the tensors as they lie in the file."""
    names = load_file(folder / "model.safetensors").keys()
    assert set(extra) <= set(names)
    state = {k: v for k, v in load_file(folder / "model.safetensors").items() if k not in extra}
    lm = AutoModelForCausalLM.from_config(tiny.config(MistralConfig, sliding_window=None))
    lm.load_state_dict(state)
    lm.eval().requires_grad_(False)
    words = lm.get_input_embeddings()
    read = words(torch.tensor(text))

    def last() -> torch.Tensor:
        return lm.model(inputs_embeds=read[None], use_cache=False).last_hidden_state[0, -1]

    h_base = last()
    read = torch.cat([read, extra["start_embedding"][:1] * 100])
    thought = []
    for _ in range(depth):
        logits = lm.lm_head(last())
        logits[[1, 2]] = float("-inf")
        thought.append(int(logits.argmax()))
        read = torch.cat([read, words(torch.tensor(thought[-1:]))])
    read = torch.cat([read, extra["end_embedding"][:1] * 100])
    h_thought = last()
    pair = torch.cat([h_base, h_thought])
    if "talk_head.0.4.weight" in extra:
        first = extra["talk_head.0.0.weight"]
        x = (first @ (pair if first.shape[1] == 64 else h_thought) + extra["talk_head.0.0.bias"]).relu()
        x = (extra["talk_head.0.2.weight"] @ x + extra["talk_head.0.2.bias"]).relu()
        weight = extra["talk_head.0.4.weight"] @ x
    else:
        weight = extra["talk_head.0.0.weight"] @ pair
    mixed = (1 - weight) * lm.lm_head(h_base) + weight * lm.lm_head(h_thought)
    mixed[[1, 2]] = float("-inf")
    return mixed, thought


@pytest.mark.parametrize("head", ["mlp", "linear", "thought"])
def test_the_public_layout_loads_as_it_is(head: str, tmp_path: Path) -> None:
    extra = public(tmp_path, head)
    loaded = checkpoint.load(tmp_path)
    assert loaded.model.quiet is not None
    assert loaded.model.quiet.thought_depth == 5  # n_ahead 8: START, five tokens, END and one foretold
    assert not loaded.model.stop_ids
    engine = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 1, 32, 5))
    text = [40, 50, 60, 70]
    params = SamplingParams(max_tokens=1, temperature=0, thought_temperature=0, thought_depth=5, logprobs=20)
    token = generate(engine, [text], params)[0].tokens[0]
    mixed, thought = by_hand(tmp_path, extra, text, 5)
    assert len(token.thoughts) == 1
    assert list(token.thoughts[0].token_ids) == thought
    expected = mixed.log_softmax(-1)
    for number, value in token.top_logprobs:
        assert value == pytest.approx(float(expected[number]), abs=2e-3)


def test_the_public_layout_under_its_own_model_type(tmp_path: Path) -> None:
    public(tmp_path, model_type="quiet")
    assert checkpoint.load(tmp_path).model.can_think


def test_markers_among_the_vocabulary_are_found_by_name(tmp_path: Path) -> None:
    public(tmp_path)
    assert checkpoint.load(tmp_path).model.hidden_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("use_shallow_talk", True), ("merged_lm_and_talk_heads", True), ("use_weighted_talk_head", False)],
)
def test_a_head_we_do_not_know_is_named(flag: str, value: bool, tmp_path: Path) -> None:
    public(tmp_path, **{flag: value})
    with pytest.raises(CheckpointError, match=f"config.json: {flag} is {value}"):
        checkpoint.load(tmp_path)


# Everything that can be wrong with a folder: one line that names the file or the tensor.


def rewrite(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return apply


def truncate(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return apply


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), r"config.json: missing"),
    ("config not JSON", write("config.json", "{"), r"config.json: not readable as JSON"),
    ("config a list", write("config.json", "[]"), r"config.json: holds list, not an object"),
    ("unknown model type", write("config.json", '{"model_type": "spaceship"}'), r"not a causal language model"),
    ("no model type", write("config.json", "{}"), r"config.json: has no 'model_type'"),
    ("no tensors", lambda f: (f / "model.safetensors").unlink(), r"model.safetensors: missing"),
    ("truncated tensors", truncate("model.safetensors"), r"model.safetensors: damaged or truncated"),
    ("truncated head", truncate("quiet.safetensors"), r"quiet.safetensors: damaged or truncated"),
    ("no head", lambda f: (f / "quiet.safetensors").unlink(), r"quiet.safetensors: missing"),
    ("no thinking config", lambda f: (f / "quiet_config.json").unlink(), r"quiet_config.json: missing beside quiet"),
    ("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), r"no readable tokenizer"),
    (
        "a tensor missing",
        rewrite("model.safetensors", lambda t: t.pop("model.norm.weight")),
        r"'model.norm.weight' is missing",
    ),
    (
        "a tensor too many",
        rewrite("model.safetensors", lambda t: t.update({"stray": torch.ones(1)})),
        r"'stray' is not expected",
    ),
    (
        "a tensor of another shape",
        rewrite("model.safetensors", lambda t: t.update({"model.norm.weight": torch.ones(5)})),
        r"'model.norm.weight' is of another shape",
    ),
    (
        "a marker missing",
        rewrite("quiet.safetensors", lambda t: t.pop("end_embedding")),
        r"'end_embedding' is missing",
    ),
    (
        "a head too many",
        rewrite("quiet.safetensors", lambda t: t.update({"mixing_head.layers.9.weight": torch.ones(1)})),
        r"'mixing_head.layers.9.weight' is not expected",
    ),
    (
        "a marker of another size",
        rewrite("quiet.safetensors", lambda t: t.update({"start_embedding": torch.ones(7)})),
        r"'start_embedding' has shape \[7\], not \[32\]",
    ),
    ("unknown quiet key", write("quiet_config.json", '{"depth": 3}'), r"quiet_config.json: unknown key 'depth'"),
    (
        "quiet value of another type",
        write("quiet_config.json", '{"thought_stop_tokens": "ab"}'),
        r"quiet_config.json: thought_stop_tokens is 'ab'; it must be a list of strings",
    ),
    (
        "a marker the tokenizer lacks",
        write("quiet_config.json", '{"start_token": "<begin>"}'),
        r"the tokenizer lacks '<begin>' or '<\|endthought\|>'",
    ),
    (
        "quiet value out of range",
        write("quiet_config.json", '{"thought_depth": -3}'),
        r"quiet_config.json: thought_depth is -3; it must be a whole number, 0 or more",
    ),
]


@pytest.mark.parametrize(("harm", "reason"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_checkpoint_is_named_in_one_line(harm: Callable[[Path], object], reason: str, folder: Path) -> None:
    harm(folder)
    with pytest.raises(CheckpointError, match=reason) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


def test_a_shard_that_the_index_names_must_be_there(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: missing"):
        checkpoint.load(folder)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "nowhere"])
def test_a_folder_that_is_not_there(path: str) -> None:
    with pytest.raises(CheckpointError, match=f"{path}: no such checkpoint folder"):
        checkpoint.load(path)


def test_a_bundled_checkpoint_is_found_by_its_name_unless_a_folder_has_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("quiet-small") == DEFAULT
    assert checkpoint.load("quiet-small").name == "quiet-small"
    shutil.copytree(saved, "quiet-small")
    assert find("quiet-small") == Path("quiet-small")


def test_what_we_do_not_compute_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "capped")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0}))
    with pytest.raises(CheckpointError, match=r"'final_logit_softcapping' is 30\.0; only None is supported"):
        checkpoint.load(folder)


def test_public_tensors_are_known_by_their_names_alone(tmp_path: Path) -> None:
    public(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["max_thoughts"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint.load(tmp_path).model.can_think
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_thoughts": "ten"}))
    with pytest.raises(CheckpointError, match="max_thoughts is 'ten'; it must be a whole number"):
        checkpoint.load(tmp_path)


def test_a_model_that_keeps_more_than_keys_and_values_is_refused(tmp_path: Path) -> None:
    """LFM2's convolutions remember the last tokens: read through our cache, row by row, it would answer otherwise."""
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["full_attention", "conv"]}
    lm = AutoModelForCausalLM.from_config(Lfm2Config(**sizes, **heads, initializer_range=0.25, eos_token_id=0))
    lm.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="Lfm2ForCausalLM is not supported: its hidden states through a cache"):
        checkpoint.load(tmp_path)


# --- saving ----------------------------------------------------------------------------------------------------------

OLD = {"quiet": QuietConfig(thought_depth=3), "seed": 1}
NEW = {"quiet": QuietConfig(mixing_layers=1, mixing_input="thought"), "seed": 2}


def old_checkpoint(folder: Path) -> None:
    """Several files of tensors and a chat template: the new one has neither, and a mixture would not be hard to make."""
    checkpoint.save(tiny.quiet_model(**OLD), tiny.tokenizer(), folder, max_shard_size="20KB")
    (folder / "log.jsonl").write_text("{}\n")


@cache
def new_model() -> QuietModel:
    return tiny.quiet_model(**NEW)


def save_new(folder: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    checkpoint.save(new_model(), tokenizer, folder)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "checkpoint"
    old_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "checkpoint"
    save_new(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def which(folder: Path, old: Path, new: Path) -> str:
    """Which of the two `load` would read in the folder, down to the last byte; fails for anything between."""
    rest = ("log.jsonl", ".partial/", ".saved/")
    found = {name: data for name, data in content(find(folder)).items() if not name.startswith(rest)}
    if found == content(new):
        return "new"
    assert found == {name: data for name, data in content(old).items() if name != "log.jsonl"}
    return "old"


def in_child(work: Callable[[], object], patience: float | None = None) -> int:
    """Do it in a copy of this process, killed after so many seconds; its exit code, or minus the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # this process may have threads, of which the copy needs none
        child = os.fork()
    if not child:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def keep_every_state(folder: Path, states: Path) -> None:
    """Copy the folder, from now on, before each name that is made, changed or removed: what `kill -9` would leave there."""
    numbers, busy = itertools.count(), False

    def look(event: str, _: object) -> None:
        nonlocal busy
        if not busy and event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"):
            busy = True
            shutil.copytree(folder, states / f"{next(numbers):03}")
            busy = False

    sys.addaudithook(look)  # for as long as this process lives


def test_killed_between_any_two_steps_it_leaves_the_old_or_the_new(old: Path, new: Path, tmp_path: Path) -> None:
    folder, states = Path(shutil.copytree(old, tmp_path / "checkpoint")), tmp_path / "states"
    states.mkdir()
    assert in_child(lambda: (keep_every_state(folder, states), save_new(folder))) == 0
    found = [which(state, old, new) for state in sorted(states.iterdir())]
    change = found.index("new")
    assert change > 1
    assert len(found) > change + 20
    assert found == ["old"] * change + ["new"] * (len(found) - change)
    for state in states.iterdir():
        assert (state / "log.jsonl").exists()
        shutil.rmtree(
            state / ".saved", ignore_errors=True
        )  # for those who do not know of it, nothing passes for whole either
        assert not (state / "config.json").exists() or which(state, old, new)


def test_a_checkpoint_not_yet_in_place_loads(old: Path, tmp_path: Path) -> None:
    """Killed before the last of its files has been moved."""
    folder = Path(shutil.copytree(old, tmp_path / "checkpoint"))

    def die(source: Path, target: Path, replace: Callable[[Path, Path], None] = os.replace) -> None:
        if target == folder / "config.json":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def save() -> None:
        os.replace = die
        save_new(folder)

    assert in_child(save) == -signal.SIGKILL
    assert not (folder / "config.json").exists()
    loaded = checkpoint.load(folder)
    assert loaded.name == "checkpoint"
    assert loaded.model.quiet == NEW["quiet"]
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in new_model().state_dict().items())
    old_checkpoint(folder)
    assert content(folder) == content(old)


def test_killed_at_any_moment_it_leaves_the_old_or_the_new(old: Path, new: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(old, tmp_path / "checkpoint"))
    begin = time.monotonic()
    save_new(folder)
    duration = time.monotonic() - begin
    moments = random.Random(0)
    for _ in range(15):
        # Over what a killed one left, too; two in a row of the same show nothing.
        save = old_checkpoint if which(folder, old, new) == "new" else save_new
        in_child(lambda save=save: save(folder), moments.uniform(0, 1.2 * duration))
        which(folder, old, new)
    save_new(folder)
    assert content(folder).keys() == {*content(new), "log.jsonl"}


@pytest.mark.parametrize("room", [0, 200, 6_000, 60_000])
def test_a_full_disk_leaves_what_was_there(room: int, old: Path, tmp_path: Path) -> None:
    """No file may grow beyond the room: EFBIG where a full disk gives ENOSPC, from the same calls."""
    folder = Path(shutil.copytree(old, tmp_path / "checkpoint"))

    def save() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        for place in (folder, tmp_path / "fresh"):
            with pytest.raises(CheckpointError, match=rf"^{place}: not saved: .*File too large[^\n]*$"):
                save_new(place)

    assert in_child(save) == 0
    assert content(folder) == content(old)
    assert not (tmp_path / "fresh").exists()


def test_saving_over_another_checkpoint_removes_that_one_alone(old: Path, new: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(old, tmp_path / "checkpoint"))
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    save_new(folder)
    assert content(folder) == content(new) | {"log.jsonl": b"{}\n"}


def test_without_links_it_copies(old: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    folder = Path(shutil.copytree(old, tmp_path / "checkpoint"))
    save_new(folder)
    assert which(folder, old, new) == "new"


def test_what_cannot_be_put_in_place_is_said_to_be_saved(
    old: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Path(shutil.copytree(old, tmp_path / "checkpoint"))
    with monkeypatch.context() as full:
        full.setattr(os, "link", fail)
        full.setattr(shutil, "copyfile", fail)
        with pytest.raises(CheckpointError, match=r"checkpoint: saved, but left in \.saved: .*No space left"):
            save_new(folder)
    assert which(folder, old, new) == "new"


def test_an_interrupt_leaves_what_was_there(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    folder = Path(shutil.copytree(old, tmp_path / "checkpoint"))
    with pytest.raises(KeyboardInterrupt):
        save_new(folder)
    assert content(folder) == content(old)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file: not saved: .*File exists"):
        save_new(tmp_path / "file")


def test_who_may_read_the_config_may_read_the_tensors(saved: Path) -> None:
    assert len({file.stat().st_mode for file in saved.iterdir()}) == 1


# A state gathered elsewhere: the model itself may hold no numbers at all.


@pytest.mark.parametrize("tied", [False, True])
def test_a_given_state_is_saved_in_place_of_the_models_own(tied: bool, tmp_path: Path) -> None:
    model = tiny.quiet_model(tiny.config(tie_word_embeddings=tied), seed=5)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}  # tied ones as copies
    checkpoint.save(model.to("meta"), tiny.tokenizer(), tmp_path, state=state)
    loaded = checkpoint.load(tmp_path, "stored").model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("start_embedding"), "'start_embedding' is missing"),
        (lambda state: state.pop("backbone.lm.model.norm.weight"), r"'backbone\.lm\.model\.norm\.weight' is missing"),
        (lambda state: state.update(stray=torch.ones(1)), "'stray' is not expected"),
    ],
)
def test_a_given_state_must_be_whole(change: Callable[[Any], object], reason: str, tmp_path: Path) -> None:
    model = tiny.quiet_model()
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=f"not saved: tensor {reason}"):
        checkpoint.save(model, tiny.tokenizer(), tmp_path / "out", state=state)
    assert not (tmp_path / "out").exists()
