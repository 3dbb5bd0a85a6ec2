"""Think several thoughts side by side before each token; what they suggest is averaged, so that a stray one harms less."""

from ..client import Client

PROBLEM = """\
Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?
Answer:"""


def main() -> None:
    """Print the thoughts behind the first token of the answer."""
    with Client() as client:
        reply = client.complete(
            PROBLEM,
            temperature=0,
            thought_depth=12,
            num_thoughts=4,
            thought_temperature=2,  # the wildest; at 0 all thoughts would be the same
            seed=8,
            return_thoughts=True,
        )
    for thought in reply.thoughts:
        if thought.position == 0:
            print(f"thought {thought.thought_index}, with weight {thought.mixing_weight:.2f}: {thought.thought!r}")
    print(f"answer:{reply.text}")


if __name__ == "__main__":
    main()
