"""The same question without thoughts and with longer and longer ones: what does the model believe?"""

import math

from ..client import Client

PROBLEM = """\
Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?
Answer:"""


def main() -> None:
    """Print the likeliest answers at each depth; the right one is 0."""
    with Client() as client:
        for depth in (0, 4, 8, 12):
            reply = client.complete(PROBLEM, temperature=0, thought_depth=depth, max_tokens=1, logprobs=3)
            first = reply.choices[0].logprobs[0]
            beliefs = ", ".join(f"{token.strip()} {math.exp(logprob):.0%}" for token, logprob in first.top)
            print(f"depth {depth:>2} says{reply.text}: {beliefs}")


if __name__ == "__main__":
    main()
