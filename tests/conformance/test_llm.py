"""The `llm` command, as one types it: streamed unless told otherwise, and it asks for the usage of every stream."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from questions import ANSWER, DEEP, PROMPT, STORY

pytestmark = pytest.mark.processes

COMMAND = Path(sys.executable).with_name("llm")


@pytest.fixture(scope="module")
def home(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    served = f"  api_base: {url}/v1\n"
    models = (
        f"- model_id: chat\n  model_name: {DEEP}\n{served}- model_id: plain\n  model_name: {DEEP}\n  completion: true\n"
    )
    (folder / "extra-openai-models.yaml").write_text(models + served)
    return folder


def llm(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"LLM_USER_PATH": str(home)}
    command = [COMMAND, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_chat_streamed(home: Path) -> None:
    told = llm(home, STORY, "-m", "chat", "-o", "temperature", "0", "--usage")
    assert (told.returncode, told.stdout.rstrip("\n")) == (0, ANSWER), told.stderr
    assert "reasoning_tokens" in told.stderr


def test_a_completion_whole(home: Path) -> None:
    told = llm(home, PROMPT, "-m", "plain", "-o", "temperature", "0", "-o", "logprobs", "2", "--no-stream")
    assert (told.returncode, told.stdout.rstrip("\n")) == (0, ANSWER), told.stderr


def test_a_refusal(home: Path) -> None:
    told = llm(home, STORY, "-m", "chat", "-o", "json_object", "1")
    assert told.returncode == 1
    assert "response_format" in told.stderr
