"""Requests that a front end makes by itself: titles, tags, follow-up questions. They are answered, but not remembered.

Theory: such a request is known by the fixed words of the front end's own prompt. A user's message that is taken for one
would be forgotten, which is worse than a title in the memory; so the words have to stand at the prompt's beginning, and
where they are few, its end has to fit as well. A prompt that someone has reworded is not known, and is remembered.
Editing rule: a prompt is a row of ``PROMPTS``, under the product and the place where it is found; no guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from ..messages import Message
from .values import text_of

MAX_LOOK = 4096  # characters of a message's beginning and end that are looked at; the longest prompt has some 2,000


@attrs.frozen
class Prompt:
    """How a front end's own prompt reads, white space as one blank.

    Attributes:
        begin: its first words.
        where: in the last message, as the ``user`` says it; in the ``only`` message beside the system's; or in the
            ``system``'s, the first or the last one.
        end: its last words.
        within: words in its first MAX_LOOK characters.
    """

    begin: str
    where: Literal["user", "only", "system"] = "only"
    end: str = ""
    within: str = ""


PROMPTS: tuple[Prompt, ...] = (
    # Open WebUI, backend/open_webui/config.py, DEFAULT_..._PROMPT_TEMPLATE. Its template for questions about documents
    # begins with "### Task:" too, and ends with the user's words.
    Prompt("### Task:", end="</chat_history>"),  # title, tags, follow-ups, search queries, image prompt
    Prompt("### Task: You are an autocompletion system. Continue the text in `<text>`"),
    # utils/context_compaction.py, which ends with what was said last.
    Prompt("### Task: Summarize the conversation history that will be compacted out of the active chat context."),
    Prompt("Create a concise, 3-5 word title with an emoji as a title for the chat history"),  # before 0.5
    Prompt("Your task is to reflect the speaker's likely facial expression through a fitting emoji."),
    Prompt("You have been provided with a set of responses from various models to the latest user query:"),
    Prompt("Available Tools:", "system", within="choose and return the correct tool(s) from the list"),
    # LibreChat, agents/src/utils/title.ts, and its title prompt before.
    Prompt("Provide a concise, 5-word-or-less title for the conversation, using title case conventions."),
    Prompt("Analyze this conversation and provide:", within="A concise title in the detected language"),
    Prompt("Please generate a concise, 5-word-or-less title for the conversation", "system"),
    Prompt("Please generate a concise, 5-word-or-less title for the conversation"),
    # LobeChat, packages/prompts, chainSummaryTitle; the second one also in Cherry Studio, i18n prompts.title.
    Prompt("You are a professional conversation summarizer. Generate a concise title that captures", "system"),
    Prompt("你是一名擅长会话的助理，你需要将用户的会话总结为 10 个字以内的标题", "system"),  # noqa: RUF001 - that comma is Chinese
    # NextChat, app/locales: Store.Prompt.Topic, then Summarize.
    Prompt("Please generate a four to five word title summarizing our conversation without any lead-in", "user"),
    Prompt("使用四到五个字直接返回这句话的简要主题，不要解释、不要标点", "user"),  # noqa: RUF001 - that comma is Chinese
    Prompt("Summarize the discussion briefly in 200 words or less to use as a prompt for future context.", "system"),
    Prompt("简要总结一下对话内容，用作后续的上下文提示 prompt，控制在 200 字以内", "system"),  # noqa: RUF001 - that comma is Chinese
    # Chatbox, src/renderer/packages/prompts.ts, nameConversation.
    Prompt("Based on the chat history, give this conversation a name."),
    # Zed, crates/agent, thread summary.
    Prompt("Generate a concise 3-7 word title for this conversation, omitting punctuation.", "user"),
    # Continue, core/util/chatDescriber.ts.
    Prompt("Given the following... please reply with a title for the chat that is 3-4 words in length"),
    # opencode, packages/opencode/src/agent/prompt/title.txt.
    Prompt("You are a title generator. You output ONLY a thread title.", "system"),
)


def is_side_task(messages: Sequence[Message]) -> bool:
    """Is this request, all its *messages*, one that a front end made by itself?"""
    others = [message for message in messages if message.role not in ("system", "developer")]
    systems = [message for message in messages if message.role in ("system", "developer")]
    places = {
        "user": [message for message in messages[-1:] if message.role == "user"],
        "only": [message for message in others if message.role == "user" and len(others) == 1],
        "system": [*systems[:1], *systems[-1:]],
    }
    looks = {where: [_look(text_of(message)) for message in found] for where, found in places.items()}
    return any(_fits(prompt, *look) for prompt in PROMPTS for look in looks[prompt.where])


def _look(text: str) -> tuple[str, str]:
    """A text's beginning and its end, white space as one blank."""
    return " ".join(text[:MAX_LOOK].split()), " ".join(text[-MAX_LOOK:].split())


def _fits(prompt: Prompt, begin: str, end: str) -> bool:
    return begin.startswith(prompt.begin) and end.endswith(prompt.end) and prompt.within in begin
