"""The verbs; the only part that prints and exits."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

import typer
from typer.exceptions import TyperException

from .. import __version__
from ..errors import BUG, INPUT, INTERRUPTED, KitError, ProblemsFound
from . import show


def application() -> typer.Typer:
    """Every verb under its name; a verb's module is imported here, its heavy parts when it runs."""
    from . import after, before, data, fetch, life, training

    app = typer.Typer(
        name="iis-finetune",
        help="Fine-tune language models with LLaMA-Factory on the hardware you own.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(version)
    verbs: list[Callable[..., None]] = [before.recipes, before.check, before.plan, fetch.download, fetch.models]
    verbs += [training.train, life.runs_, life.status, life.watch, life.logs, life.stop, training.resume]
    verbs += [after.evaluate, after.export, after.chat, after.serve, after.report, before.schema]
    for verb in verbs:
        app.command()(verb)
    app.command("_train", hidden=True)(training.detached)
    app.command("_notify", hidden=True)(training.notice)
    app.add_typer(data.app, name="data")
    return app


def _print_version(asked: bool) -> None:
    if asked:
        show.line(f"iis-finetune {__version__}")
        raise typer.Exit


def version(
    _version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version."
    ),
) -> None:
    """Fine-tune language models with LLaMA-Factory on the hardware you own."""


def main() -> None:
    """Run a verb and exit with its code; a user's mistake never shows a trace."""
    sys.argv += ["--help"] * (len(sys.argv) == 1)
    sys.exit(_code())


def _code() -> int:
    try:
        return int(application()(standalone_mode=False) or 0)
    except KitError as error:
        return _report(error)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except TyperException as error:
        said = getattr(error, "format_message", error.__str__)()
        show.aside(f"error: {said}\n  where: command line\n  fix:   see `iis-finetune --help`")
        return INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe has gone: no trace
        return 0
    except Exception:  # noqa: BLE001 - the last resort: a bug of ours becomes one sentence and a log
        return _bug()


def _report(error: KitError) -> int:
    if not isinstance(error, ProblemsFound):
        show.aside(f"error: {error}")
    else:
        if "--json" in sys.argv:
            show.document({"recipe": None, "machine": None, "problems": [each.as_json() for each in error.problems]})
        show.problems(error.problems)
    return error.exit_code


def _bug() -> int:
    with NamedTemporaryFile("w", prefix="iis-finetune-", suffix=".log", delete=False) as log:
        log.write(f"iis-finetune {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n{traceback.format_exc()}")
    show.aside(f"error: this is a bug of iis-finetune, not a mistake of yours; please report it with {Path(log.name)}")
    return BUG
