"""The rules of the design that a machine can hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "iis_finetune"
LAYERS = [
    {"errors", "decision"},
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
APART = {"probe", "hook", "tables", "__init__", "__main__"}  # children's programs, data, the package itself
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
