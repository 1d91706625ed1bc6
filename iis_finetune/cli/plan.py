"""The verbs check and plan: what is wrong with a recipe, and what would run."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from .. import dataset, machine, preflight
from ..errors import exit_code
from ..plan import UNNAMED, Plan
from . import show
from .words import AsJson, Full, Master, Number, On, Overrides, RecipeName, nodes_of, question

Deep = Annotated[bool, typer.Option("--deep", help="Also ask LLaMA-Factory's own parser, in a child process.")]


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
        found += preflight.ask_llamafactory(examined, asked)
    if as_json:
        show.document(
            {
                "recipe": examined.recipe.name,
                "machine": examined.machine.name,
                "problems": [problem.as_json() for problem in found],
            }
        )
    else:
        show.problems(found)
        if not exit_code(found):
            show.line(f"{examined.recipe.name} is ready for {examined.machine.title}: {show.count(found)}")
            words = shlex.join([recipe, *(overrides or ()), *(["--on", on] if on else ())])
            show.line(f"next: iis-finetune {'plan' if on else 'train'} {words}")
    raise typer.Exit(exit_code(found))


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: On = None,
    as_json: AsJson = False,
    nodes: Number = 1,
    master: Master = f"{UNNAMED}:29500",
) -> None:
    """What would run: arguments, environment, command, memory, and every decision with its reason."""
    asked = replace(question(recipe, overrides, on, rows=False), nodes=nodes_of(nodes, 0, master))
    examined = preflight.examine(asked)
    commands = _node_commands(examined.plan, shlex.join([recipe, *(overrides or ())])) if nodes > 1 else []
    if as_json:
        content = {**examined.plan.as_json(), **({"nodes": commands} if commands else {})}
        show.document({**content, "problems": [problem.as_json() for problem in examined.problems]})
    else:
        show.line(f"{examined.recipe.name} on {examined.machine.title}")
        _plan_text(examined, machine.advice(examined.machine, examined.plan.processes))
        for rank, told in enumerate(commands):
            show.line(f"{'' if rank else chr(10)}node {rank}\n  {told['train']}\n  {told['plain']}")
        show.problems(examined.problems)
    raise typer.Exit(exit_code(examined.problems))


def _node_commands(made: Plan, recipe: str) -> list[dict[str, str]]:
    from .. import launch  # 12 ms that the other plans need not wait for

    return launch.node_commands(made, recipe)


def _plan_text(examined: preflight.Examined, advice: Sequence[str]) -> None:
    made = examined.plan
    show.line("\narguments")
    show.line("".join(f"  {key}: {_scalar(value)}\n" for key, value in made.arguments.items()))
    show.line("environment")
    show.line("".join(f"  {name}={value}\n" for name, value in made.environment.items()))
    show.line(f"command\n  {' '.join(made.command)}\n")
    show.line(f"memory of each device of {examined.machine.title}, GiB")
    for item, gib in made.memory.items.items():
        show.line(f"  {item:28} {gib:8.2f}")
    show.line(f"  {'sum':28} {_gib(made.memory.per_device_gib)} of {_gib(made.memory.limit_gib).strip()}")
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
