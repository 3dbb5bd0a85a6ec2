"""How likely is a given text? With `echo` the prompt itself is scored, with a thought before each of its tokens."""

import math

from ..client import Client

PROBLEM = """\
Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?
Answer:"""


def main() -> None:
    """Print the probability of a right and of a wrong answer, without thoughts and with them."""
    with Client() as client:
        for depth in (0, 12):
            for answer in (" 0", " 5"):
                reply = client.complete(
                    PROBLEM + answer, echo=True, max_tokens=0, logprobs=1, temperature=0, thought_depth=depth
                )
                last = reply.choices[0].logprobs[-1]
                print(f"depth {depth:>2}, answer{last.token}: {math.exp(last.logprob or 0):.1%}")


if __name__ == "__main__":
    main()
