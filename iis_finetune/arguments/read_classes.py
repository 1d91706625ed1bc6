"""Read LLaMA-Factory's argument classes from its source with `ast`: nothing of it is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

GROUPS = {
    "ModelArguments": "model",
    "DataArguments": "data",
    "TrainingArguments": "training",
    "FinetuningArguments": "finetuning",
    "GeneratingArguments": "generating",
}
KINDS = {"bool", "int", "float", "str", "list", "dict"}
# Where a few arguments take their words from: package, file, pattern around the table, pattern of a word.
WORDS = {
    "template": ("llamafactory", "data/template.py", r"(?s)^(.*)$", r"\nregister_template\(\s*name=\"([^\"]+)\""),
    "tool_format": ("llamafactory", "data/tool_utils.py", r"(?s)\nTOOLS = \{(.*?)\n\}", r"\"(\w+)\":"),
    "report_to": (
        "transformers",
        "integrations/integration_utils.py",
        r"(?s)\nINTEGRATION_TO_CALLBACK = \{(.*?)\n\}",
        r"\"(\w+)\":",
    ),
}


@dataclass(frozen=True)
class _Source:
    classes: Mapping[str, ast.ClassDef]
    enums: Mapping[str, Mapping[str, str]]


def read_arguments(llamafactory: Path, transformers: Path) -> dict[str, Row]:
    """Name -> kinds, choices, nullable, default, help, group and owner, from the two packages' folders.

    Raises OSError, SyntaxError or LookupError when the source is not laid out as in LLaMA-Factory 0.9.
    """
    trees = [ast.parse(text) for text in _texts(llamafactory, transformers)]
    found = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    enums = {node.name: members for node in found if (members := _members(node))}
    # LLaMA-Factory's TrainingArguments derives from a class of the same name: the later file keeps both apart.
    classes = {_class_name(node): node for node in found}
    source = _Source(classes, enums)
    rows: dict[str, Row] = {}
    for name, group in GROUPS.items():
        for row_name, row in _fields(name, source):
            rows[row_name] = {**row, "group": group}
    packages = {"llamafactory": llamafactory, "transformers": transformers}
    for key, words in _word_lists(packages).items():
        rows[key]["choices"] = words
    return rows


def _texts(llamafactory: Path, transformers: Path) -> Iterator[str]:
    for name in ("training_args", "training_args_seq2seq", "trainer_utils", "debug_utils"):
        yield (transformers / f"{name}.py").read_text("utf-8")
    # The enums stand before 3,000 lines of models, which cost 20 ms to parse.
    yield (llamafactory / "extras" / "constants.py").read_text("utf-8").split("\nregister_model_group(", 1)[0]
    for name in ("model", "data", "finetuning", "training", "generating"):
        yield (llamafactory / "hparams" / f"{name}_args.py").read_text("utf-8")


def _word_lists(packages: Mapping[str, Path]) -> dict[str, list[str]]:
    words = {}
    for key, (package, file, around, word) in WORDS.items():
        table = re.search(around, (packages[package] / file).read_text("utf-8"))
        if not table:
            raise LookupError(f"{file} has no table for {key}")
        words[key] = re.findall(word, table[1])
    words["report_to"] += ["all", "none"]
    return words


def _class_name(node: ast.ClassDef) -> str:
    return "BaseTrainingArguments" if node.name == "TrainingArguments" and not node.bases else node.name


def _members(node: ast.ClassDef) -> dict[str, str]:
    if not any("Enum" in ast.unparse(base) for base in node.bases):
        return {}
    assigned = [item for item in node.body if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)]
    return {ast.unparse(item.targets[0]): str(ast.literal_eval(item.value)) for item in assigned}


def _bases(node: ast.ClassDef) -> list[str]:
    names = [ast.unparse(base) for base in node.bases]
    if node.name == "Seq2SeqTrainingArguments":
        return ["BaseTrainingArguments"]
    return ["Seq2SeqTrainingArguments" if name == "BaseTrainingArguments" else name for name in names]


def _fields(name: str, source: _Source) -> Iterator[tuple[str, Row]]:
    """The fields of a class and its bases; a later pair of the same name overrides, as dataclasses do."""
    node = source.classes[name]
    for base in reversed(_bases(node)):
        if base in source.classes:
            yield from _fields(base, source)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Call):
            call = {word.arg: word.value for word in item.value.keywords}
            if "init" in call and ast.literal_eval(call["init"]) is False:
                continue
            yield ast.unparse(item.target), {**_row(item.annotation, call, source), "owner": node.name}


def _row(annotation: ast.expr, call: Mapping[str | None, ast.expr], source: _Source) -> Row:
    kinds, choices, nullable = _type(annotation, source)
    metadata = call.get("metadata")
    items = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    said = {ast.literal_eval(key): value for key, value in items if key}
    if isinstance(said.get("choices"), ast.List):
        choices = ast.literal_eval(said["choices"])
    default = [] if "default_factory" in call else _default(call.get("default"), source)
    text = ast.literal_eval(said["help"]).replace("%%", "%") if "help" in said else ""
    ordered = sorted(set(kinds), key=kinds.index)
    return {"kinds": ordered, "choices": choices or None, "nullable": nullable, "default": default, "help": text}


def _type(node: ast.expr, source: _Source) -> tuple[list[str], list[Any], bool]:
    """Kinds, choices and whether null is allowed, of one annotation."""
    if isinstance(node, ast.BinOp):
        return _union([node.left, node.right], source)
    if isinstance(node, ast.Constant):
        return [], [], node.value is None
    if isinstance(node, ast.Subscript):
        return _subscript(ast.unparse(node.value), node.slice, source)
    name = ast.unparse(node)
    if name in source.enums:
        return ["str"], list(source.enums[name].values()), False
    if name == "Path":
        return ["str"], [], False
    return ([name] if name in KINDS else []), [], False


def _subscript(outer: str, inner: ast.expr, source: _Source) -> tuple[list[str], list[Any], bool]:
    parts = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
    if outer in {"Optional", "Union"}:
        kinds, choices, nullable = _union(parts, source)
        return kinds, choices, nullable or outer == "Optional"
    if outer == "Literal":
        values = [ast.literal_eval(part) for part in parts]
        return sorted({type(value).__name__ for value in values}), [v for v in values if isinstance(v, str)], False
    return [outer], (_type(parts[0], source)[1] if outer == "list" else []), False


def _union(parts: list[ast.expr], source: _Source) -> tuple[list[str], list[Any], bool]:
    types = [_type(part, source) for part in parts]
    return (
        [kind for kinds, _, _ in types for kind in kinds],
        [choice for _, choices, _ in types for choice in choices],
        any(nullable for _, _, nullable in types),
    )


def _default(node: ast.expr | None, source: _Source) -> Any:
    """A default as plain Python: enum members by value, products multiplied, a class-level name looked up."""
    if node is None:
        return None
    if isinstance(node, ast.Attribute):
        return source.enums[ast.unparse(node.value)][node.attr]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _default(node.left, source) * _default(node.right, source)
    if isinstance(node, ast.Name):
        body = ast.walk(source.classes["BaseTrainingArguments"])
        given = [item for item in body if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == node.id]
        return _default(given[-1].value, source)
    return ast.literal_eval(node)
