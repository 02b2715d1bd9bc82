"""Which requests are a front end's own. The prompts are theirs, shortened in the middle."""

from __future__ import annotations

import pytest

from picoclaw_trio.memory import is_side_task
from picoclaw_trio.messages import Message

HISTORY = "### Chat History:\n<chat_history>\nUSER: How do I bake bread?\nASSISTANT: Slowly.\n</chat_history>"
OPEN_WEBUI_TITLE = f"### Task:\nGenerate a concise, 3-5 word title with an emoji.\n### Output:\nJSON\n{HISTORY}"
OPEN_WEBUI_COMPLETION = (
    "### Task:\nYou are an autocompletion system. Continue the text in `<text>` based on the **completion type** in "
    "`<type>` and the given language.  \n\n### Context:\n<chat_history>\n</chat_history>\n<type>General</type>\n"
    "<text>How do</text>\n#### Output:\n"
)
OPEN_WEBUI_COMPACTION = (
    "### Task:\nSummarize the conversation history that will be compacted out of the active chat context.\n\n"
    "### Instructions:\n- Be factual and specific. Do not invent details.\n\n### Previous Summary:\n\n\n"
    "### Messages Being Compacted:\nUSER: How do I bake bread?\nASSISTANT: Slowly.\n\n"
    "### Recent Messages Kept In Context:\nUSER: And cake?"
)
OPEN_WEBUI_DOCUMENTS = (
    "### Task:\nRespond to the user query using the provided context, incorporating inline citations.\n"
    "<context>\n<source id=1>Bread.</source>\n</context>\n\nHow do I bake it?"
)
LIBRECHAT = (
    "Provide a concise, 5-word-or-less title for the conversation, using title case conventions. Only return the title "
    "itself.\n\nConversation:\nUser: How do I bake bread?\nAI: Slowly."
)
NEXTCHAT = (
    "Please generate a four to five word title summarizing our conversation without any lead-in, punctuation, "
    "quotation marks, periods, symbols, bold text, or additional text. Remove enclosing quotation marks."
)
NEXTCHAT_SUMMARY = "Summarize the discussion briefly in 200 words or less to use as a prompt for future context."
LOBECHAT = "You are a professional conversation summarizer. Generate a concise title that captures the essence of it."
ZED = "Generate a concise 3-7 word title for this conversation, omitting punctuation. Go straight to the title."
OPENCODE = "You are a title generator. You output ONLY a thread title. Nothing else.\n\n<task>\nGenerate a brief title"
TALK = (("user", "How do I bake bread?"), ("assistant", "Slowly."))

ASKED_BY_A_FRONT_END = {
    "Open WebUI: title": (("user", OPEN_WEBUI_TITLE),),
    "Open WebUI: title, with a system prompt": (("system", "Be kind."), ("user", OPEN_WEBUI_TITLE)),
    "Open WebUI: tags": (("user", f"### Task:\nGenerate 1-3 broad tags categorizing the main themes.\n{HISTORY}\n"),),
    "Open WebUI: autocompletion": (("user", OPEN_WEBUI_COMPLETION),),
    "Open WebUI: context compaction": (("user", OPEN_WEBUI_COMPACTION),),
    "Open WebUI: emoji": (
        ("user", "Your task is to reflect the speaker's likely facial expression through a fitting emoji. Interpret"),
    ),
    "LibreChat: title": (("user", LIBRECHAT),),
    "NextChat: title": (*TALK, ("user", NEXTCHAT)),
    "NextChat: summary": (*TALK, ("system", NEXTCHAT_SUMMARY)),
    "LobeChat: title": (("system", LOBECHAT), ("user", "user: How do I bake bread?\nassistant: Slowly.")),
    "Zed: title": (*TALK, ("user", ZED)),
    "opencode: title": (("system", OPENCODE), ("user", "Generate a title for this conversation:\n"), TALK[0]),
}
SAID_BY_A_USER = {
    "a question": TALK[:1],
    "a question in a conversation": (*TALK, ("user", "And cake?")),
    "a question about documents in Open WebUI": (("user", OPEN_WEBUI_DOCUMENTS),),
    "a task of one's own": (("user", "### Task:\nGenerate a concise, 3-5 word title for my book about bread."),),
    "a wish for a title": (("user", "Generate a title for this conversation."),),
    "a question about the prompt": (("user", f"What does Open WebUI do with this prompt?\n{OPEN_WEBUI_TITLE}"),),
    "the prompt, and a question about it": (("user", f"{OPEN_WEBUI_TITLE}\nWhat does this prompt do?"),),
    "the prompt in the middle of a conversation": (*TALK, ("user", OPEN_WEBUI_TITLE)),
    "a prompt that was said before": (*TALK, ("user", ZED), ("assistant", "Baking Bread"), ("user", "Thanks")),
    "a wish for a summary": (*TALK, ("user", NEXTCHAT_SUMMARY)),
    "nothing": (),
}


def request(said: tuple[tuple[str, str], ...], *, in_parts: bool) -> list[Message]:
    def content(text: str) -> object:
        return [{"type": "text", "text": text}] if in_parts else text

    return [Message(role, {"role": role, "content": content(text)}) for role, text in said]


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("case", ASKED_BY_A_FRONT_END)
def test_front_ends_own_request_is_known(case: str, in_parts: bool) -> None:
    assert is_side_task(request(ASKED_BY_A_FRONT_END[case], in_parts=in_parts))


@pytest.mark.parametrize("case", SAID_BY_A_USER)
def test_users_own_words_are_never_taken_for_one(case: str) -> None:
    assert not is_side_task(request(SAID_BY_A_USER[case], in_parts=False))


def test_huge_message_is_looked_at_only_at_its_ends() -> None:
    assert is_side_task(request((("user", OPEN_WEBUI_TITLE.replace("Slowly", "x" * 10_000_000)),), in_parts=False))
