"""`quietserve train`: the methods that make checkpoints."""

import sys
from importlib import import_module

METHODS = {
    "pretrain": ".pretrain",
    "quiet-star": ".quiet_star",
    "study": ".study",
    "cost": ".cost",
    "attempts": ".attempts",
    "score": ".score",
    "score-study": ".score_study",
    "karel": ".karel",
    "karel-traces": ".karel_traces",
    "karel-study": ".karel_study",
    "probes": ".probes",
    "sample": ".sample",
    "negative": ".negative",
    "negative-study": ".negative_study",
    "ranker": ".rank",
    "ranker-study": ".rank_study",
}
USAGE = f"usage: quietserve train {{{','.join(METHODS)}}} [arguments]; --help after a method lists its own"


def main(argv: list[str] | None = None) -> int:
    """Hand over to the method named first; only that one's module is imported."""
    method, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if method in ("-h", "--help"):
        print(USAGE)
        return 0
    if method not in METHODS:
        print(f"quietserve train: {f'no method {method!r}; ' if method else ''}{USAGE}", file=sys.stderr)
        return 2
    return import_module(METHODS[method], __package__).main(rest)


if __name__ == "__main__":
    sys.exit(main())
