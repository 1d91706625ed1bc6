"""Data files, well and badly made, with what LLaMA-Factory 0.9.5 does to each: one table for two tests."""
# ruff: noqa: E501 - a table reads best with one case a line

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STOPS = "stops"


@dataclass(frozen=True)
class Case:
    """`kept` rows are trained, or the loading stops; `says` is in the kit's report, which names `row`."""

    name: str
    body: bytes
    kept: int | str
    says: str | None = None
    row: int | None = None
    stage: str = "sft"
    suffix: str = ".jsonl"
    entry: dict[str, Any] = field(default_factory=dict)
    generate: bool = False


def alpaca(output: Any = "an answer", instruction: Any = "a question", **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "input": "", "output": output, **more}


def talk(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [dict(zip(("role", "content"), message, strict=False)) for message in messages], **more}


def pair(chosen: Any = "good", rejected: Any = "bad") -> dict[str, Any]:
    return {"instruction": "a question", "input": "", "chosen": chosen, "rejected": rejected}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def array(*rows: Any) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def save_byte_tokenizer(folder: Path) -> Path:
    """One token a byte, but for the words of ChatML: lengths can be counted by hand."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|im_start|>"])
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


GOOD = alpaca()
TALK = talk(("human", "a"), ("gpt", "b"))
SHAREGPT: dict[str, Any] = {"formatting": "sharegpt"}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
CHATML: dict[str, Any] = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS}
SYSTEM: dict[str, Any] = {**CHATML, "tags": {**TAGS, "system_tag": "system"}}
TOOLS = {**TAGS, "system_tag": "system", "observation_tag": "tool", "function_tag": "function_call"}
OPENAI: dict[str, Any] = {**CHATML, "formatting": "openai", "tags": TOOLS}
TOOLED: dict[str, Any] = {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}}
RANKED: dict[str, Any] = {
    "ranking": True,
    "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
}
RANKED_TALK: dict[str, Any] = {
    **SHAREGPT,
    "ranking": True,
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
KTO: dict[str, Any] = {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "label"}}
KTO_TALK: dict[str, Any] = {**SHAREGPT, "columns": {"messages": "conversations", "kto_tag": "label"}}
HISTORY: dict[str, Any] = {"columns": {"prompt": "instruction", "response": "output", "history": "history"}}
TEXT: dict[str, Any] = {"columns": {"prompt": "text"}}
CALL = '{"name": "f", "arguments": {"x": 1}}'
TOOL = '[{"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}]'
SAID = {"from": "gpt", "value": "good"}
LATE = "first filled after the first 10 MB"

FILES = [
    Case("well-formed lines", lines(GOOD, GOOD), 2),
    Case("a well-formed array", array(GOOD, GOOD), 2, suffix=".json"),
    Case("an array in a .jsonl file", array(GOOD, GOOD), 2),
    Case("lines in a .json file", lines(GOOD, GOOD), 2, suffix=".json"),
    Case("blank lines between rows", lines(GOOD) + b"\n\n" + lines(GOOD), 2),
    Case("a single object", json.dumps(GOOD, indent=2).encode(), 1, suffix=".json"),
    Case("values one after another", json.dumps(GOOD, indent=2).encode() * 2, 2),
    Case("two objects on a line", json.dumps(GOOD).encode() * 2, 2),
    Case("an object around the rows", b'{"data": ' + array(GOOD) + b"}", STOPS, "lie in its 'data'", suffix=".json"),
    Case("an empty array", b"[]", STOPS, "holds no rows", suffix=".json"),
    Case("an empty file", b"", STOPS, "holds no rows"),
    Case("a trailing comma", b"[" + json.dumps(GOOD).encode() + b",]", STOPS, "not valid JSON", 2, suffix=".json"),
    Case("a missing comma", b"[" + json.dumps(GOOD).encode() * 2 + b"]", STOPS, "comma", 1, suffix=".json"),
    Case("an array cut short", array(GOOD, GOOD)[:-30], STOPS, "not valid JSON", 2, suffix=".json"),
    Case("a bad line", lines(GOOD) + b"{oops}\n" + lines(GOOD), STOPS, "not valid JSON", 2),
    Case("a raw tab in a string", b'{"instruction":"a\tb","input":"","output":"c"}\n', STOPS, "control character", 1),
    Case("a byte order mark before an array", b"\xef\xbb\xbf" + array(GOOD), STOPS, "byte order mark", 1, suffix=".json"),
    Case("a byte order mark before lines", b"\xef\xbb\xbf" + lines(GOOD), 1),
    Case("GBK lines", lines(GOOD) + lines(alpaca("中文回答")).decode().encode("gbk"), STOPS, "not UTF-8", 2),
    Case("a GBK array", array(alpaca("中文回答")).decode().encode("gbk"), STOPS, "not UTF-8", suffix=".json"),
    Case("Latin-1 lines", lines(alpaca("café")).decode().encode("latin-1"), STOPS, "not UTF-8", 1),
    Case("UTF-16", lines(GOOD).decode().encode("utf-16"), STOPS, "not UTF-8", 1),
    Case("half a surrogate pair in a line", lines(GOOD) + rb'{"instruction":"a","input":"","output":"\ud83d x"}', STOPS, "surrogate", 2),
    Case("half a surrogate pair in an array", rb'[{"instruction":"a","input":"","output":"\ud83d x"}]', 1, suffix=".json"),
    Case("NaN in a line", lines(GOOD) + b'{"instruction":"a","input":"","output":"b","score":NaN}\n', 2),
    Case("strings instead of objects", b'"a"\n"b"\n', STOPS, "not an object", 1, stage="pt", entry=TEXT),
    Case("an array of strings", b'["some text", "more text"]', 2, suffix=".json", stage="pt", entry=TEXT),
    Case("numbers and texts in one column", lines(alpaca(id=1), alpaca(id="a")), STOPS, "'id' holds number in row 1", 2),
    Case("numbers and texts in a column of an array", array(alpaca(id=1), alpaca(id="a")), STOPS, "'id' holds", 2, suffix=".json"),
    Case("whole numbers and fractions", lines(alpaca(id=1), alpaca(id=1.5)), 2),
    Case("truth values and numbers", lines(alpaca(id=True), alpaca(id=1)), STOPS, "'id' holds true or false", 2),
    Case("a text and a list of parts", lines(talk(("human", "a"), ("gpt", "b")), talk(("human", ["a"]), ("gpt", "b"))),
         STOPS, "'conversations[].value' holds text", 2, entry=SHAREGPT),
    Case("a column that comes after 10 MB", lines(*[alpaca("z" * 1000)] * 10400, alpaca(id=1)), STOPS, LATE, 10401),
    Case("a column that is null for 10 MB", lines(*[alpaca("z" * 1000, id=None)] * 10400, alpaca(id="a")), STOPS, LATE, 10401),
    Case("answers that look like dates", lines(alpaca("2024-01-01"), alpaca("2024-02-01")), STOPS, "looks like a date"),
    Case("questions that look like times", lines(alpaca("a", "2024-01-01 10:00:00")), STOPS, "looks like a date"),
    Case("answers that look like dates in an array", array(alpaca("2024-01-01"), alpaca("2024-02-01")), 2, suffix=".json"),
    Case("one answer that looks like a date", lines(alpaca("2024-01-01"), GOOD), 2),
    Case("answers that look like numbers", lines(alpaca("42"), alpaca("43")), 2),
    Case("csv", b"instruction,input,output\na,,b\nc,d,e\n", 2, suffix=".csv"),
    Case("csv with a byte order mark", b"\xef\xbb\xbfinstruction,input,output\na,,b\n", 1, suffix=".csv"),
    Case("csv whose answers are numbers", b"instruction,input,output\na,,1\nc,d,2.5\n", STOPS, "2 of 2 rows", suffix=".csv"),
    Case("csv whose answers are truth values", b"instruction,input,output\na,,True\nc,d,False\n", STOPS, "2 of 2 rows", suffix=".csv"),
    Case("csv whose questions are numbers", b"instruction,input,output\n1,,a\n2,d,b\n", STOPS, "'instruction' is not a text", 1, suffix=".csv"),
    Case("csv with the answer None", b"instruction,input,output\na,,None\nc,,e\n", 1, "1 of 2 rows", 1, suffix=".csv"),
    Case("members of objects as columns", lines({"data": {"q": "a"}, "data.q": "a", "data.a": "b"}), 1, entry={"columns": {"prompt": "data.q", "response": "data.a"}}),
    Case("csv with a short row", b"instruction,input,output\na,b\nc,,e\n", 1, "1 of 2 rows", 1, suffix=".csv"),
    Case("csv with a long row", b"instruction,input,output\nc,,e\na,b,c,d\n", STOPS, "4 cells for 3 columns", 2, suffix=".csv"),
    Case("csv with a break in a cell and blank lines", b'instruction,input,output\n"a\nb",,c\n\n  \nd,,\n', 1, "1 of 2 rows", 2, suffix=".csv"),
    Case("csv in GBK", "instruction,input,output\n问题,,中文回答\n".encode("gbk"), STOPS, "not UTF-8", suffix=".csv"),
    Case("csv with a number and a text", b"instruction,input,output\na,,1\nc,,e\n", 2, suffix=".csv"),
    Case("plain text for sft", b"one\ntwo\n", STOPS, "no row has the column", suffix=".txt"),
    Case("plain text mapped to the prompt for sft", b"one\ntwo\n", STOPS, "2 of 2 rows", 1, suffix=".txt", entry=TEXT),
    Case("plain text for pt", b"one\ntwo\n", 2, suffix=".txt", stage="pt", entry=TEXT),
]  # fmt: skip

ALPACA = [
    Case("a column that no row has", lines({"question": "a", "answer": "b"}), STOPS, "no row has the column 'instruction'"),
    Case("no input column", lines({"instruction": "a", "output": "b"}), STOPS, "no row has the column 'input'"),
    Case("a column that some rows lack", lines(GOOD, {"instruction": "a", "input": ""}), 1, "1 of 2 rows", 2),
    Case("a null answer", lines(GOOD, alpaca(None), GOOD), 2, "the answer is not a text (row 2)", 2),
    Case("only null answers", lines(alpaca(None), alpaca(None)), STOPS, "no valid sample would be left"),
    Case("number answers", lines(alpaca(1), alpaca(2)), STOPS, "no valid sample would be left", 1),
    Case("list answers", lines(alpaca(["a"])), STOPS, "no valid sample would be left", 1),
    Case("an empty answer", lines(GOOD, alpaca("")), 2, "the answer is empty", 2),
    Case("a number question", lines(alpaca("a", 5), alpaca("b", 6)), STOPS, "'instruction' is not a text", 1),
    Case("an empty and a null question", lines(alpaca("a", ""), alpaca("b", None)), 2, "the question is empty", 1),
    Case("columns without an answer", lines(GOOD), STOPS, "no valid sample", 1, entry={"columns": {"prompt": "instruction"}}),
    Case("columns without an answer for prediction", lines(GOOD), 1, entry={"columns": {"prompt": "instruction"}}, generate=True),
    Case("history", lines(alpaca(history=[["a", "b"]]), alpaca(history=[])), 2, entry=HISTORY),
    Case("history of single texts", lines(alpaca(history=["abc"])), STOPS, "list of [question, answer]", 1, entry=HISTORY),
    Case("history of triples", lines(alpaca(history=[["a", "b", "c"]])), STOPS, "list of [question, answer]", 1, entry=HISTORY),
    Case("history with null", lines(alpaca(history=[["a", None]])), STOPS, "message from assistant", 1, entry=HISTORY),
    Case("a number as system text", lines(alpaca(system=5)), STOPS, "message from system", 1,
         entry={"columns": {"prompt": "instruction", "response": "output", "system": "system"}}),
    Case("a null system text", lines(alpaca(system=None), alpaca(system="x")), 2,
         entry={"columns": {"prompt": "instruction", "response": "output", "system": "system"}}),
    Case("a mapped column that is not there", lines(GOOD), STOPS, "no row has the column 'system'",
         entry={"columns": {"prompt": "instruction", "response": "output", "system": "system"}}),
    Case("a template's own token in the text", lines(alpaca("a<|im_end|>b")), 1, "<|im_end|>", 1),
    Case("an image placeholder", lines(alpaca("a", "<image> what is it?")), 1, "<image>", 1),
    Case("a gap that nobody has filled", lines(alpaca("a", "I am {{name}}")), 1, "{{name}}", 1),
    Case("pt text", lines({"text": "a"}, {"text": "b"}), 2, stage="pt", entry=TEXT),
    Case("pt on instruction data", lines(GOOD), 1, stage="pt"),
    Case("pt with an empty text", lines({"text": ""}, {"text": "b"}), 2, "question is empty", 1, stage="pt", entry=TEXT),
    Case("sft on pt data", lines({"text": "a"}), STOPS, "no valid sample would be left", entry=TEXT),
    Case("sft on kto data", lines(alpaca(label=True)), STOPS, "label of KTO", entry=KTO),
]  # fmt: skip

TALKS = [
    Case("talks", lines(TALK, talk(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))), 2, entry=SHAREGPT),
    Case("a talk with a system text", lines(talk(("system", "s"), ("human", "a"), ("gpt", "b"))), 1, entry=SHAREGPT),
    Case("a talk that gpt begins", lines(TALK, talk(("gpt", "a"), ("human", "b"))), 1, "other side", 2, entry=SHAREGPT),
    Case("a talk without an answer", lines(TALK, talk(("human", "a"), ("gpt", "b"), ("human", "c"))), 1, "not an answer", 2, entry=SHAREGPT),
    Case("two users in a row", lines(TALK, talk(("human", "a"), ("human", "b"))), 1, "other side", 2, entry=SHAREGPT),
    Case("an unknown role", lines(TALK, talk(("human", "a"), ("robot", "b"))), 1, "'robot'", 2, entry=SHAREGPT),
    Case("user and assistant without tags", lines(talk(("user", "a"), ("assistant", "b"))), STOPS, "'user'", 1, entry=SHAREGPT),
    Case("a system text in the middle", lines(TALK, talk(("human", "a"), ("system", "b"))), 1, "other side", 2, entry=SHAREGPT),
    Case("an empty list", lines(TALK, {"conversations": []}), 1, "no messages", 2, entry=SHAREGPT),
    Case("only empty lists", lines({"conversations": []}), STOPS, "no messages", 1, entry=SHAREGPT),
    Case("a null list", lines(TALK, {"conversations": None}), STOPS, "not a list of messages", 2, entry=SHAREGPT),
    Case("a null text", lines(TALK, talk(("human", None), ("gpt", "b"))), STOPS, "message from user", 2, entry=SHAREGPT),
    Case("a role that is a list", lines({"conversations": [{"from": ["human"], "value": "a"}]}), STOPS, "none of the roles", 1, entry=SHAREGPT),
    Case("a text made of parts", lines(talk(("human", [{"type": "text"}]), ("gpt", [{"type": "text"}]))), STOPS, "message from user", 1, entry=SHAREGPT),
    Case("a message without a role", lines(TALK, {"conversations": [{"value": "a"}, {"from": "gpt", "value": "b"}]}), 1, "'None'", 2, entry=SHAREGPT),
    Case("role and content without tags", lines(chat(("user", "a"), ("assistant", "b"))), STOPS, "no message has",
         entry={**SHAREGPT, "columns": {"messages": "messages"}}),
    Case("role and content with tags", lines(chat(("user", "a"), ("assistant", "b"))), 1, entry=CHATML),
    Case("a system text without its tag", lines(chat(("system", "s"), ("user", "a"), ("assistant", "b"))), STOPS, "'system'", 1, entry=CHATML),
    Case("a system text with its tag", lines(chat(("system", "s"), ("user", "a"), ("assistant", "b"))), 1, entry=SYSTEM),
    Case("a null system message", lines(chat(("system", None), ("user", "a"), ("assistant", "b"))), 1, entry=SYSTEM),
    Case("another column than mapped", lines(chat(("user", "a"), ("assistant", "b"))), STOPS, "'conversations'", entry=SHAREGPT),
    Case("a function call", lines(talk(("human", "a"), ("function_call", CALL), ("observation", "o"), ("gpt", "b"), tools=TOOL)), 1, entry=TOOLED),
    Case("a function call that is not JSON", lines(talk(("human", "a"), ("function_call", "f(1)"))), STOPS, "function call is not JSON", 1, entry=SHAREGPT),
    Case("a function call without arguments", lines(talk(("human", "a"), ("function_call", '{"name": "f"}'))), STOPS, "lacks name", 1, entry=SHAREGPT),
    Case("a thought before a function call", lines(talk(("human", "a"), ("function_call", "<think>\nx\n</think>\n\n" + CALL))), 1, entry=SHAREGPT),
    Case("tools that are not JSON", lines({**TALK, "tools": "[{"}), STOPS, "tools are not JSON", 1, entry=TOOLED),
    Case("tools that are a list", lines({**TALK, "tools": [{"name": "f"}]}), STOPS, "tools are not a string", 1, entry=TOOLED),
    Case("tools that are one object", lines({**TALK, "tools": '{"name": "f"}'}), STOPS, "not a list of objects", 1, entry=TOOLED),
    Case("no tools", lines({**TALK, "tools": ""}, {**TALK, "tools": None}, {**TALK, "tools": "[]"}), 3, entry=TOOLED),
    Case("pt on talks", lines(TALK), 1, stage="pt", entry=SHAREGPT),
    Case("pt on a broken talk", lines(TALK, talk(("gpt", "a"))), STOPS, "other side", 2, stage="pt", entry=SHAREGPT),
    Case("openai without tags", lines(chat(("user", "a"), ("assistant", "b"))), STOPS, "no message has",
         entry={"formatting": "openai", "columns": {"messages": "messages"}}),
    Case("openai with tags", lines(chat(("user", "a"), ("assistant", "b"))), 1, entry=OPENAI),
    Case("openai tool calls", lines({"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "b"}]}), 1, entry=OPENAI),
    Case("openai with an unknown role", lines(chat(("user", "a"), ("robot", "b"))), STOPS, "'robot'", 1, entry=OPENAI),
    Case("openai with two users", lines(chat(("user", "a"), ("assistant", "b")), chat(("user", "a"), ("user", "b"))), 1, "other side", 2, entry=OPENAI),
]  # fmt: skip

PAIRS = [
    Case("pairs", lines(pair(), pair()), 2, stage="rm", entry=RANKED),
    Case("dpo pairs", lines(pair()), 1, stage="dpo", entry=RANKED),
    Case("no rejected column", lines({"instruction": "a", "input": "", "chosen": "b"}), STOPS, "no row has the column 'rejected'", stage="rm", entry=RANKED),
    Case("a null rejected", lines(pair(), pair("a", None)), 1, "not both there", 2, stage="rm", entry=RANKED),
    Case("the same twice", lines(pair(), pair("a", "a")), 2, "are the same", 2, stage="rm", entry=RANKED),
    Case("an empty rejected", lines(pair(), pair("a", "")), 2, "is empty", 2, stage="rm", entry=RANKED),
    Case("pairs of messages", lines(talk(("human", "a"), chosen=SAID, rejected=SAID)), 1, "are the same", 1, stage="rm", entry=RANKED_TALK),
    Case("pairs after an answer", lines(talk(("human", "a"), chosen=SAID, rejected=SAID), talk(("human", "a"), ("gpt", "b"), chosen=SAID, rejected=SAID)),
         1, "must end with the user", 2, stage="rm", entry=RANKED_TALK),
    Case("pairs from an unknown role", lines(talk(("human", "a"), chosen={"from": "robot", "value": "x"}, rejected=SAID)), STOPS, "'robot'", 1, stage="rm", entry=RANKED_TALK),
    Case("pairs of texts with messages", lines(talk(("human", "a"), chosen="x", rejected="y")), STOPS, "not both there", 1, stage="rm", entry=RANKED_TALK),
    Case("a pair with a null text", lines(talk(("human", "a"), chosen={"from": "gpt", "value": None}, rejected=SAID)), STOPS, "message from assistant", 1, stage="rm", entry=RANKED_TALK),
    Case("kto", lines(alpaca(label=True), alpaca(label=False)), 2, stage="kto", entry=KTO),
    Case("kto labels as texts", lines(alpaca(label="true"), alpaca(label="false")), STOPS, "not true or false", 1, stage="kto", entry=KTO),
    Case("kto labels as numbers", lines(alpaca(label=1), alpaca(label=0)), STOPS, "not true or false", 1, stage="kto", entry=KTO),
    Case("kto with one class", lines(alpaca(label=True), alpaca(label=True)), 2, "every label is true", stage="kto", entry=KTO),
    Case("kto with a null label", lines(alpaca(label=True), alpaca(label=None), alpaca(label=False)), 2, "not true or false", 2, stage="kto", entry=KTO),
    Case("kto with a null label and an empty answer", lines(alpaca(label=True), alpaca("", label=None), alpaca(label=False)),
         STOPS, "in KTO a row takes", stage="kto", entry=KTO),
    Case("kto with a null answer", lines(alpaca(label=True), alpaca(None, label=False)), STOPS, "message from assistant", 2, stage="kto", entry=KTO),
    Case("kto talks", lines({**TALK, "label": True}, {**TALK, "label": False}), 2, stage="kto", entry=KTO_TALK),
    Case("kto with a broken talk", lines({**TALK, "label": True}, talk(("gpt", "a"), label=True), {**TALK, "label": False}),
         STOPS, "in KTO a row takes", stage="kto", entry=KTO_TALK),
    Case("prediction without an answer", lines(alpaca(None), GOOD), 2, generate=True),
    Case("prediction with a broken talk", lines(TALK, talk(("gpt", "a"), ("gpt", "b"))), 1, "other side", 2, entry=SHAREGPT, generate=True),
]  # fmt: skip

CASES = [*FILES, *ALPACA, *TALKS, *PAIRS]
