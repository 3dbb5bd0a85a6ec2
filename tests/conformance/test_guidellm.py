"""guidellm, a load generator: /health and /v1/models first, then lists as content, `ignore_eos`, and usage in every event."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from environments import made

from questions import MODEL, QUICK
from quietserve.model.bundled import DEFAULT

pytestmark = pytest.mark.own_env

OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def benchmark(folder: Path, backend: str, profile: str) -> list[dict[str, Any]]:
    """What became of eight requests of about 24 tokens that want 8 more."""
    options = {
        "--backend": f"kind=openai_http,{backend}",
        "--profile": profile,
        "--constraint": "kind=max_requests,count=8",
        "--tokenizer": f"kind=huggingface_auto,model={DEFAULT}",
        "--data": "kind=synthetic_text,prompt_tokens=24,output_tokens=8",
        "--output": f"kind=json,path={folder / 'report.json'}",
    }
    command = [made("guidellm") / "guidellm", "run", "--disable-console", *sum(options.items(), ())]
    environment = os.environ | OFFLINE | {"HF_HOME": str(folder / "cache")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    (measured,) = json.loads((folder / "report.json").read_text())["benchmarks"]
    assert measured["metrics"]["request_totals"] == {"successful": 8, "errored": 0, "incomplete": 0, "total": 8}
    return measured["requests"]["successful"]


def test_chats_two_at_a_time(url: str, tmp_path: Path) -> None:
    requests = benchmark(tmp_path, f"target={url},model={QUICK}", "kind=concurrent,streams=2")
    sent = [json.loads(request["request_args"])["body"] for request in requests]
    assert all(body["ignore_eos"] and body["stream_options"]["continuous_usage_stats"] for body in sent)
    assert all(body["messages"][0]["content"][0]["type"] == "text" for body in sent)
    assert [request["output_metrics"]["text_tokens"] for request in requests] == [8] * 8
    assert all(request["output"] for request in requests)
    assert 'handler="/health",method="GET",status="200"' in httpx.get(f"{url}/metrics").text


def test_completions_of_whatever_model_is_there(url: str, tmp_path: Path) -> None:
    requests = benchmark(tmp_path, f"target={url},request_format=/v1/completions", "kind=synchronous")
    assert {json.loads(request["request_args"])["body"]["model"] for request in requests} == {MODEL}
    counted = [request["output_metrics"]["text_tokens"] for request in requests]
    assert all(count > 8 for count in counted), "hidden tokens are decoded ones too"
