"""Draw several texts, and get back those that the model itself finds likeliest, by mean log-probability a token."""

from ..client import Client


def main() -> None:
    """Print the best two of eight ways to go on with a story, and how much was decoded for them."""
    with Client() as client:
        reply = client.complete(
            "Question: Mary has 4 apples.", n=2, best_of=8, seed=1, stop="?", max_tokens=60, logprobs=0
        )
    for choice in reply.choices:
        logprobs = [token.logprob or 0 for token in choice.logprobs]
        print(f"mean log-probability {sum(logprobs) / len(logprobs):.2f}:{choice.text}?")
    usage = reply.usage
    num_returned = usage.completion_tokens - usage.reasoning_tokens - usage.discarded_tokens
    print(f"{num_returned} tokens were returned, {usage.discarded_tokens} discarded, {usage.reasoning_tokens} thought")


if __name__ == "__main__":
    main()
