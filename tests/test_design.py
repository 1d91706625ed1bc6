"""The rules of the design that a machine can hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from iis_finetune.arguments import frozen_table

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "iis_finetune"
LAYERS = [
    {"errors", "decision", "tables"},
    {"process", "wheels", "tensors"},
    {"recipe", "machine", "runs"},
    {"arguments"},
    {"dataset", "hub"},
    {"models"},
    {"rules"},
    {"plan"},
    {"preflight"},
    {"launch"},
    {"observe", "recover", "notify"},
    {"supervise", "doctor"},
    {"evaluate", "export", "report"},
    {"tune"},
    {"session"},
    {"cli"},
]
APART = {"probe", "hook", "__init__", "__main__"}  # children's programs, the package itself
TABLE = frozen_table()
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def layer_of(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


def imported(path: Path) -> Iterator[str]:
    """The kit's own modules that a file imports, absolute or relative, anywhere in it."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level in (0, depth):
            prefix = "iis_finetune." if node.level else ""
            own = f"{prefix}{node.module or ''}".rstrip(".")
            names = [own] if own != "iis_finetune" else [f"iis_finetune.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("iis_finetune."):
                yield name.split(".")[1]


def test_every_module_has_its_place_in_the_line() -> None:
    known = set().union(*LAYERS) | APART
    assert {module_of(path) for path in FILES} <= known
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_left(path: Path) -> None:
    module = module_of(path)
    if module in APART:
        return
    mine = layer_of(module)
    for other in set(imported(path)) - {module} - {"__version__"}:
        assert other not in APART, f"{module} imports {other}, which is for children only"
        assert layer_of(other) < mine, f"{module} imports {other}, which is not to its left"


def test_the_pages_name_the_rooms_and_the_files_that_there_are() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`(errors [^`]+ \| cli)`", contributing)
    assert [set(part.split()) for part in line.split(" | ")] == LAYERS
    tree = contributing.partition("in the order of the pipeline:")[2].partition("\ntests/")[0]
    rooms = {module_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= set(re.findall(r"\w+", tree))
    changes = re.findall(r"^\| .+", contributing, re.MULTILINE)[1:]
    assert len(changes) == 10
    for change in changes:
        named = re.findall(r"`((?:iis_finetune|tests)/[^`]+)`", change)
        assert named and all((ROOT / name).exists() for name in named), change


OWNERS = {
    "programs are started": (r"\b(subprocess\.(run|Popen|call|check)|os\.(system|exec|spawn|fork|popen))", {"process"}),
    "the network is reached": (
        r"^\s*(?:import|from) (?:httpx|requests|urllib\.request|urllib3|socket|http\.client)",
        {"hub", "notify"},
    ),
    "printing and exiting": (r"(?<![\w.])print\(|sys\.exit\(", {"cli"}),
    "torch and its kin": (r"^\s*(?:import|from) (?:torch|transformers|peft|llamafactory|accelerate)\b", set()),
    "the environment is read": (r"os\.(?:environ|getenv)", {"machine", "cli"}),
}


@pytest.mark.parametrize(("pattern", "owners"), OWNERS.values(), ids=OWNERS.keys())
def test_each_thing_has_a_single_owner(pattern: str, owners: set[str]) -> None:
    for path in FILES:
        if module_of(path) in owners | {"probe", "hook"}:
            continue
        found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
        assert found is None, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"


def test_no_module_is_over_400_lines_and_no_function_over_30() -> None:
    long = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and module_of(path) != "probe":
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 30:
                    long.append(f"{path.name}:{node.lineno} {node.name}: {length} lines")
    assert long == []


def test_nothing_shipped_speaks_of_a_workplace() -> None:
    words = re.compile(r"/work/|\bshared/(?:facts|design)|\bsubagent|\bhelper-\d|\bclaude\b", re.IGNORECASE)
    folders = ("iis_finetune", "scripts", "recipes", "benchmarks", "docs")
    files = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".md", ".sh", ".toml")
    ]
    files += [*ROOT.glob("*.md"), ROOT / "Makefile"]
    assert [str(path) for path in files if words.search(path.read_text(encoding="utf-8"))] == []


def argument_asked_for(node: ast.AST) -> str | None:
    """`x.get("lora_rank")` and `x.value("lora_rank")`: the argument, where LLaMA-Factory has a default for it."""
    match node:
        case ast.Call(func=ast.Attribute(attr="get" | "value"), args=[ast.Constant(value=str(name)), *_]):
            return name if name in TABLE and TABLE[name].default is not None else None
    return None


def private_defaults(tree: ast.AST) -> Iterator[int]:
    """The lines that give an argument a default of their own, as a second parameter or behind `or`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(args=[_, ast.Constant(value=None)]):
                continue
            case ast.Call(args=[_, _]) if argument_asked_for(node):
                yield node.lineno
            case ast.BoolOp(op=ast.Or(), values=[*values, _]) if any(map(argument_asked_for, values)):
                yield node.lineno


def test_only_the_argument_table_knows_a_default() -> None:
    elsewhere = [path for path in FILES if module_of(path) not in {"arguments", "probe", "hook"}]
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in elsewhere
        for line in private_defaults(ast.parse(path.read_text()))
    ]
    assert found == [], "ask arguments.Settings"


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("values.get('finetuning_type') or 'lora'", True),
        ("recipe.value('stage', 'sft')", True),
        ("values.get('per_device_eval_batch_size') or values.get('per_device_train_batch_size') or 1", True),
        ("values.get('lora_rank', None)", False),
        ("values.get('lora_rank')", False),
        ("recipe.value('model_name_or_path') or recipe.kit.base", False),  # LLaMA-Factory has no default for it
        ("row.get('colour') or 'red'", False),
    ],
)
def test_a_private_default_is_recognised(code: str, is_one: bool) -> None:
    assert bool(list(private_defaults(ast.parse(code)))) == is_one


def test_a_class_name_exists_once() -> None:
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
