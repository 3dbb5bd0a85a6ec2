"""Probes: labels in files, states of the right tokens, fits that find what is there and nothing else, whole commands."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model.checkpoint import Loaded, load
from quietserve.model.probe import layer_states, load_probe, probe_config, read_text
from quietserve.model.training import probes
from quietserve.model.training.probing import WINDOW, Examples, Fit, States, fit, measure, split
from quietserve.model.training.traces import Trace, properties, read_traces, write_traces


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save(folder)
    return load(folder)


def test_files_come_back(tmp_path: Path, loaded: Loaded) -> None:
    texts = [loaded.tokens.encode(text) for text in ("a first text", "and another one")]
    traces = [Trace(tuple(ids), {"kind": ((1, "x"), (len(ids) - 1, "y")), "other": ()}) for ids in texts]
    write_traces(tmp_path / "traces.jsonl", traces, loaded.tokens)
    again = read_traces(tmp_path / "traces.jsonl", loaded.tokens)
    assert [one.ids for one in again] == [one.ids for one in traces]
    assert [one.labels["kind"] for one in again] == [one.labels["kind"] for one in traces]
    assert properties(again) == ["kind"]
