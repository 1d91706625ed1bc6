"""The verb doctor: this machine, what to mend, what to install, whether its devices compute."""

import os
import sys
from typing import Annotated

import typer
from msgspec import to_builtins

from .. import doctor as clinic
from .. import machine, recipe
from ..doctor import Subject
from ..errors import INTERRUPTED, Misused, ProblemsFound
from . import show
from .words import AsJson, On, workspace

NO_CARD = "no card was found: if there is one, its driver is missing, see doctor --install-plan --on CARD"
OwnRecipe = Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Look at this recipe's kit.env as well.")]
Quick = Annotated[bool, typer.Option("--quick", help="Leave out whether LLaMA-Factory starts (about 10 s).")]
InstallPlan = Annotated[bool, typer.Option("--install-plan", help="The pip lines for this card, or for --on MACHINE.")]
Probe = Annotated[bool, typer.Option("--probe", help="Compute on every device, in children with a time limit.")]
Processes = Annotated[int | None, typer.Option("--processes", min=2, help="How many processes --probe lets sum.")]
Fix = Annotated[bool, typer.Option("--fix", help="Make the safe repairs: torchvision and torchaudio that cannot load.")]


def doctor(
    own: OwnRecipe = None,
    quick: Quick = False,
    install_plan: InstallPlan = False,
    on: On = None,
    probe: Probe = False,
    processes: Processes = None,
    fix: Fix = False,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: what is wrong with it, what to install, whether its devices compute."""
    _refuse_what_does_not_go_together(
        [name for name, given in (("--install-plan", install_plan), ("--probe", probe), ("--fix", fix)) if given],
        {"--on": "--install-plan" if on else None, "--processes": "--probe" if processes else None},
    )
    environment = dict(os.environ)
    found = machine.profile(on) if on else machine.detect(environment=environment)
    folders = workspace()
    if install_plan:
        _install_plan(clinic.install_plan(found, environment, folders.root), as_json)
        return
    about = recipe.read(own, (), folders.recipes)[0] if own else None
    subject = Subject(found, environment, folders, about)
    if fix:
        _fix(environment, as_json)
    elif probe:
        _probe(subject, processes, as_json)
    else:
        _look(subject, quick, as_json)


def _refuse_what_does_not_go_together(jobs: list[str], needs: dict[str, str | None]) -> None:
    what = f"{' and '.join(jobs)} are different jobs" if len(jobs) > 1 else ""
    for name, job in needs.items():
        what = what or (f"{name} goes with {job} only" if job and job not in jobs else "")
    if what:
        raise Misused(what, "see `iis-finetune doctor --help`")


def _look(subject: Subject, quick: bool, as_json: bool) -> None:
    checks = clinic.examine(subject, quick)
    problems = [problem for check in checks for problem in check.problems]
    if not as_json:
        show.table(("check", "state", "found"), [(check.name, check.state, check.found) for check in checks])
        if not problems:
            cards = "" if subject.machine.devices else f"; {NO_CARD}"
            show.line(f"nothing to mend; the hubs were not asked: iis-finetune download RECIPE tells{cards}")
    document = {"machine": subject.machine.as_json(), "checks": [check.as_json() for check in checks]}
    following = "doctor" if quick else "doctor --probe"
    show.verdict(problems, document if as_json else None, f"next: iis-finetune {following}")


def _install_plan(plan: clinic.InstallPlan, as_json: bool) -> None:
    show.answer(to_builtins(plan), as_json)
    sure = "" if plan.confirmed else "; nobody of this project has run it on such a card"
    show.line(f"# {plan.machine}\n# from: {plan.source}{sure}")
    if plan.note:
        show.line(f"# {plan.note}")
    show.line("\n".join(plan.commands))
    if clinic.CLONE:
        show.aside(f"In {clinic.CLONE} `make setup` does the same, in an environment of its own.")


def _fix(environment: dict[str, str], as_json: bool) -> None:
    done, problems = clinic.mend(environment)
    if not as_json:
        show.line("\n".join(done) or "nothing that could be repaired from here")
    show.verdict(problems, {"done": done} if as_json else None, "next: iis-finetune doctor")


def _probe(subject: Subject, processes: int | None, as_json: bool) -> None:
    host = subject.machine
    if broken := [each for each in machine.build_problems(host) if each.severity == "error"]:
        raise ProblemsFound(broken)
    if clinic.together(host, processes) > 1:
        _warn(subject)
    show.aside("computing in children with a time limit; this takes a minute or so")
    tried = clinic.trials(subject, processes)
    if not as_json:
        rows = [(each.what, each.device, each.state, each.error, each.backward) for each in tried]
        show.table(("trial", "device", "state", "error", "backward"), rows)
    document = {"machine": host.as_json(), "trials": [each.as_json() for each in tried]}
    show.verdict(clinic.problems_of(tried), document if as_json else None, "next: iis-finetune train quickstart")


def _warn(subject: Subject) -> None:
    """Warn, and on a terminal ask, before a trial that may freeze this computer."""
    danger = clinic.risk(subject)
    if danger is None:
        return
    show.problems([danger], nothing_started=False)
    if sys.stdin.isatty() and not typer.confirm("go on?", err=True):
        raise typer.Exit(INTERRUPTED)
