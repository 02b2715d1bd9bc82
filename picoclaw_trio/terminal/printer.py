"""One turn on the screen: its text as it comes, and a line for each tool that runs.

Theory: events come in order and are shown in order; nothing that was written is taken back, so it reads the same at
any width, in a log and for a screen reader. A tool's line is ended by its result where nothing came between, else the
result gets a line of its own.
Editing rule: an event that is to be seen is a row of ``Printer.show``; where it goes is ``screen``'s business.
"""

from __future__ import annotations

import attrs

from ..replies import Progress, ReplyStarted, TextDelta, ToolFinished, ToolStarted
from ..visible import one_line, short_arguments
from .screen import Screen

ANSWER_FIELDS = frozenset({"content", "refusal"})
REASONING_FIELDS = frozenset({"reasoning_content", "reasoning"})
ANSWER, FINISHED = "answer", "finished"


@attrs.define
class Printer:
    """Prints one reply as it comes.

    Args:
        asked: alias of the model that is asked; another that answers is named.
        shows_reasoning: the model's thoughts too, where they can be told from its answer; else only that it thinks.
    """

    _screen: Screen
    _asked: str
    _shows_reasoning: bool = False
    _lines: dict[str, str] = attrs.field(factory=dict, init=False)  # {id of a call that runs: its line}
    _last: str = attrs.field(default="", init=False)  # what was written last
    _skips_breaks: bool = attrs.field(default=False, init=False)

    def show(self, *events: Progress) -> None:
        for event in events:
            if type(event) is TextDelta and event.text:
                self._show_text(event.text, event.field)
            elif type(event) is ReplyStarted and event.alias != self._asked:
                self._screen.note(f"· {event.alias} answers")
            elif type(event) is ToolStarted:
                self._start_tool(event)
            elif type(event) is ToolFinished:
                self._finish_tool(event)

    def end(self) -> None:
        """The turn is over, well or not."""
        self._screen.end_line()

    def _show_text(self, text: str, field: str) -> None:
        if field in ANSWER_FIELDS:
            self._answer(text)
        elif field in REASONING_FIELDS and (self._last == field or text.strip()):
            self._think(text, field)

    def _answer(self, text: str) -> None:
        if self._skips_breaks:  # a note stands between, on a line of its own
            text = text.lstrip("\n")
        if not text:
            return
        if self._last != ANSWER:
            self._screen.end_note_line()
        self._last, self._skips_breaks = ANSWER, False
        self._screen.say(text)

    def _think(self, text: str, field: str) -> None:
        is_new = self._last != field
        if is_new and self._last in REASONING_FIELDS:
            return  # the same thoughts under another name
        self._note(field)
        if self._shows_reasoning and self._screen.is_dim:
            self._screen.begin_note(text) if is_new else self._screen.go_on(text)
        elif is_new:
            self._screen.note("· thinking …")

    def _start_tool(self, event: ToolStarted) -> None:
        line = " ".join(filter(None, ["·", one_line(event.name), short_arguments(event.arguments)]))
        self._lines[event.call_id] = line
        self._note(_running(event.call_id))
        self._screen.begin_note(f"{line} …")

    def _finish_tool(self, event: ToolFinished) -> None:
        line = self._lines.pop(event.call_id, "·")
        result = " failed\n" if event.failed else " ok\n"
        if self._last == _running(event.call_id):
            self._screen.go_on(result)
        else:
            self._screen.begin_note(f"{line} …{result}")
        self._note(FINISHED)

    def _note(self, what: str) -> None:
        self._last, self._skips_breaks = what, self._screen.mixes


def _running(call_id: str) -> str:
    return f"call {call_id}"
