"""Runs lm-eval's `local-completions` over our tasks, as often as it is told to, in one process: its imports take longest.

Arguments: a folder of tasks, and JSON: by name, what each run gives to `simple_evaluate`. Prints JSON: each run's scores.
"""

import json
import sys

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager


def main(folder: str, runs: str) -> None:
    tasks = TaskManager(include_path=folder, include_defaults=False)  # lm-eval's own thousands take seconds to list
    scores = {}
    for name, asked in json.loads(runs).items():
        report = simple_evaluate("local-completions", task_manager=tasks, bootstrap_iters=0, **asked)
        scores[name] = {
            task: {metric.partition(",")[0]: value for metric, value in told.items() if not isinstance(value, str)}
            for task, told in report["results"].items()
        }
    print(json.dumps(scores))


main(*sys.argv[1:])
