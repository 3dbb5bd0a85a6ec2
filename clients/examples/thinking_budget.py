"""Limit how much an answer may think; when the budget is spent, the answer goes on without thoughts."""

from ..client import Client

PROBLEM = """\
Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?
Answer:"""


def main() -> None:
    """Print the answer and what it thought under several budgets; the right answer is 0."""
    with Client() as client:
        for budget in (0, 4, 8, 64):
            reply = client.complete(PROBLEM, temperature=0, thought_depth=12, thinking_token_budget=budget)
            print(f"budget {budget:>2}: answer{reply.text} after {reply.usage.reasoning_tokens} hidden tokens")


if __name__ == "__main__":
    main()
