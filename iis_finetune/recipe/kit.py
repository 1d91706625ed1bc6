"""The `kit:` block of a recipe: what LLaMA-Factory cannot decide."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from msgspec import Meta, Struct, convert, json
from msgspec.structs import fields, replace

from ..errors import COMMAND_LINE, Problem, did_you_mean
from .entry import Entry

NAME = "[A-Za-z_][A-Za-z0-9_]*"
LONGEST_SHOWN = 80
LONGEST_VARIABLE = 100_000  # Linux starts no program with a longer one than 128 KiB

Size = Annotated[int, Meta(gt=0)]
Variable = Annotated[str, Meta(pattern=f"^{NAME}$")]
Value = Annotated[str, Meta(max_length=LONGEST_VARIABLE)] | int | float | bool


class FromScratch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A random-weight Qwen2 model and its tokenizer, made here: nothing is downloaded."""

    vocabulary_size: Annotated[
        int, Meta(gt=300, description="tokens of the byte-level BPE tokenizer, special ones included")
    ]
    hidden_size: Size
    intermediate_size: Size
    layers: Size
    attention_heads: Size
    key_value_heads: Size
    tie_word_embeddings: bool = True
    seed: int = 42
    text: Annotated[str, Meta(description="data set, as registered, that the tokenizer is trained on")]


class Kit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `kit:` block: what LLaMA-Factory cannot decide."""

    description: Annotated[str | None, Meta(description="one line for `iis-finetune recipes`")] = None
    source: Annotated[
        Literal["auto", "huggingface", "modelscope"], Meta(description="where the base model comes from")
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16", "as-saved"],
        Meta(description="what the training really runs in; as-saved keeps what the checkpoint holds"),
    ] = "auto"
    attention: Annotated[Literal["auto", "disabled", "sdpa", "fa2"], Meta(description="attention implementation")] = (
        "auto"
    )
    launcher: Annotated[
        Literal["auto", "single", "ddp", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp"],
        Meta(description="how the processes share the model"),
    ] = "auto"
    global_batch_size: Annotated[
        Size | None, Meta(description="micro-batch x accumulation x processes; accumulation is computed from it")
    ] = None
    base: Annotated[
        str | None, Meta(description="recipe whose result is this one's base; run first when it is missing")
    ] = None
    reward: Annotated[
        str | None, Meta(description="recipe of stage rm that stage ppo learns from; run first when missing")
    ] = None
    evaluate_after: Annotated[str | None, Meta(description="data set that base and tuned answer after training")] = None
    guard: Annotated[str | None, Meta(description="data set of something else: did the training forget it?")] = None
    devices: Annotated[int | list[int] | None, Meta(description="how many devices, or which: 2, or [0, 1]")] = None
    env: Annotated[dict[Variable, Value], Meta(description="environment variables of the training processes")] = {}
    notify: Annotated[
        str | None, Meta(description="command, or env:NAME of a webhook URL, told of end and failure")
    ] = None
    on_failure: Annotated[Literal["recover", "stop"], Meta(description="whether the supervisor may restart a run")] = (
        "recover"
    )
    tuned: Annotated[bool, Meta(description="whether the plan takes what `tune` measured of this training")] = True
    from_scratch: Annotated[
        FromScratch | None, Meta(description="make the model_name_or_path folder when it is missing")
    ] = None


KEYS = Kit.__struct_fields__
TYPES: Mapping[type[Struct], Mapping[str, Any]] = {
    record: {each.name: each.type for each in fields(record)} for record in (Kit, FromScratch)
}


def as_meant(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The entries, and beside each misspelt one the key that it is meant for: what is planned is what was meant."""
    meant = {}
    for key, entry in entries.items():
        near = difflib.get_close_matches(key.removeprefix("kit."), KEYS, n=1)
        name = f"kit.{near[0]}" if near else key
        if name != key and entry.stands_above(entries.get(name)):
            meant[name] = replace(entry, key=name)
    return {**entries, **meant}


def build(entries: Mapping[str, Entry]) -> tuple[Kit, list[Problem]]:
    """Build the kit block; a key that is wrong is reported and left at its default."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, entry in entries.items():
        key, value = name.removeprefix("kit."), entry.value
        if key == "devices":
            value = _numbers(value)
        if value is None:
            continue
        wrong = list(_faults(key, value, entry))
        problems += wrong
        if not wrong:
            values[key] = convert(value, TYPES[Kit][key], strict=False)
    return Kit(**values), problems


def kit_schema() -> dict[str, Any]:
    """The JSON schema of the kit block, with `$defs`."""
    return json.schema(Kit)


def _numbers(given: Any) -> Any:
    """`0,1`, as the variables of the vendors have it, is a list."""
    named = isinstance(given, str) and re.fullmatch(r"\d+(,\d+)+", given)
    return given.split(",") if named else given


def _faults(key: str, value: Any, entry: Entry) -> Iterator[Problem]:
    """All that is wrong with one key, part by part: msgspec names the first fault alone."""
    if key == "env" and isinstance(value, dict):
        for name, held in value.items():
            if re.fullmatch(NAME, str(name)):
                yield from _refused(f"kit.env.{name}", held, Value, entry)
            else:
                what = f"{str(name)!r} cannot be the name of a variable"
                yield Problem(what, "write letters, digits and underscores", entry.place)
    elif key == "from_scratch" and isinstance(value, dict):
        for name, held in value.items():
            yield from _of_record(FromScratch, name, held, entry)
        for each in fields(FromScratch):
            if each.required and each.name not in value:
                yield Problem(f"kit.from_scratch.{each.name} is missing", f"add {each.name} to the block", entry.place)
    else:
        yield from _of_record(Kit, key, value, entry)


def _of_record(record: type[Struct], key: str, value: Any, entry: Entry) -> Iterator[Problem]:
    dotted = f"kit.{key}" if record is Kit else f"kit.from_scratch.{key}"
    if key in TYPES[record]:
        yield from _refused(dotted, value, TYPES[record][key], entry)
        return
    known = record.__struct_fields__
    prefix = "kit." if entry.place.file == COMMAND_LINE else ""
    fix = did_you_mean(f"{prefix}{key}", [f"{prefix}{each}" for each in known], f"kit keys: {', '.join(known)}", 0.6)
    yield Problem(f"unknown key '{dotted}'", fix, entry.place)


def _refused(dotted: str, value: Any, hint: Any, entry: Entry) -> Iterator[Problem]:
    """A value that is not of its type."""
    try:
        convert(value, hint, strict=False)
    except ValueError as error:
        reason = str(error).partition(" - at ")[0].replace(" | null", "")
        given = repr(value) if len(repr(value)) <= LONGEST_SHOWN else f"{repr(value)[:LONGEST_SHOWN]}..."
        choices = _choices(hint)
        fix = did_you_mean(str(value), choices, "see `iis-finetune schema`, or leave the line out", 0.6)
        if choices:
            reason = f"expected {', '.join(choices[:-1])} or {choices[-1]}"
        yield Problem(f"{dotted} is {given}: {reason[0].lower()}{reason[1:]}", fix, entry.place)


def _choices(hint: Any) -> tuple[str, ...]:
    """The words that a key takes; none when it takes no fixed ones."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(kind) if get_origin(kind) is Literal else ()
