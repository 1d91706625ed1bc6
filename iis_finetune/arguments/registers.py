"""LLaMA-Factory's registers of models and templates, as frozen from its source."""

from functools import cache
from typing import Any

from msgspec import Struct

from .llamafactory import frozen


class Model(Struct, frozen=True):
    """A model that LLaMA-Factory knows; `template` is None for base models that were never tuned for talking."""

    name: str
    huggingface: str | None
    modelscope: str | None
    openmind: str | None
    template: str | None
    multimodal: bool


class Template(Struct, frozen=True):
    """A prompt template; `slots` holds per role texts, `{"special": "bos_token"}` and `{"token": "<|x|>"}`."""

    name: str
    stop_words: tuple[str, ...]
    thought_words: tuple[str, str]
    tool_call_words: tuple[str, str]
    default_system: str
    efficient_eos: bool
    replace_eos: bool
    replace_jinja_template: bool
    reasoning: bool
    multimodal: bool
    tool_format: str | None
    slots: dict[str, list[str | dict[str, str]]]

    @property
    def tokens(self) -> tuple[str, ...]:
        """The stop words and the tokens that the slots name: each must be one token of the model's tokenizer."""
        slots = [slot for role in self.slots.values() for slot in role if isinstance(slot, dict)]
        named = [slot["token"] for slot in slots if "token" in slot]
        return tuple(dict.fromkeys([*self.stop_words, *named]))


@cache
def find_model(hub_id: str) -> Model | None:
    """The model with this Hugging Face, ModelScope or Openmind id, or this display name, whatever the case."""
    wanted = hub_id.strip().rstrip("/").lower()
    for name, row in frozen("models")["models"].items():
        model = Model(name, **row)
        if wanted in {each.lower() for each in (name, model.huggingface, model.modelscope, model.openmind) if each}:
            return model
    return None


@cache
def find_template(name: str) -> Template | None:
    """The template of exactly this name."""
    row: dict[str, Any] | None = frozen("templates")["templates"].get(name)
    if row is None:
        return None
    pairs = {key: tuple(row[key]) for key in ("stop_words", "thought_words", "tool_call_words")}
    return Template(name, **{**row, **pairs})
