"""End an answer from another thread, by the id that its request was given."""

import threading
import uuid

from ..client import Client


def main() -> None:
    """Start an answer that would be long, and cancel it when its first piece has come."""
    request_id, begun = f"example-{uuid.uuid4().hex}", threading.Event()

    def write(client: Client) -> None:
        deltas = client.stream_complete(
            "Question:", thought_depth=12, max_tokens=400, ignore_eos=True, request_id=request_id
        )
        num_pieces = 0
        for delta in deltas:
            begun.set()
            num_pieces += bool(delta.text)
            if delta.finish_reason:
                print(f"ended: {delta.finish_reason}, after {num_pieces} of 400 tokens")

    with Client() as client:
        writer = threading.Thread(target=write, args=(client,))
        writer.start()
        begun.wait(60)
        print(f"cancelled: {client.cancel(request_id)}")
        writer.join()


if __name__ == "__main__":
    main()
