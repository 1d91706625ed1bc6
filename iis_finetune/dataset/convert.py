"""One row to the turns that LLaMA-Factory makes of it, or to the fault that keeps it from doing so."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .faults import Fault, kind_of
from .sources import Layout

# LLaMA-Factory's defaults for the words around a tool call and a thought; templates that differ change only lengths.
TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
THOUGHT = re.compile(r"<think>\n?(.*?)\n?</think>\n?\n?", re.DOTALL)
JOINT = "\n</tool_response>\n<tool_response>\n"

Cells = Mapping[Any, Any]  # a row by its columns; a column that is not mapped is looked up as None and never there


class Turn(NamedTuple):
    """Who says what; `text` is whatever the row holds until it has been checked."""

    role: str
    text: Any


class Sample(NamedTuple):
    """A row as LLaMA-Factory hands it to a stage: several answers for pairs and for labelled answers."""

    prompt: list[Turn]
    answers: list[Turn]
    system: Any
    tools: Any
    label: bool | None = None
    unread: Any = None  # what stands where the answer should, when it is no text

    @property
    def text(self) -> str:
        return "".join(turn.text for turn in (*self.prompt, *self.answers))

    def trained(self, processing: str) -> list[Turn]:
        """The turns that the stage gives to the template."""
        if processing == "kto":
            return [*self.prompt, next((turn for turn in self.answers if turn.text), self.answers[-1])]
        return self.prompt + (self.answers if processing == "rm" else self.answers[:1])


def convert(row: Cells, layout: Layout) -> Sample:
    """The sample of a row; raises Fault for a row that is dropped or stops the loading at this point."""
    columns, alpaca = layout.columns, layout.formatting == "alpaca"
    system, tools = row.get(columns.get("system")), row.get(columns.get("tools"))
    if alpaca:
        prompt, answers = _question(row, columns), [Turn("assistant", row.get(columns.get("response")))]
    else:
        system, turns = _messages(row, layout, system)
        prompt, answers = turns[:-1], turns[-1:]
        tools = json.dumps(tools) if layout.formatting == "openai" and isinstance(tools, dict | list) else tools
    label = row.get(columns.get("kto_tag"))
    if isinstance(label, bool) and answers:
        empty = Turn("assistant", "")
        return Sample(prompt, [*answers, empty] if label else [empty, *answers], system, tools, label)
    pair = [row.get(columns.get(key)) for key in ("chosen", "rejected")]
    if layout.ranking and all(isinstance(item, str if alpaca else dict) for item in pair):
        prompt = prompt if alpaca else [*prompt, *answers]
        answers = [Turn("assistant", item) if alpaca else _pair_turn(item, layout) for item in pair]
    elif alpaca and not isinstance(answers[0].text, str):
        return Sample(prompt, [], system, tools, unread=answers[0].text)
    return Sample(prompt, answers, system, tools)


def _question(row: Cells, columns: Mapping[str, str]) -> list[Turn]:
    turns, question = [], []
    history = row.get(columns.get("history"))
    for pair in history if isinstance(history, list) else ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise Fault("history", columns["history"])
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    for key in ("prompt", "query"):
        text = row.get(columns.get(key))
        if text and not isinstance(text, str):
            raise Fault("question_type", columns[key])
        if text:
            question.append(text)
    return [*turns, Turn("user", "\n".join(question))]


def _messages(row: Cells, layout: Layout, system: Any) -> tuple[Any, list[Turn]]:
    """The system text, which a first message may give, and the turns in order."""
    messages, tags = row.get(layout.columns.get("messages")), layout.tags
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Fault("messages_type", str(layout.columns.get("messages")))
    if "system_tag" in tags and messages and messages[0].get(tags.get("role_tag")) == tags["system_tag"]:
        system, messages = messages[0].get(tags.get("content_tag")), messages[1:]
    turns = list(_turns(messages, layout))
    for number, turn in enumerate(turns):
        if turn.role not in (("user", "observation"), ("assistant", "function"))[number % 2]:
            raise Fault("order", turn.role)
    if len(turns) % 2 != layout.ranking:
        raise Fault("count_pair" if layout.ranking else "count")
    return system, turns


def _turns(messages: list[Cells], layout: Layout) -> Iterator[Turn]:
    """In the openai formatting tool calls become one JSON text, and the replies of several tools in a row one turn."""
    openai, replies = layout.formatting == "openai", list[Any]()
    for message in messages:
        tag, text = message.get(layout.tags.get("role_tag")), message.get(layout.tags.get("content_tag"))
        role = _role(tag, layout)
        if role is None:
            raise Fault("role_unknown" if openai else "role", str(tag))
        if openai and role in {"assistant", "function"} and message.get("tool_calls"):
            role, text = "function", _tool_calls(message["tool_calls"])
        if openai and role == "observation":
            replies.append(text)
            continue
        if replies:
            if not all(isinstance(reply, str) for reply in replies):
                raise Fault("not_text", "observation")
            yield Turn("observation", JOINT.join(replies))
            replies = []
        yield Turn(role, text)


def _role(tag: Any, layout: Layout) -> str | None:
    return layout.roles.get(tag) if tag is None or isinstance(tag, str) else None


def _pair_turn(message: Any, layout: Layout) -> Turn:
    tag = message.get(layout.tags.get("role_tag"))
    role = _role(tag, layout)
    if role is None or role == "system":
        raise Fault("pair_role", str(tag))
    return Turn(role, message.get(layout.tags.get("content_tag")))


def _tool_calls(calls: Any) -> str:
    if not isinstance(calls, list) or not all(isinstance(call, dict) and "function" in call for call in calls):
        raise Fault("function_keys")
    return json.dumps([call["function"] for call in calls])


def hold(sample: Sample, processing: str) -> None:
    """Hold a sample to its stage; raises Fault where the stage drops it or stops."""
    if processing == "pt":
        if not sample.prompt:
            raise Fault("pt_empty")
        if not isinstance(sample.prompt[0].text, str):
            raise Fault("not_text", sample.prompt[0].role)
        return
    answers = len(sample.answers)
    if processing in {"rm", "kto"} and answers < 2:
        raise Fault("no_pair" if processing == "rm" else "no_label")
    if len(sample.prompt) % 2 != 1:
        raise Fault("empty")
    if processing == "sft" and answers != 1:
        kind = kind_of(sample.unread)
        raise Fault("labelled") if answers else Fault("answer_kind", kind) if kind else Fault("no_answer")
    _check_texts(sample.trained(processing), sample)


def _check_texts(turns: list[Turn], sample: Sample) -> None:
    """What a template does to turns, system text and tools; raises Fault where it would stop."""
    for turn in turns:
        if not isinstance(turn.text, str):
            raise Fault("not_text", turn.role)
        if turn.role == "function":
            _check_call(turn.text)
    if sample.system and not isinstance(sample.system, str):
        raise Fault("not_text", "system")
    if sample.tools:
        _check_tools(sample.tools)


def _check_call(text: str) -> None:
    match = TOOL_CALL.search(text)
    calls = _parsed(match[1] if match else THOUGHT.sub("", text), "function_json")
    for call in calls if isinstance(calls, list) else [calls]:
        if not (isinstance(call, dict) and "name" in call and "arguments" in call):
            raise Fault("function_keys")


def _check_tools(tools: Any) -> None:
    if not isinstance(tools, str):
        raise Fault("tools_type")
    listed = _parsed(tools, "tools_json")
    if listed and not (isinstance(listed, list) and all(isinstance(tool, dict) for tool in listed)):
        raise Fault("tools_list")


def _parsed(text: str, fault: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise Fault(fault) from None
