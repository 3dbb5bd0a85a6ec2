import importlib.util
import json
from itertools import product

import pytest

from quietserve.model import drawing
from quietserve.model.bench import __main__ as bench
from quietserve.model.bench import measure, plot
from quietserve.model.bench.systems import PLAIN, THINKING

GRID = [
    "--shapes",
    "tiny",
    "--batches",
    "1",
    "2",
    "--prompts",
    "8",
    "--depths",
    "0",
    "2",
    "--tokens",
    "3",
    "--rounds",
    "2",
]
BUNDLED = ["--shapes", "--model", "bundled", "--batches", "1", "--tokens", "3", "--rounds", "1"]
OURS = ["--systems", "recompute", "sequential", "pipeline", "plain", "transformers"]
ROW = {
    "system": str,
    "shape": str,
    "dtype": str,
    "batch": int,
    "prompt": int,
    "depth": int,
    "tokens_per_s": float,
    "tokens_per_cpu_s": float,
    "ttft_s": float,
    "inter_token_s": float,
    "tokens": float,
    "rounds": int,
    "extrapolated": bool,
    "spread": dict,
}


def test_a_run_gives_rows_and_ratios_of_every_cell(capsys):
    assert bench.main([*GRID, *OURS, "--rounds", "1", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["machine"].keys() == {
        "cores",
        "threads",
        "device",
        "cpu",
        "python",
        "torch",
        "transformers",
        "xllamacpp",
    }
    wanted = {(s, b, d) for b, d in product((1, 2), (0, 2)) for s in (THINKING if d else PLAIN[:2])}
    assert {(row["system"], row["batch"], row["depth"]) for row in report["rows"]} == wanted
    for row in report["rows"]:
        assert {key: type(row[key]) for key in ROW} == ROW
        assert row["tokens_per_s"] > 0
    thinking = {"pipeline/sequential", "pipeline/recompute", "pipeline/plain"}
    assert {row["ratio"] for row in report["ratios"]} == {*thinking, "plain/transformers"}
    assert all(row["same_tokens"] == 1 for row in report["ratios"] if row["same_tokens"] is not None)
    assert "| ratio" in err  # the tables make way for the JSON


def test_the_tables_go_to_standard_output(capsys):
    assert bench.main([*GRID, "--batches", "1", "--depths", "0", "--systems", "plain", "transformers"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| shape")
    assert "plain/transformers" in out


def test_a_repeated_run_measures_only_what_is_not_finished(tmp_path, monkeypatch, capsys):
    counted = []
    monkeypatch.setattr(bench, "measure", lambda *args: counted.append(args) or measure.measure(*args))
    file = tmp_path / "cells.jsonl"
    command = [*GRID, "--systems", "plain", "--depths", "0", "--rounds", "1", "--out", str(file), "--json", "-"]
    assert bench.main([*command, "--batches", "1"]) == 0
    assert len(counted) == 1
    with file.open("a") as opened:
        opened.write('{"key": {"shape"')  # killed here
    assert bench.main([*command, "--batches", "1", "2"]) == 0
    assert len(counted) == 2
    capsys.readouterr()
    assert bench.main([*command, "--batches", "1", "2"]) == 0
    assert len(counted) == 2
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert bench.main([*command, "--batches", "1", "2", "--tokens", "4"]) == 0
    assert len(counted) == 4


def test_the_bundled_checkpoint_keeps_its_own_weight(capsys):
    small = [*BUNDLED, "--prompts", "8", "--depths", "2"]
    assert bench.main([*small, "--systems", "pipeline", "sequential", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["same_tokens"] for row in report["ratios"]] == [1]


def test_cells_that_do_not_fit_are_named_and_left_out(capsys):
    small = [*BUNDLED, "--prompts", "100000", "--depths", "0"]
    assert bench.main(small) == 0
    assert "positions" in capsys.readouterr().err


def test_a_system_that_breaks_is_named_and_the_rest_goes_on(monkeypatch, capsys):
    def broken(setup):
        raise RuntimeError("out of luck")

    monkeypatch.setitem(bench.SYSTEMS, "transformers", broken)
    assert bench.main([*GRID, "--systems", "plain", "transformers", "--depths", "0", "--json", "-"]) == 1
    out, err = capsys.readouterr()
    assert {row["system"] for row in json.loads(out)["rows"]} == {"plain"}
    assert json.loads(out)["skipped"] == {"transformers": "failed: RuntimeError: out of luck"}
    assert "transformers failed: RuntimeError: out of luck" in err


def test_a_system_too_slow_for_two_tokens_is_measured_once_and_marked(capsys):
    small = [*GRID, "--batches", "1", "--depths", "2", "--systems", "recompute", "pipeline"]
    assert bench.main([*small, "--max-seconds", "1e-9"]) == 0
    out = capsys.readouterr().out
    assert "~" in out
    assert "too slow for two tokens" in out


@pytest.mark.parametrize("missing", ["xllamacpp", "gguf"])
def test_llama_cpp_is_left_out_where_it_is_not_installed(missing, monkeypatch, capsys):
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else known(name, *more)
    )
    arguments = [*GRID, "--batches", "1", "--depths", "0", "--systems", "plain", "llama.cpp"]
    assert bench.main(arguments) == 0
    assert f"{missing}" in capsys.readouterr().err


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    shared = {"shape": "tiny", "tokens_per_s": 9.0, "spread": {"tokens_per_s": [8.0, 11.0]}}
    places = product(plot.STYLES, (0, 8, 16), (1, 8), (64, 256))
    rows = [{"system": s, "depth": d, "batch": b, "prompt": p, **shared} for s, d, b, p in places]
    plot.plot(rows, tmp_path / "speed.png")
    plot.plot(rows[:1], tmp_path / "least.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_plot_is_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawing, "available", lambda: False)
    arguments = [*GRID, "--batches", "1", "--depths", "0", "--systems", "plain"]
    assert bench.main([*arguments, "--plot", str(tmp_path / "speed.png")]) == 0
    assert "--plot needs matplotlib" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shapes", "7T"], "invalid choice: '7T'"),
        (["--systems", "vllm"], "invalid choice: 'vllm'"),
        (["--shapes"], "nothing to measure"),
        (["--batches", "0"], "--batches is 0; it must be 1 or more"),
        (["--depths", "8", "-1"], "--depths is 8 -1; it must be 0 or more"),
        (["--prompts", "many"], "invalid int value: 'many'"),
        (["--tokens", "1"], "--tokens is 1; it must be 2 or more"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--num-threads", "0"], "--num-threads is 0"),
        (["--acceptance", "1"], "--acceptance is 1.0; it must be between 0 and 1"),
        (["--max-seconds", "0"], "--max-seconds is 0.0; it must be above 0"),
        (["--dtype", "int3"], "invalid choice: 'int3'"),
        (["--model", "/nowhere"], "/nowhere: no such checkpoint folder"),
        (["--json", "/nowhere/x.json"], "--json /nowhere/x.json: there is no such folder"),
        (["--out", "/nowhere/x.jsonl"], "--out /nowhere/x.jsonl: No such file or directory"),
        (["--device", "abacus"], "--device abacus: "),
        (["--speed"], "unrecognized arguments: --speed"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(arguments, complaint, capsys):
    assert bench.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("quietserve bench: ")
    assert complaint in err
