"""A fix applied by machine: the lines that its sentence says to write or to remove, each way that it offers."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from iis_finetune.arguments import Settings, frozen_table
from iis_finetune.errors import Problem
from iis_finetune.recipe import KIT_KEYS

TABLE = frozen_table()
DEFAULTS = Settings(TABLE)
Lines = dict[str, Any]
ENDS = r"(?=$|'|[,;.)}](?:\s|$|'| )| and | or | for | keeps | in its place)"
LINE = re.compile(r"(?:kit: \{(\w+)|\b(kit\.\w+|\w+)): ('[^']*'|\{[^}]*\}|\"[^\"]*\"|-?[\w.,/@-]*\w)" + ENDS)
NAME = re.compile(r"\b[a-z]\w+\b")


def ways(problem: Problem, recipe: Lines) -> Iterator[Lines]:
    """The recipe after each way of mending that the fix offers and a machine can carry out."""
    for way in re.split(r",? or (?=remove|write|give|use|keep|[a-z][\w.]+: )", problem.fix):
        mended = _carried_out(way, problem.where.key or "", recipe)
        if mended is not None and mended != recipe:
            yield mended


def _carried_out(way: str, blamed: str, recipe: Lines) -> Lines | None:
    if blamed in recipe or blamed in TABLE:
        for pattern, change in VALUES:
            if found := re.search(pattern, way):
                return change(found, blamed, recipe)
    gone = _gone(way, blamed, recipe)
    written = {key: value for key, value in _lines(way) if key not in gone}
    if not written and not gone:
        return None
    kit = {key.removeprefix("kit."): value for key, value in written.items() if key.startswith("kit.")}
    own = {key: value for key, value in recipe.get("kit", {}).items() if f"kit.{key}" not in gone}
    flat = {**recipe, **written, "kit": {**own, **kit}}
    return {key: value for key, value in flat.items() if key not in gone and "." not in key and value != {}}


def _meant(found: re.Match[str], blamed: str, recipe: Lines) -> Lines:
    """A key's right name keeps its value; a value's right name is put in the place of the wrong one."""
    if blamed not in TABLE:
        return {found[1] if key == blamed else key: value for key, value in recipe.items()}
    *before, _ = str(recipe[blamed]).split(",")
    return {**recipe, blamed: ",".join([*before, found[1]])}


def _written(found: re.Match[str], blamed: str, recipe: Lines) -> Lines:
    return {**recipe, blamed: yaml.safe_load(found[1])}


def _one(_: re.Match[str], blamed: str, recipe: Lines) -> Lines:
    return {**recipe, blamed: 1}


def _same(found: re.Match[str], _: str, recipe: Lines) -> Lines:
    return {**recipe, found[2]: recipe.get(found[1], DEFAULTS[found[1]])}


def _without_name(found: re.Match[str], blamed: str, recipe: Lines) -> Lines:
    return {**recipe, blamed: ",".join(name for name in recipe[blamed].split(",") if name != found[1])}


def _once(_: re.Match[str], blamed: str, recipe: Lines) -> Lines:
    return {**recipe, blamed: ",".join(dict.fromkeys(filter(None, recipe[blamed].split(","))))}


VALUES = (
    (r"did you mean '([^']+)'", _meant),
    (r"^write (?:at least |at most |one of: )?(-?[\d.]+)\b", _written),
    (r"^write one of: (\w+)", _written),
    (r"^write (?:more than 0|a whole number|a number other than 0)", _one),
    (r"give (\w+) and (\w+) the same value", _same),
    (r"leave out (\w+)", _without_name),
    (r"name it once|remove the extra comma", _once),
    (r"that 8 divides, such as (\w+)", _written),
    (r"^template: NAME, such as (\w+)", _written),
)


def _gone(way: str, blamed: str, recipe: Lines) -> set[str]:
    """What the sentence removes: `remove a and b`, `no deepspeed line`, `remove the line`, `in its place`."""
    gone = set(re.findall(r"\bno (\w+) line", way))
    said = re.search(r"\bremove ([^;:]*?)(?:,? and write|, with|;|:|,? for|, in|$)", way)
    if said:
        named = {name for name in NAME.findall(said[1]) if name in recipe}
        named |= {f"kit.{name}" for name in re.findall(r"kit\.(\w+)", said[1])}
        gone |= named or ({blamed} if re.match(r"(the|this) line|it\b", said[1]) else set())
    if way.startswith("keep one of"):
        gone.add(blamed)
    return gone | ({blamed} if "in its place" in way else set())


def _lines(way: str) -> Iterator[tuple[str, Any]]:
    for inner, key, text in LINE.findall(way):
        name = f"kit.{inner}" if inner else key
        known = name in TABLE or (name.startswith("kit.") and name.removeprefix("kit.") in KIT_KEYS)
        if known and not re.search(r"\b[A-Z]{3,}\b|\.\.\.", text):
            yield name, yaml.safe_load(text.strip("'"))
