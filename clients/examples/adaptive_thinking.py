"""Think only where the model is unsure: the same answer for fewer hidden tokens."""

from ..client import Client

PROBLEM = """\
Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?
Answer:"""


def main() -> None:
    """Print the answer and its cost in both modes; the threshold is in nats of the next token's entropy."""
    with Client() as client:
        for params in ({"thought_mode": "fixed"}, {"thought_mode": "adaptive", "thought_threshold": 0.3}):
            reply = client.complete(PROBLEM, temperature=0, thought_depth=12, **params)
            print(f"{params['thought_mode']}: answer{reply.text}, {reply.usage.reasoning_tokens} hidden tokens")


if __name__ == "__main__":
    main()
