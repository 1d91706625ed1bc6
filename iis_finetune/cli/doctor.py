"""The verb doctor: this machine, what to mend, what to install, whether its devices compute."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from .. import doctor as clinic
from .. import machine, recipe
from ..doctor import Check, Subject, Tried
from ..errors import COMMAND_LINE, INTERRUPTED, Place, Problem, ProblemsFound, exit_code
from . import show
from .words import AsJson, On, workspace

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
    if install_plan:
        _install_plan(clinic.install_plan(found, environment), as_json)
        return
    folders = workspace()
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
        raise ProblemsFound([Problem(what, "see `iis-finetune doctor --help`", Place(COMMAND_LINE))])


def _look(subject: Subject, quick: bool, as_json: bool) -> None:
    checks = clinic.examine(subject, quick)
    problems = [problem for check in checks for problem in check.problems]
    if as_json:
        host = subject.machine.as_json()
        told: list[dict[str, Any]] = [check.as_json() for check in checks]
        show.document({"machine": host, "checks": told, "problems": [each.as_json() for each in problems]})
    else:
        show.table(("check", "state", "found"), map(_row, checks))
        show.problems(problems, nothing_started=False)
        if not problems:
            show.line("nothing to mend")
        _next("iis-finetune doctor" if quick else "iis-finetune doctor --probe", not exit_code(problems))
    raise typer.Exit(exit_code(problems))


def _row(check: Check) -> tuple[str, str, str]:
    return check.name, check.state, check.found


def _next(command: str, fine: bool) -> None:
    if fine:
        show.line(f"next: {command}")


def _install_plan(plan: clinic.InstallPlan, as_json: bool) -> None:
    if as_json:
        show.document(plan.as_json())
        return
    sure = "" if plan.confirmed else "; nobody of this project has run it on such a card"
    show.line(f"# {plan.machine}\n# from: {plan.source}{sure}")
    if plan.note:
        show.line(f"# {plan.note}")
    show.line("\n".join(plan.commands))
    show.aside("In the project's folder `make setup` does the same, in an environment of its own.")


def _fix(environment: dict[str, str], as_json: bool) -> None:
    mended = clinic.mend(environment)
    if as_json:
        show.document({"done": mended.done, "problems": [each.as_json() for each in mended.problems]})
    else:
        show.line("\n".join(mended.done) or "nothing that could be repaired from here")
        show.problems(mended.problems, nothing_started=False)
        _next("iis-finetune doctor", not mended.problems)
    raise typer.Exit(exit_code(mended.problems))


def _probe(subject: Subject, processes: int | None, as_json: bool) -> None:
    host = subject.machine
    if broken := [each for each in machine.build_problems(host) if each.severity == "error"]:
        raise ProblemsFound(broken)
    if clinic.together(host, processes) > 1:
        _warn(subject)
    show.aside("computing in children with a time limit; this takes a minute or so")
    tried = clinic.trials(subject, processes)
    problems = clinic.problems_of(tried)
    if as_json:
        told = [each.as_json() for each in tried]
        show.document({"machine": host.as_json(), "trials": told, "problems": [each.as_json() for each in problems]})
    else:
        show.table(("trial", "device", "state", "error", "backward"), map(_trial, tried))
        show.problems(problems, nothing_started=False)
        _next("iis-finetune train quickstart", not exit_code(problems))
    raise typer.Exit(exit_code(problems))


def _trial(tried: Tried) -> tuple[str, str, str, float | None, float | None]:
    return tried.what, tried.device, tried.state, tried.error, tried.backward


def _warn(subject: Subject) -> None:
    """A host that may freeze is not tried before its owner has read so."""
    danger = clinic.risk(subject)
    if danger is None:
        return
    show.problems([danger], nothing_started=False)
    if sys.stdin.isatty() and not typer.confirm("go on?", err=True):
        raise typer.Exit(INTERRUPTED)
