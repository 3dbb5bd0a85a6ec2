"""Ask many questions at once: the client keeps a few on their way, and asks again when the server is full."""

import anyio

from ..client import AsyncClient

AT_A_TIME = 16


async def ask_all(questions: dict[str, str]) -> int:
    """How many of the questions got the right answer."""
    num_right, places = 0, anyio.CapacityLimiter(AT_A_TIME)

    async def ask(client: AsyncClient, question: str, right: str) -> None:
        nonlocal num_right
        async with places:
            reply = await client.chat(question, temperature=0, thought_depth=12)
        num_right += reply.text.strip() == right

    async with AsyncClient(max_retries=20) as client, anyio.create_task_group() as tasks:
        for question, right in questions.items():
            tasks.start_soon(ask, client, question, right)
    return num_right


def main() -> None:
    """Print how many answers are right."""
    questions = {
        f"A dial is at {start}. It goes up {step} on Monday. It doubles on Tuesday. Where is the dial now?": str(
            (start + step) * 2 % 10
        )
        for start in range(10)
        for step in range(1, 6)
    }
    print(f"{anyio.run(ask_all, questions)} of {len(questions)} answers are right")


if __name__ == "__main__":
    main()
