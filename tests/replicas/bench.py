"""What replicas add, and what carrying costs: `make bench-ray`. Ratios to one plain server, asked in turn with them."""

import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import ray
from ray import serve

from quietserve.server.replicas import Scale, build

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving import running

FLAGS = "quiet-small --max-num-seqs 16 --log-level warning"
ROUNDS = 5
SHAPES = {1: 12, 16: 32}  # requests of a round, by how many are asked at once
BODY = {"temperature": 0, "max_tokens": 32, "ignore_eos": True, "thought_depth": 4}


def main(out: str) -> None:
    """Measure, and write one JSON file."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ray.init(address="local", num_cpus=8, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    with running(*FLAGS.split()) as plain:
        found = {}
        for count in (1, 2):
            serve.run(build(Scale(flags=FLAGS, min_replicas=count, max_replicas=count)), name="default")
            found[f"{count} replicas"] = compare(plain.url, f"http://127.0.0.1:{port}")
    serve.shutdown()
    report = {
        "command": ["make", "bench-ray"],
        "flags": FLAGS,
        "body": BODY,
        "rounds": ROUNDS,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"ray": ray.__version__, "torch": version("torch"), "python": sys.version.split()[0]},
        "to_the_plain_server": found,
    }
    Path(out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def compare(plain: str, replicas: str) -> dict[str, Any]:
    """By how many are asked at once: requests a second, and the median time of one, as ratios with least and most."""
    found = {}
    for at_once, count in SHAPES.items():
        for url in (plain, replicas):
            measure(url, at_once, at_once)  # warm
        rounds = [[measure(url, at_once, count) for url in (plain, replicas)] for _ in range(ROUNDS)]
        found[f"{at_once} at once"] = {
            "throughput": spread([ours[0] / theirs[0] for theirs, ours in rounds]),
            "latency": spread([ours[1] / theirs[1] for theirs, ours in rounds]),
            "added_ms": spread([1000 * (ours[1] - theirs[1]) for theirs, ours in rounds]),
            "plain_requests_per_second": spread([theirs[0] for theirs, _ in rounds]),
        }
    return found


def measure(url: str, at_once: int, count: int) -> tuple[float, float]:
    """Requests a second, and the median seconds of one."""

    def ask(number: int) -> float:
        begin = time.perf_counter()
        reply = client.post(f"{url}/v1/completions", json=BODY | {"prompt": f"{number}: a dial is at 3."})
        assert reply.status_code == 200, reply.text
        return time.perf_counter() - begin

    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(at_once) as pool:
        begin = time.perf_counter()
        times = list(pool.map(ask, range(count)))
        return count / (time.perf_counter() - begin), median(times)


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [round(value, 3) for value in (median(values), min(values), max(values))]


if __name__ == "__main__":
    main(sys.argv[1])
