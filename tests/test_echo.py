"""The model in process."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON

from picoclaw_trio.echo import LABEL, MAX_PIECES, ask_echo, say
from picoclaw_trio.messages import Message
from picoclaw_trio.replies import Fold, TextDelta, Usage
from picoclaw_trio.shapes import Json
from picoclaw_trio.upstream_reply import Chunk
from picoclaw_trio.upstream_request import UpstreamRequest


def asked(*contents: Json, role: str = "user") -> UpstreamRequest:
    messages = [Message(role, {"role": role, "content": content}) for content in contents]
    return UpstreamRequest(messages, {}, stream=False)


def text_of(request: UpstreamRequest) -> Json:
    fold = Fold()
    for chunk in say(request):
        for event in chunk.events:
            fold.add(event)
    return fold.message()["content"]


def test_the_answer_is_the_question_plainly_labelled() -> None:
    assert f"{LABEL} Hello there" == text_of(asked("Hello there"))
    assert "echo" in LABEL


def test_the_last_user_message_is_the_question() -> None:
    messages = [*asked("one", "two").messages, *asked("three", role="assistant").messages]

    assert f"{LABEL} two" == text_of(UpstreamRequest(messages, {}, stream=False))


def test_without_a_user_message_the_label_answers() -> None:
    assert f"{LABEL} " == text_of(asked("Be brief.", role="system"))


def test_the_text_parts_are_the_question_and_the_others_are_left_out() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    content = [{"type": "text", "text": "one"}, image, {"type": "text", "text": "two"}]

    assert f"{LABEL} one\ntwo" == text_of(asked(content))


def test_a_message_without_content_counts_nothing() -> None:
    *_, last = say(asked(None, role="assistant"))

    assert last.usage is not None
    assert 0 == last.usage.prompt_tokens


def test_each_chunk_has_one_word_and_the_last_has_the_end() -> None:
    *words, last = say(asked("Hello there"))

    label = len(LABEL.split(" "))
    assert [TextDelta(" Hello"), TextDelta(" there")] == [event for word in words[label:] for event in word.events]
    assert Chunk(finish_reason="stop", usage=Usage(2, label + 2, label + 4), model="echo") == last
    assert [None] * len(words) == [word.finish_reason for word in words]


def test_usage_counts_the_words_of_all_messages() -> None:
    *_, last = say(asked("one two", [{"type": "text", "text": "three"}], ""))

    assert last.usage is not None
    assert 3 == last.usage.prompt_tokens


def test_a_long_text_comes_whole_in_a_bounded_number_of_chunks() -> None:
    text = "word " * 100_000

    assert f"{LABEL} {text}" == text_of(asked(text))
    assert MAX_PIECES + 1 == len(say(asked(text)))


@given(st.text())
def test_any_text_comes_back_as_it_is(text: str) -> None:
    assert f"{LABEL} {text}" == text_of(asked(text))


@given(st.lists(st.builds(lambda value: {"type": "file", "file": value}, JSON)))
def test_parts_without_text_are_passed_over(content: list[Json]) -> None:
    assert f"{LABEL} " == text_of(asked(content))


async def test_chunks_are_taken_one_after_the_other() -> None:
    taken: list[Chunk] = []

    async def take(chunk: Chunk) -> None:
        taken.append(chunk)

    request = asked("Hello there")
    await ask_echo(request, take)

    assert list(say(request)) == taken
