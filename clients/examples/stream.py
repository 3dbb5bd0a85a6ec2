"""Read an answer while it is being written, its thoughts in brackets."""

from ..client import Client

QUESTION = (
    "Anna has the ball. Ben, Carl, Dora, Emma and Fred have nothing. Anna and Ben swap on Monday. Who has the ball now?"
)


def main() -> None:
    """Print each piece as it comes."""
    with Client() as client:
        for delta in client.stream_chat(QUESTION, temperature=0, thought_depth=12, include_reasoning=True):
            if delta.reasoning:
                print(f"[{delta.reasoning.strip()}]", end="")
            print(delta.text, end="", flush=True)
            if delta.finish_reason:
                print(f"\nended: {delta.finish_reason}")


if __name__ == "__main__":
    main()
