"""The verb init: a project of one's own, outside a clone of the kit's repository."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .. import runs
from ..errors import Misused
from ..tables import SHIPPED
from . import show

BEGINNING = SHIPPED / "project"
Where = Annotated[Path, typer.Argument(metavar="[DIR]", help="A folder, made if it is not there; else this one.")]


def init(folder: Where = Path()) -> None:
    """Lay out recipes/, data/, a Makefile and the script that trains behind a closed terminal; overwrite nothing."""
    for source in sorted(path for path in BEGINNING.rglob("*") if path.is_file()):
        target = folder / source.relative_to(BEGINNING)
        there = target.exists() or target.is_symlink()
        if not there:
            _lay(source, target)
        show.line(f"{'kept as it was' if there else 'made'}: {target}")
    show.line("the kit's own recipes and data sets are found beside yours: iis-finetune recipes")
    way = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder.resolve()))} && "
    show.line(f"next: {way}iis-finetune check mine")


def _lay(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        runs.write(target, source.read_text(encoding="utf-8"))
        target.chmod(target.stat().st_mode | source.stat().st_mode & 0o111)  # a script stays one
    except FileExistsError as error:
        raise Misused(f"'{error.filename}' is no folder, and one has to be there", "rename it") from None
    except OSError as error:
        raise Misused(
            f"{target.parent}: {str(error.strerror).lower()}", "init DIR, one that you may write into"
        ) from None
