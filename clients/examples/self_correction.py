"""Have the model look at its answer once more, and see what it said at first."""

from ..client import Client

PROBLEM = """\
Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. It doubles on Wednesday. Where is the dial now?
Answer:"""


def main() -> None:
    """Print each turn of the answer; whether the second one is better depends on what the checkpoint has learned."""
    with Client() as client:
        reply = client.complete(PROBLEM, temperature=0, thought_depth=4, self_correction_turns=1, return_drafts=True)
    correction = reply.choices[0].self_correction
    assert correction, "there is one wherever it was asked for"
    for draft in correction.turns:
        print(f"draft:{draft.text}")
    print(f"answer:{reply.text}")
    usage = reply.usage
    outcome = "changed" if correction.changed else "kept"
    print(f"{outcome}; {usage.draft_tokens} of {usage.completion_tokens} tokens were the draft's")


if __name__ == "__main__":
    main()
