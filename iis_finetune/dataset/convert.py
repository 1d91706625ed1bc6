"""One row to the turns that LLaMA-Factory makes of it, or to the fault that keeps it from doing so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .layout import Layout

# LLaMA-Factory's defaults for the words around a tool call and a thought; templates that differ change only lengths.
TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
THOUGHT = re.compile(r"<think>\n?(.*?)\n?</think>\n?\n?", re.DOTALL)
JOINT = "\n</tool_response>\n<tool_response>\n"


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


class Fault(Exception):
    """Why a row cannot be used: a case of the table in `cases`, and the word that its sentence needs."""

    def __init__(self, case: str, detail: str = ""):
        super().__init__(case, detail)
        self.case, self.detail = case, detail


def convert(row: Mapping[str, Any], layout: Layout) -> Sample:
    """The sample of a row; raises Fault for a row that is dropped or stops the loading at this point."""
    return _alpaca(row, layout) if layout.formatting == "alpaca" else _messages(row, layout)


def _alpaca(row: Mapping[str, Any], layout: Layout) -> Sample:
    columns = layout.columns
    prompt = list(_history(row.get(columns.history), columns.history)) if columns.history else []
    question = []
    for column in (columns.prompt, columns.query):
        text = row.get(column) if column else None
        if text and not isinstance(text, str):
            raise Fault("question_type", str(column))
        if text:
            question.append(text)
    prompt.append(Turn("user", "\n".join(question)))
    answer = row.get(columns.response) if columns.response else None
    system = row.get(columns.system) if columns.system else ""
    tools = row.get(columns.tools) if columns.tools else ""
    label = row.get(columns.kto_tag) if columns.kto_tag else None
    if isinstance(label, bool):
        return Sample(prompt, _labelled(Turn("assistant", answer), label), system, tools, label)
    if layout.ranking:
        pair = [row.get(column) if column else None for column in (columns.chosen, columns.rejected)]
        if all(isinstance(text, str) for text in pair):
            return Sample(prompt, [Turn("assistant", text) for text in pair], system, tools)
    return Sample(prompt, [Turn("assistant", answer)] if isinstance(answer, str) else [], system, tools)


def _history(pairs: Any, column: str) -> Iterator[Turn]:
    for pair in pairs if isinstance(pairs, list) else ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise Fault("history", column)
        yield Turn("user", pair[0])
        yield Turn("assistant", pair[1])


def _labelled(answer: Turn, label: bool) -> list[Turn]:
    empty = Turn("assistant", "")
    return [answer, empty] if label else [empty, answer]


def _messages(row: Mapping[str, Any], layout: Layout) -> Sample:
    columns, tags = layout.columns, layout.tags
    messages = row.get(columns.messages or "")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Fault("messages_type", str(columns.messages))
    system = row.get(columns.system) if columns.system else ""
    if tags.system_tag and messages and messages[0].get(tags.role_tag or "") == tags.system_tag:
        system, messages = messages[0].get(tags.content_tag or ""), messages[1:]
    turns = list(_openai_turns(messages, layout) if layout.formatting == "openai" else _turns(messages, layout))
    for number, turn in enumerate(turns):
        if turn.role not in (("user", "observation"), ("assistant", "function"))[number % 2]:
            raise Fault("order", turn.role)
    if len(turns) % 2 != layout.ranking:
        raise Fault("count_pair" if layout.ranking else "count")
    tools = row.get(columns.tools) if columns.tools else ""
    if layout.formatting == "openai" and isinstance(tools, dict | list):
        tools = json.dumps(tools)
    return _with_answers(row, layout, Sample(turns, [], system, tools))


def _with_answers(row: Mapping[str, Any], layout: Layout, sample: Sample) -> Sample:
    columns, turns = layout.columns, sample.prompt
    label = row.get(columns.kto_tag) if columns.kto_tag else None
    if isinstance(label, bool) and turns:
        return sample._replace(prompt=turns[:-1], answers=_labelled(turns[-1], label), label=label)
    if layout.ranking:
        pair = [row.get(column) if column else None for column in (columns.chosen, columns.rejected)]
        if all(isinstance(message, dict) for message in pair):
            return sample._replace(answers=[_pair_turn(message, layout) for message in pair])
    return sample._replace(prompt=turns[:-1], answers=turns[-1:])


def _roles(layout: Layout) -> dict[str | None, str]:
    tags = layout.tags
    named = (tags.user_tag, tags.assistant_tag, tags.observation_tag, tags.function_tag, tags.system_tag)
    return dict(zip(named, ("user", "assistant", "observation", "function", "system"), strict=True))


def _pair_turn(message: Any, layout: Layout) -> Turn:
    tag = message.get(layout.tags.role_tag or "")
    role = _roles(layout).get(tag)
    if role is None or role == "system":
        raise Fault("pair_role", str(tag))
    return Turn(role, message.get(layout.tags.content_tag or ""))


def _turns(messages: list[dict[str, Any]], layout: Layout) -> Iterator[Turn]:
    roles, role_tag, content_tag = _roles(layout), layout.tags.role_tag or "", layout.tags.content_tag or ""
    for message in messages:
        tag = message.get(role_tag)
        if tag not in roles:
            raise Fault("role", str(tag))
        yield Turn(roles[tag], message.get(content_tag))


def _openai_turns(messages: list[dict[str, Any]], layout: Layout) -> Iterator[Turn]:
    """Tool calls become one JSON text, and the replies of several tools in a row one turn."""
    roles, role_tag, content_tag = _roles(layout), layout.tags.role_tag or "", layout.tags.content_tag or ""
    replies: list[Any] = []
    for message in messages:
        tag, text = message.get(role_tag), message.get(content_tag)
        if tag not in roles:
            raise Fault("role_unknown", str(tag))
        role = roles[tag]
        if role in {"assistant", "function"} and message.get("tool_calls"):
            role, text = "function", _tool_calls(message["tool_calls"])
        if role == "observation":
            replies.append(text)
            continue
        if replies:
            if not all(isinstance(reply, str) for reply in replies):
                raise Fault("not_text", "observation")
            yield Turn("observation", JOINT.join(replies))
            replies = []
        yield Turn(role, text)


def _tool_calls(calls: Any) -> str:
    if not isinstance(calls, list) or not all(isinstance(call, dict) and "function" in call for call in calls):
        raise Fault("function_keys")
    return json.dumps([call["function"] for call in calls])


def check_turns(turns: list[Turn], sample: Sample) -> None:
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
    try:
        calls = json.loads(match[1] if match else THOUGHT.sub("", text))
    except json.JSONDecodeError:
        raise Fault("function_json") from None
    for call in calls if isinstance(calls, list) else [calls]:
        if not (isinstance(call, dict) and "name" in call and "arguments" in call):
            raise Fault("function_keys")


def _check_tools(tools: Any) -> None:
    if not isinstance(tools, str):
        raise Fault("tools_type")
    try:
        listed = json.loads(tools)
    except json.JSONDecodeError:
        raise Fault("tools_json") from None
    if listed and not (isinstance(listed, list) and all(isinstance(tool, dict) for tool in listed)):
        raise Fault("tools_list")
