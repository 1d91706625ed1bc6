"""All that is printed: problems, tables, documents; rich on a terminal, plain lines otherwise."""

import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from ..errors import Problem, errors_of, exit_code

METER_AFTER_SECONDS, METER_LINE_SECONDS = 2.0, 10.0  # before the first word; between two lines
# What a terminal obeys or shows in another order than it stands in, and halves of characters, which are no text.
UNSHOWN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def line(text: str = "") -> None:
    """A line of what was asked for, to stdout."""
    print(shown(text), flush=True)  # noqa: T201


def page(text: str) -> None:
    """Lines that were made from text which went through `shown`, with the kit's own colours in them."""
    print(text.rstrip(), flush=True)  # noqa: T201


def aside(text: str, mark: str = "") -> None:
    """A line beside it, to stderr, behind a mark that is the kit's own."""
    print(mark + shown(text), file=sys.stderr, flush=True)  # noqa: T201


def shown(text: str) -> str:
    """Text of any origin with its control characters written out, as JSON does: `\\u001b`."""
    return UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def document(content: Any) -> None:
    """One JSON document to stdout."""
    line(json.dumps(content, indent=2, ensure_ascii=False, default=str))


def answer(content: Any, as_json: bool) -> None:
    """What was found as a document, with which a verb ends where one was asked for; people are told it in its place."""
    if as_json:
        document(content)
        raise typer.Exit


def problems(found: Sequence[Problem], nothing_started: bool = True) -> None:
    """Every problem with its place and its fix, then the count; to stderr."""
    for problem in found:
        aside(f": {problem.what}", _coloured(problem.severity))
        if str(problem.where):
            aside(f"  where: {problem.where}")
        aside(f"  fix:   {problem.fix}")
    if found:
        tail = " Nothing was started." if errors_of(found) and nothing_started else ""
        aside(f"{count(found)}.{tail}")


def verdict(
    found: Sequence[Problem], content: dict[str, Any] | None = None, fine: str = "", nothing_started: bool = False
) -> NoReturn:
    """End a look with its document, if one was asked for, else its problems and, without errors, what is said then."""
    if content is not None:
        document({**content, "problems": [each.as_json() for each in found]})
    else:
        problems(found, nothing_started)
        if fine and not exit_code(found):
            line(fine)
    raise typer.Exit(exit_code(found))


def _coloured(severity: str) -> str:
    if not sys.stderr.isatty():
        return severity
    return f"\033[1;{31 if severity == 'error' else 33}m{severity}\033[0m"


def count(found: Sequence[Problem]) -> str:
    """`1 error, 2 warnings`."""
    errors = len(errors_of(found))
    parts = [(errors, "error"), (len(found) - errors, "warning")]
    return ", ".join(f"{number} {name}{'s' * (number != 1)}" for number, name in parts if number) or "no problems"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Collection[int] = ()) -> None:
    """Aligned columns, those of numbers to the right; the last one takes the rest of the line."""
    texts = [[cell(each) for each in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, texts, numbers)
        return
    widths = [max(map(cell_width, column)) for column in zip(columns, *texts, strict=True)]
    for row in [list(columns), *texts]:
        padded = []
        for at, (text, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_width(text))
            padded.append(space + text if at in numbers else text + space)
        line("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], texts: Sequence[Sequence[str]], numbers: Collection[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for at, column in enumerate(columns):
        grid.add_column(column, overflow="fold", justify="right" if at in numbers else "left")
    for row in texts:
        grid.add_row(*map(Text, row))
    Console().print(grid)


def cell(value: Any) -> str:
    """How a value is printed: `-` when unknown, four digits of a fraction."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else shown(str(value)).replace("\n", " ")


def cell_width(text: str) -> int:
    """Columns on a terminal; Chinese characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def duration(seconds: float | None) -> str:
    """`2 d 03 h`, `1 h 05 min`, `4 min 10 s`, `12 s`; `-` when unknown."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600:02} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


@contextmanager
def meter(what: str) -> Iterator[Callable[[float], None]]:
    """On stderr, a bar (lines, if that is no terminal) for what takes a while; it is told the share done, 0 to 1."""
    bars: list[Any] = []
    began = told = time.monotonic()

    def move(share: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - began <= METER_AFTER_SECONDS or share <= 0:
            return
        if sys.stderr.isatty():
            if not bars:
                bars.append(progress_bars(transient=True))
                bars[0].add_task(what, total=1.0)
            bars[0].update(bars[0].task_ids[0], completed=share)
        elif now - told > METER_LINE_SECONDS or told == began:
            told = now
            aside(f"{what}: {share:.0%}, {duration((now - began) * (1 - share) / share)} left")

    try:
        yield move
    finally:
        for bar in bars:
            bar.stop()


def progress_bars(*columns: Any, transient: bool = False) -> Any:
    """rich's bars on stderr, started; its own columns where none are given."""
    from rich.console import Console
    from rich.progress import Progress

    bars = Progress(*columns, console=Console(stderr=True), transient=transient)
    bars.start()
    return bars
