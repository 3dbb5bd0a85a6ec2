"""The same server through OpenAI's own client: what is ours goes through `extra_body`."""

import os
import sys

QUESTION = (
    "Anna has the ball. Ben, Carl, Dora, Emma and Fred have nothing. Anna and Ben swap on Monday. Who has the ball now?"
)


def main() -> None:
    """Print the answer and the text of its thoughts."""
    try:
        from openai import OpenAI
    except ImportError:
        sys.exit("this example needs the openai package: pip install openai")

    url = os.environ.get("QUIETSERVE_URL", "http://127.0.0.1:8000")
    with OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("QUIETSERVE_API_KEY", "none")) as client:
        reply = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            extra_body={"thought_depth": 12, "include_reasoning": True},
        )
    message = reply.choices[0].message
    print(f"answer:{message.content}")
    print(f"it thought {message.model_dump()['reasoning']!r}")


if __name__ == "__main__":
    main()
