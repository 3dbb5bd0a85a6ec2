"""Ask a question, and see what the model thought before each token of its answer."""

from ..client import Client

PROBLEM = """\
Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?
Answer:"""


def main() -> None:
    """Print the answer and its thoughts."""
    with Client() as client:
        reply = client.complete(PROBLEM, temperature=0, thought_depth=12, return_thoughts=True)
    print(f"answer:{reply.text}")
    for thought in reply.thoughts:
        print(f"before {thought.token!r}, with weight {thought.mixing_weight:.2f}, it thought {thought.thought!r}")
    print(f"{reply.usage.reasoning_tokens} of {reply.usage.completion_tokens} tokens were thoughts")


if __name__ == "__main__":
    main()
