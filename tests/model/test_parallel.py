"""A model whose layers are split between two processes is the model that one process has: the same tokens, whatever is asked."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from outcomes import outcome
from transformers import GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

import tiny
from quietserve.model import checkpoint
from quietserve.model.checkpoint import CheckpointError, load
from quietserve.model.config import QuietConfig
from quietserve.model.parallel import Processes
from quietserve.model.shards import loading_options, settle

pytestmark = pytest.mark.processes

VOWELS = QuietConfig(thought_stop_tokens=tuple("aeiou"))
WIDE = {"vocab_size": 515, "hidden_size": 256, "intermediate_size": 601}  # of odd sizes, and large enough to be packed
MODELS: dict[str, tuple[dict[str, Any], bool]] = {  # and whether it is sped up
    "thinks": ({"quiet": VOWELS}, True),
    "wide": ({"base": tiny.config(Qwen3Config, **WIDE, head_dim=16), "quiet": None}, True),
    "tied": ({"base": tiny.config(Qwen2Config, tie_word_embeddings=True), "quiet": None}, True),
    "plain": ({"base": tiny.config(MistralConfig), "quiet": None}, False),
    "biased": ({"base": tiny.config(attention_bias=True, mlp_bias=True), "quiet": None}, False),
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder, jobs = tmp_path_factory.mktemp("models"), []
    for name, (settings, lean) in MODELS.items():
        model = tiny.quiet_model(**settings)
        for parameter in model.parameters():  # so that they fit float16, which a CPU multiplies sooner
            parameter.copy_(parameter.bfloat16())
        checkpoint.save(model, tiny.tokenizer(), folder / name)
        jobs.append({"folder": str(folder / name), "lean": lean, "besides": {}})
    loaded = load(jobs[0]["folder"])
    jobs[0]["besides"] = {
        "ranker": str(tiny.save_ranker(folder / "ranker", loaded)),
        "probe": str(tiny.save_probe(folder / "probe", loaded)),
    }
    return jobs


@pytest.fixture(scope="module")
def said(jobs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """What the first of two processes said, and how the other one ended."""
    first, second = pair(Path(__file__).with_name("two_parts.py"), json.dumps(jobs))
    assert first.returncode == 0, first.stderr[-4000:]
    return json.loads(first.stdout), second


def pair(script: Path, *arguments: str) -> list["subprocess.CompletedProcess[str]"]:
    """Two processes that meet on the loopback, as `torchrun` would start them, without anybody to end one for the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in "01":
        meeting = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **meeting}
        command = [sys.executable, "-W", "error", str(script), *arguments]
        started.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    try:
        said = [process.communicate(timeout=250) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *told)
        for process, told in zip(started, said, strict=True)
    ]


@pytest.mark.parametrize("number", range(len(MODELS)), ids=list(MODELS))
def test_two_processes_decide_what_one_does(said: Any, jobs: list[dict[str, Any]], number: int) -> None:
    loaded, job, two = load(jobs[number]["folder"]), jobs[number], said[0][number]
    if job["lean"]:
        loaded.model.speed_up()
    one = json.loads(json.dumps(outcome(loaded, **job["besides"])))
    assert two["exact"] == one["exact"]
    assert two["numbers"] == pytest.approx(one["numbers"], abs=1e-3)
    assert two["reused"] > 0, "something was copied from slot to slot"
    assert two["bytes"] < loaded.model.num_bytes
    assert bool(two["packed"]) == (number == list(MODELS).index("wide"))


def test_who_is_idle_is_not_taken_for_gone(said: Any) -> None:
    """Nobody may be silent for as long, and yet the next forward is done."""
    assert said[0][-1]["alive"] > 0


def test_a_process_that_is_gone_ends_the_others(said: Any) -> None:
    said_by_first, second = said
    assert len(said_by_first[-1]["said"]) == 3, "whatever is tried then is refused"
    assert set(said_by_first[-1]["said"]) == {said_by_first[-1]["said"][0]}
    assert said_by_first[-1]["said"][0].startswith("the processes are together no longer: ")
    assert second.returncode == 3
    assert second.stderr.strip() == "process 1 of 2 can follow no longer: no room for nothing"


@pytest.mark.parametrize(
    ("config", "num_parts", "message"),
    [
        (tiny.config(), 3, "its 4 heads and 2 key-value heads cannot be divided among 3 processes; there may be 1, 2"),
        (LlamaConfig(num_attention_heads=32, num_key_value_heads=8), 16, "among 16 processes; there may be 1, 2, 4, 8"),
        (tiny.config(num_attention_heads=8, num_key_value_heads=None), 3, "8 heads and 8 key-value heads"),
        (GPT2Config(), 2, "transformers has no plan to split 'gpt2' models among processes"),
    ],
)
def test_a_model_that_cannot_be_split(config: PreTrainedConfig, num_parts: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        loading_options(config, num_parts)


def test_the_folder_is_named(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "three")
    with pytest.raises(CheckpointError, match=r"three: its 4 heads and 2 key-value heads"):
        load(folder, num_parts=3)


def test_rounded_layers_are_not_split(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny.save(tmp_path / "rounded")
    config = json.loads((folder / "config.json").read_text())
    rounded = config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (folder / "config.json").write_text(json.dumps(rounded))
    with pytest.raises(CheckpointError, match="its layers are bitsandbytes', and cannot be split among 2 processes"):
        load(folder, num_parts=2)


@pytest.mark.parametrize("name", ["model.layers.*.mlp.down_proj", "model.layers.*.input_layernorm"])
def test_a_plan_that_we_do_not_compute(name: str) -> None:
    """A norm cannot be split by rows, nor anything in ways that are not known."""
    lm = tiny.quiet_model().backbone.lm
    lm.tp_plan = {name: "packed_rowwise" if "down" in name else "rowwise"}
    with pytest.raises(ValueError, match=r"its plan splits 'model.layers.0.*' by '.*rowwise'; only linear layers"):
        settle(lm)


def test_whoever_is_alone_stays_whole() -> None:
    assert loading_options(GPT2Config(), 1) == {}
    alone = Processes.from_environment({"WORLD_SIZE": "1", "RANK": "0"})
    assert (alone.rank, alone.size, alone.join("cpu:0"), alone.failure) == (0, 1, "cpu:0", None)
    alone.leave()


def test_each_process_has_a_device_of_its_own() -> None:
    second = Processes.from_environment({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"})
    assert (second.rank, second.size) == (1, 2)
    with pytest.raises(ValueError, match=r"'meta': 2 processes have a device each here; it must be '"):
        second.join("meta")
