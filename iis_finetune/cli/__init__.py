"""The verbs; the only part that prints and exits."""

import errno
import gc
import os
import re
import sys
import traceback
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile

import typer
from typer.exceptions import TyperException

from .. import __version__
from ..errors import BUG, COMMAND_LINE, FINE, INPUT, INTERRUPTED, KitError, Misused, Place, Problem, ProblemsFound
from . import show, streams

VERBS = {
    # verb: where its function is, what `--help` says of it. Only the module of the verb that is asked for is imported.
    "init": ("init.init", "Lay out a project of your own: recipes, data, Makefile."),
    "recipes": ("recipes.recipes", "List the recipes, with model, method and memory need."),
    "check": ("plan.check", "Every problem of a recipe, before anything starts."),
    "plan": ("plan.plan", "What would run: arguments, environment, memory, and why."),
    "machines": ("machines.machines", "The machines that --on takes, and what is known of each."),
    "doctor": ("doctor.doctor", "This machine: what is wrong with it, and the fix."),
    "download": ("download.download", "Fetch a base model, resumable and verified."),
    "models": ("download.models", "The base models on disk."),
    "data": ("rows.app", "Register, look at and check your own data sets."),
    "tune": ("tune.tune", "Measure a recipe's settings on this machine; the plan uses the best."),
    "train": ("train.train", "Check, fetch what is missing, train, watch."),
    "slurm": ("plan.slurm", "A Slurm job of a recipe, over one machine or several."),
    "runs": ("runs.runs_", "List the runs, or delete one."),
    "status": ("runs.status", "One run: state, step, loss, processes, events."),
    "watch": ("runs.watch", "Follow a run; Ctrl-C leaves it running."),
    "logs": ("runs.logs", "What LLaMA-Factory printed."),
    "stop": ("runs.stop", "End a run with a checkpoint."),
    "resume": ("train.resume", "Go on from the newest good checkpoint."),
    "evaluate": ("evaluate.evaluate", "Base against tuned on held-out rows."),
    "export": ("tuned.export", "Merge the adapter, and prove that it is the same model."),
    "chat": ("tuned.chat", "Talk to the tuned model."),
    "serve": ("tuned.serve", "An OpenAI-style server of the tuned model."),
    "report": ("evaluate.report", "One page about a run, or several."),
    "push": ("push.push", "Give the result away: listed first, then verified."),
    "schema": ("recipes.schema", "The JSON schema of recipes, for editors."),
    "_train": ("train.detached", ""),
    "_notify": ("train.notice", ""),
}


OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM),
}


def application(asked: Collection[str]) -> typer.Typer:
    """Every verb under its name; those that are not asked for are names only, so that start-up stays short."""
    app = typer.Typer(
        name="iis-finetune",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(version)
    for verb, (place, text) in VERBS.items():
        module, _, name = place.partition(".")
        found = getattr(import_module(f".{module}", __name__), name) if verb in asked else _not_asked
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb)
        else:
            app.command(verb, help=None if verb in asked else text, hidden=verb.startswith("_"))(found)
    return app


def _not_asked() -> None:
    """Stands for a verb in the list of `--help`."""


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
    gc.set_threshold(200_000, 50, 50)  # Python's own 700 looks for garbage hundreds of times while a verb starts
    streams.make_lasting()
    code = run()
    unsaid = streams.ending()
    if unsaid:
        show.aside(unsaid)
    sys.stderr.flush()
    os._exit(code)  # nothing is left to do: taking the interpreter down would cost every verb 40 ms more


def run() -> int:
    """Run the verb that `sys.argv` names; its exit code."""
    try:
        return int(application(_asked())(_words(), standalone_mode=False) or 0)
    except KitError as error:
        return _report(error)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except TyperException as error:
        return _misused(getattr(error, "format_message", error.__str__)())
    except SystemExit as left:
        return int(left.code or 0)
    except Exception as error:  # noqa: BLE001 - the last resort: a bug of ours becomes one sentence and a log
        return _last_resort(error)


def _asked() -> list[str]:
    """The verb that is typed; a shell that asks how to complete a line hands that over beside the arguments."""
    words = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS")
    return words.split()[1:2] if words and "_IIS_FINETUNE_COMPLETE" in os.environ else sys.argv[1:2]


def _words() -> list[str]:
    """What is typed, from below a project in the project's folder."""
    words = sys.argv[1:]
    if wide := next((word for word in words if re.match("[—–−－]+[a-z]", word)), None):
        raise Misused(f"'{wide}' begins with a full-width dash", f"type '--{wide.lstrip('—–−－')}'")
    if words[:1] and words[0] in VERBS and words[0] != "init" and "--help" not in words:
        from .words import in_project

        return in_project(words)
    return words


def _misused(said: str) -> int:
    """typer's complaint without our hidden verbs, and where to look; a verb of several, typed alone, gets its help."""
    from ..arguments import table

    if said.startswith("Usage:"):
        show.line(said)
        return FINE
    said = re.sub(r", '_\w+'", "", said)
    option = re.match(r"No such option: --([\w-]+)", said)
    name = option[1].replace("-", "_") if option else ""
    verb = f" {sys.argv[1]}" if sys.argv[1:] and sys.argv[1] in VERBS else ""
    known = name in table() if option else False
    fix = f"without dashes: {name}=VALUE" if known else f"see `iis-finetune{verb} --help`"
    if name == "on":  # nothing is trained on another machine from here
        fix = "iis-finetune plan RECIPE --on MACHINE, or check; train takes this machine as it is"
    return _report(ProblemsFound([Problem(said, fix, Place(COMMAND_LINE))]))


def _report(error: KitError) -> int:
    if not isinstance(error, ProblemsFound):
        show.aside(f"error: {error}")
    else:
        if "--json" in sys.argv:
            show.document({"recipe": None, "machine": None, "problems": [each.as_json() for each in error.problems]})
        show.problems(error.problems)
    return error.exit_code


def _of_the_machine(error: OSError) -> ProblemsFound | None:
    """What the system refuses is told in its own words: rights and room are the user's to give."""
    if error.errno == errno.ENAMETOOLONG:
        what = f"'{str(error.filename)[:40]}...' is too long for the name of a file"
        return ProblemsFound([Problem(what, "give the path of something that is there", Place())])
    if error.errno not in OF_THE_MACHINE:
        return None
    what = f"{error.filename or 'a file'}: {(error.strerror or '').lower()}"
    return ProblemsFound([Problem(what, "see to the rights and the room of that folder", Place(), kind="machine")])


def _not_installed(error: ModuleNotFoundError) -> ProblemsFound | None:
    """A package that only some verbs need; one of our own modules that is not there is a bug."""
    from ..preflight import fitting

    name = (error.name or __package__).partition(".")[0]
    if name == __package__.partition(".")[0]:
        return None
    package = {"sklearn": "scikit-learn"}.get(name, name.replace("_", "-"))
    what = f"this needs the package {package}, which is not installed"
    return ProblemsFound([fitting(Problem(what, f"pip install {package}", kind="missing"), Path(sys.prefix))])


def _last_resort(error: Exception) -> int:
    refused = _of_the_machine(error) if isinstance(error, OSError) else None
    refused = _not_installed(error) if isinstance(error, ModuleNotFoundError) else refused
    if refused:
        return _report(refused)
    with NamedTemporaryFile("w", prefix="iis-finetune-", suffix=".log", delete=False) as log:
        log.write(f"iis-finetune {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n{traceback.format_exc()}")
    show.aside(f"error: this is a bug in iis-finetune, not your mistake; please report it with {Path(log.name)}")
    return BUG
