"""YAML as recipes are written: nodes that know their lines, within bounds that a page of settings never reaches."""

import re
import warnings
from functools import cache
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..errors import Place, Problem, ProblemsFound, full_width

MOST_NODES = 10_000  # keys and values, each alias counted as all that it stands for
DEEPEST = 50
LONGEST_NUMBER = 100  # characters; what is longer is a text, which no argument takes for a number
SMALLER = "a recipe is a page of `key: value` lines; remove what is no setting"
STANDARD = "tag:yaml.org,2002:"
MERGE = f"{STANDARD}merge"
KINDS = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "value", "merge")
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # neither a file's name nor a variable nor JSON can hold these


class NoRecipe(MarkedYAMLError):
    """YAML that is no recipe's: what is wrong at a mark, and the fix."""

    def __init__(self, what: str, fix: str, mark: Any) -> None:
        super().__init__(problem=what, problem_mark=mark)
        self.fix = fix


class _Bounded(Composer):
    """Composes nodes and stops at the first that goes beyond the bounds, however little text it takes to say it."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self.nodes = 0
        self.measured: dict[int, tuple[int, int]] = {}  # of a finished node: its size and depth, aliases expanded

    def compose_node(self, parent: Any, index: Any) -> Node:
        mark = self.parser.peek_event().start_mark
        alias = self.parser.check_event(AliasEvent)
        self.nodes += 1
        if self.nodes > MOST_NODES or self.depth >= DEEPEST:
            raise _too_much(mark)
        node: Node = super().compose_node(parent, index)
        if not alias:
            _refuse_odd(node)
            self.measured[id(node)] = self._measure(node, mark)
        elif id(node) not in self.measured:
            raise NoRecipe("a value that holds itself", "write the value out", mark)
        return node

    def _measure(self, node: Node, mark: Any) -> tuple[int, int]:
        inner = [self.measured[id(each)] for each in _children(node)]
        size, depth = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        if size > MOST_NODES or depth > DEEPEST:
            raise _too_much(mark)
        return size, depth


def _too_much(mark: Any) -> NoRecipe:
    what = f"not a recipe: over {MOST_NODES} values, aliases counted, or nested over {DEEPEST} deep"
    return NoRecipe(what, SMALLER, mark)


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _refuse_odd(node: Node) -> None:
    """Refuse a node that has no meaning in a recipe, at its own place."""
    mark = node.start_mark
    if str(node.tag).removeprefix(STANDARD) not in KINDS:
        raise NoRecipe(f"a recipe has no use for the YAML tag {node.tag}", "write the value without it", mark)
    if isinstance(node, ScalarNode) and (found := NO_TEXT.search(node.value)):
        raise NoRecipe(f"a text holds the character U+{ord(found[0]):04X}", "remove it: no file or name has it", mark)
    if not isinstance(node, MappingNode):
        return
    seen = set()
    for key, value in node.value:
        if key.tag == MERGE:
            if not all(isinstance(each, MappingNode) for each in _sources(value)):
                raise NoRecipe("`<<` merges mappings, and this is none", "write `<<: *NAME`", key.start_mark)
        elif name_of(key) in seen:
            raise NoRecipe(f'duplicate key "{name_of(key)}"', "remove one of the two lines", key.start_mark)
        else:
            seen.add(name_of(key))


def compose(text: str, file: str) -> Node | None:
    """The one document of a text; None when it is empty. Raises ProblemsFound."""
    reader = _reader()
    reader.Composer = _Bounded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Node | None = reader.compose(text)
    except NoRecipe as error:
        raise _found(error.problem, error.fix, file, error) from None
    except MarkedYAMLError as error:
        if error.context == "while scanning a simple key":
            error.problem_mark = error.context_mark  # a missing colon is noticed on the line below
        what, line = f"not YAML: {error.problem or error.context}", _line(text, error)
        fix = full_width(line.partition(":")[0]) or "YAML wants `key: value`, one a line, a space behind the colon"
        fix = "replace the tab by spaces" if "\\t" in what or "\t" in line else fix
        raise _found(what, fix, file, error) from None
    except (YAMLError, ValueError, LookupError, NotImplementedError, AttributeError, TypeError) as error:
        # ruamel raises bare errors for odd directives and characters
        what = f"not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise _found(what, "YAML wants `key: value`, one a line", file, None) from None
    return found


def _reader() -> YAML:
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)  # LLaMA-Factory reads YAML 1.1: `no` is false
    return reader


def _found(what: str, fix: str, file: str, error: MarkedYAMLError | None) -> ProblemsFound:
    mark = error and (error.problem_mark or error.context_mark)
    return ProblemsFound([Problem(what, fix, Place(file, mark.line + 1 if mark else 1))])


def _line(text: str, error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    return lines[mark.line] if mark and mark.line < len(lines) else ""


def name_of(key: Node) -> str:
    return str(key.value if isinstance(key, ScalarNode) else plain(key))


def pairs(mapping: Node) -> dict[str, tuple[Node, Node]]:
    """Key -> the nodes of key and value; what `<<` merges gives way to the mapping's own."""
    found = {name_of(key): (key, value) for key, value in mapping.value if key.tag != MERGE}
    for key, value in mapping.value:
        for source in _sources(value) if key.tag == MERGE else ():
            found = {**pairs(source), **found}
    return found


def _sources(value: Node) -> list[Node]:
    return list(value.value) if isinstance(value, SequenceNode) else [value]


def plain(node: Node | None) -> Any:
    """Plain Python from a node; a date stays the text that it is."""
    if isinstance(node, MappingNode):
        return {name: plain(value) for name, (_, value) in pairs(node).items()}
    if isinstance(node, SequenceNode):
        return [plain(inner) for inner in node.value]
    kind = str(node.tag).removeprefix(STANDARD) if node else "null"
    if node is None or kind == "null":
        return None
    if kind not in ("bool", "int", "float") or len(node.value) > LONGEST_NUMBER:
        return node.value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ruamel warns of `2e-4`, which is read as the number it means
            return getattr(_constructor(), f"construct_yaml_{kind}")(node)
    except (ValueError, LookupError):
        return node.value  # `0x_` and `!!int x` are no numbers


@cache
def _constructor() -> Any:
    return _reader().constructor
