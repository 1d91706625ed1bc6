"""The `kit:` block of a recipe: what LLaMA-Factory cannot decide."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import COMMAND_LINE, Problem, did_you_mean
from .entry import Entry

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
LONGEST_SHOWN = 80
LONGEST_VARIABLE = 100_000  # Linux starts no program with a longer one than 128 KiB


class FromScratch(BaseModel):
    """A random-weight Qwen2 model and its tokenizer, made here: nothing is downloaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # Kit checks it: 5 ms less

    vocabulary_size: int = Field(gt=300, description="tokens of the byte-level BPE tokenizer, special ones included")
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    attention_heads: int = Field(gt=0)
    key_value_heads: int = Field(gt=0)
    tie_word_embeddings: bool = True
    seed: int = 42
    text: str = Field(description="data set, as registered, that the tokenizer is trained on")


def _numbers(given: Any) -> Any:
    """`0,1`, as the variables of the vendors have it, is a list."""
    named = isinstance(given, str) and re.fullmatch(r"\d+(,\d+)+", given)
    return [int(each) for each in given.split(",")] if named else given


class Kit(BaseModel):
    """The `kit:` block: what LLaMA-Factory cannot decide."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str | None = Field(None, description="one line for `iis-finetune recipes`")
    source: Literal["auto", "huggingface", "modelscope"] = Field("auto", description="where the base model comes from")
    precision: Literal["auto", "fp32", "fp16", "bf16", "as-saved"] = Field(
        "auto", description="what the training really runs in; as-saved keeps what the checkpoint holds"
    )
    attention: Literal["auto", "disabled", "sdpa", "fa2"] = Field("auto", description="attention implementation")
    launcher: Literal["auto", "single", "ddp", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp"] = Field(
        "auto", description="how the processes share the model"
    )
    global_batch_size: int | None = Field(
        None, ge=1, description="micro-batch x accumulation x processes; accumulation is computed from it"
    )
    base: str | None = Field(None, description="recipe whose result is this one's base; run first when it is missing")
    reward: str | None = Field(
        None, description="recipe of stage rm that stage ppo learns from; run first when missing"
    )
    evaluate_after: str | None = Field(None, description="data set that base and tuned answer after training")
    devices: Annotated[int | list[int] | None, BeforeValidator(_numbers)] = Field(
        None, description="how many devices, or which: 2, or [0, 1]"
    )
    env: dict[Variable, Annotated[str, Field(max_length=LONGEST_VARIABLE)] | int | float | bool] = Field(
        default_factory=dict, description="environment variables of the training processes"
    )
    notify: str | None = Field(None, description="command, or env:NAME of a webhook URL, told of end and failure")
    on_failure: Literal["recover", "stop"] = Field("recover", description="whether the supervisor may restart a run")
    from_scratch: FromScratch | None = Field(None, description="make the model_name_or_path folder when it is missing")


def as_meant(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The entries, and beside each misspelt one the key that it is meant for: what is planned is what was meant."""
    meant = {}
    for key, entry in entries.items():
        near = difflib.get_close_matches(key.removeprefix("kit."), Kit.model_fields, n=1)
        name = f"kit.{near[0]}" if near else key
        if name != key and entry.stands_above(entries.get(name)):
            meant[name] = replace(entry, key=name)
    return {**entries, **meant}


def build(entries: Mapping[str, Entry]) -> tuple[Kit, list[Problem]]:
    """Build the kit block; a key that is wrong is reported and left at its default."""
    values = {key.removeprefix("kit."): entry.value for key, entry in entries.items() if entry.value is not None}
    try:
        return Kit.model_validate(values), []
    except ValidationError as error:
        first = {_dotted(details): details for details in reversed(error.errors())}  # a union has one for each kind
        problems = [_kit_problem(details, entries) for details in reversed(first.values())]
        bad = {str(details["loc"][0]) for details in error.errors()}
        return Kit.model_validate({key: value for key, value in values.items() if key not in bad}), problems


def _dotted(details: Any) -> str:
    """The key as a person writes it; behind a union pydantic adds the kind that it tried."""
    where = details["loc"] if details["loc"][0] in ("env", "from_scratch") else details["loc"][:1]
    return "kit." + ".".join(str(part) for part in where)


def _kit_problem(details: Any, entries: Mapping[str, Entry]) -> Problem:
    name = f"kit.{details['loc'][0]}"
    dotted = _dotted(details)
    place = entries[name].place
    if details["type"] == "extra_forbidden":
        known = FromScratch.model_fields if len(details["loc"]) > 1 else Kit.model_fields
        prefix = "kit." if place.file == COMMAND_LINE else ""
        names = [f"{prefix}{each}" for each in known]
        fix = did_you_mean(f"{prefix}{details['loc'][-1]}", names, f"kit keys: {', '.join(known)}", 0.6)
        return Problem(f"unknown key '{dotted}'", fix, place)
    if details["loc"][-1] == "[key]":
        what = f"{str(details['input'])!r} cannot be the name of a variable"
        return Problem(what, "write letters, digits and underscores", place)
    given = repr(details["input"])
    given = given if len(given) <= LONGEST_SHOWN else f"{given[:LONGEST_SHOWN]}..."
    what = f"{dotted} is {given}: {details['msg'][0].lower()}{details['msg'][1:]}"
    choices = map(str, get_args(Kit.model_fields[name.removeprefix("kit.")].annotation))
    otherwise = "see `iis-finetune schema`, or leave the line out"
    return Problem(what, did_you_mean(given.strip("'"), choices, otherwise, 0.6), place)
