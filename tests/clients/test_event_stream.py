from itertools import pairwise
from typing import Any

import pytest
from canned import CHUNKS, events
from hypothesis import given
from hypothesis import strategies as st

from quietserve.clients.errors import ApiError
from quietserve.clients.parsing import parse_event
from quietserve.clients.stream import StreamReader

CUTS = st.lists(st.integers(0, 2000), max_size=12)
NEWLINES = st.sampled_from([b"\n", b"\r\n"])
TEXTS = st.lists(st.text(), max_size=5)
# What the protocol lets stand between events: comments, fields that mean nothing to us, empty lines.
BETWEEN = st.lists(st.sampled_from([": keep-alive", ":", ": data: {}", "event: x", "id: 1", "retry: 9", "data", ""]))


def read_whole(reader: StreamReader[Any], content: bytes, cuts: list[int]) -> list[Any]:
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    return [thing for start, end in pairwise(edges) for thing in reader.feed(content[start:end])]


@given(CUTS, NEWLINES)
def test_a_stream_reads_the_same_however_it_is_cut(cuts, newline):
    reader = StreamReader(parse_event)
    deltas = read_whole(reader, events(*CHUNKS).replace(b"\n", newline), cuts)
    reader.finish()
    assert "".join(delta.text for delta in deltas) == "é\u20288"


@given(TEXTS, BETWEEN, CUTS)
def test_only_the_data_matters(texts, between, cuts):
    reader = StreamReader(lambda body, _: (body["text"],))
    noise = "".join(f"{line}\n" for line in between).encode()
    content = b"".join(noise + events({"text": text}, end="") for text in texts) + noise + events()
    assert read_whole(reader, content, cuts) == texts
    reader.finish()


def test_an_event_may_span_data_lines():
    reader = StreamReader(parse_event)
    assert len(list(reader.feed(b'event: x\ndata: {"choices":\ndata: []}\n\n'))) == 1


@given(CUTS)
def test_a_stream_without_its_end_is_an_error(cuts):
    reader = StreamReader(parse_event, "req-1")
    read_whole(reader, events(*CHUNKS, end=""), cuts)
    with pytest.raises(ApiError, match="broke off") as caught:
        reader.finish()
    assert caught.value.request_id == "req-1"
