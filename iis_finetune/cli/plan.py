"""The verbs check, plan and slurm: what is wrong with a recipe, what would run, and that as a job."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from .. import dataset, machine, preflight
from ..errors import Problem, exit_code
from ..plan import NO_TRAINING, UNNAMED
from ..runs import write
from . import show
from .words import AsJson, Full, Master, Number, On, Overrides, RecipeName, nodes_of, question, typed

Deep = Annotated[bool, typer.Option("--deep", help="Also ask LLaMA-Factory's own parser, in a child process.")]
To = Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it there instead of printing it.")]


def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: On = None,
    deep: Deep = False,
    full: Full = False,
    as_json: AsJson = False,
) -> None:
    """Every problem of a recipe, before anything starts."""
    with show.meter("reading rows") as progress:
        asked = replace(question(recipe, overrides, on), limit=None if full else dataset.LIMIT, progress=progress)
        examined = preflight.examine(asked)
    found = list(examined.problems)
    if deep:
        found += [each for each in preflight.ask_llamafactory(examined, asked) if each not in found]
    ready = f"{examined.recipe.name} is ready for {examined.machine.title}: {show.count(found)}"
    verb = "plan" if on else "export" if examined.plan.memory.not_counted == (NO_TRAINING,) else "train"
    following = f"{verb} {typed(recipe, overrides)}{f' --on {examined.machine.name}' if on else ''}"
    document = {"recipe": examined.recipe.name, "machine": examined.machine.name}
    show.verdict(found, document if as_json else None, f"{ready}\nnext: iis-finetune {following}", nothing_started=True)


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: On = None,
    as_json: AsJson = False,
    nodes: Number = 1,
    master: Master = f"{UNNAMED}:29500",
) -> None:
    """What would run: arguments, environment, command, memory, and every decision with its reason."""
    with show.meter("reading rows") as progress:
        asked = replace(question(recipe, overrides, on), nodes=nodes_of(nodes, 0, master), progress=progress)
        examined = preflight.examine(asked)
    commands: list[dict[str, str]] = []
    if nodes > 1:
        from .. import launch  # 12 ms that the other plans need not wait for

        commands = launch.node_commands(examined.plan, typed(recipe, overrides))
    if not as_json:
        show.line(f"{examined.recipe.name} on {examined.machine.title}")
        chosen = (examined.plan.precision, examined.plan.attention)
        _plan_text(examined, machine.advice(examined.machine, examined.plan.processes, chosen))
        for rank, told in enumerate(commands):
            show.line(f"{'' if rank else chr(10)}node {rank}\n  {told['train']}\n  {told['plain']}")
    document = {**examined.plan.as_json(), "steps": examined.steps, **({"nodes": commands} if commands else {})}
    show.verdict(examined.problems, document if as_json else None, nothing_started=True)


def _plan_text(examined: preflight.Examined, advice: Sequence[str]) -> None:
    made = examined.plan
    show.line("\narguments")
    show.line("".join(f"  {key}: {_scalar(value)}\n" for key, value in made.arguments.items()))
    show.line("environment")
    show.line("".join(f"  {name}={value}\n" for name, value in made.environment.items()))
    show.line(f"command\n  {' '.join(made.command)}\n")
    show.line(f"steps in the whole run: {examined.steps or 'not known before the rows are read'}\n")
    show.line(f"memory of each device of {examined.machine.title}, GiB")
    for item, gib in made.memory.items.items():
        show.line(f"  {item:28} {gib:8.2f}")
    show.line(f"  {'sum':28} {_gib(made.memory.per_device_gib)} of {_gib(made.memory.limit_gib).strip()}")
    if made.memory.host_gib:
        show.line(f"  {'the computer itself, at least':28}{_gib(made.memory.host_gib)}, all processes together")
    says = "at least so much; not counted:" if made.memory.items else "unknown:"
    show.line(f"  {says} {'; '.join(made.memory.not_counted)}\n" if made.memory.not_counted else "")
    if advice:
        show.line("advice, not followed by itself")
        show.line("".join(f"  {each}\n" for each in advice))
    show.line("decisions")
    show.table(
        ("  name", "value", "source", "reason"),
        [(f"  {each.name}", each.value, each.source, each.reason) for each in made.decisions],
    )


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gib(value: float | None) -> str:
    return " unknown" if value is None else f"{value:8.2f}"


def slurm(recipe: RecipeName, overrides: Overrides = None, nodes: Number = 1, on: On = None, to: To = None) -> None:
    """A Slurm job of a recipe, printed or written to a file; it saves and queues itself again when told to leave."""
    from .. import launch

    asked = question(recipe, overrides, on, rows=False)
    examined = preflight.examine(replace(asked, nodes=nodes_of(nodes, 0, f"{UNNAMED}:29500")))
    problems = [*examined.problems, *_unmade(examined)]
    show.problems(problems)
    if exit_code(problems):
        raise typer.Exit(exit_code(problems))
    text = launch.sbatch(examined.plan, typed(recipe, overrides), nodes)
    if to is None:
        show.line(text.rstrip())
    else:
        write(to, text)
        show.line(f"written: {to}\nnext: sbatch {shlex.quote(str(to))}")


def _unmade(examined: preflight.Examined) -> list[Problem]:
    """A base that has still to be trained: every node would, each for itself."""
    missing = [base.recipe for base in (examined.base, examined.reward) if base and not base.ready]
    fixes = {each.name: f"iis-finetune train {typed(str(each.path), ())}" for each in missing}
    place = examined.recipe.place("kit.base")
    return [Problem(f"'{name}' is not trained yet", fix, place) for name, fix in fixes.items()]
