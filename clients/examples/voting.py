"""Ask several times and let the answers vote."""

from ..client import Client

PROBLEM = """\
Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?
Answer:"""


def main() -> None:
    """Print how eight answers with short thoughts voted, and which of them won."""
    with Client() as client:
        reply = client.complete(
            PROBLEM, thought_depth=4, best_of=8, voting="majority", answer_pattern="last_number", seed=1
        )
    voting = reply.voting
    assert voting, "there is one wherever it was asked for"
    for group in voting.groups:
        print(f"{group.count} for {group.answer}")
    print(f"answer:{reply.text}")
    print(f"{voting.agreement:.0%} of {voting.num_valid} agree")


if __name__ == "__main__":
    main()
