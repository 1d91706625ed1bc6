"""What was measured of a training like this one: does it fit, what does it change, how long will the run take."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from functools import reduce

from msgspec.structs import replace

from ..arguments import version_of
from ..decision import Decision
from ..errors import COMMAND_LINE, errors_of
from ..recipe import Recipe
from ..rules import Case
from ..runs import Key, Measured, Value, matching
from .choices import PRECISION_SWITCHES
from .memory import MEASURED, MemoryEstimate
from .record import Inputs, Plan

MICRO_BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
TOGETHER = (  # what says the same, or was measured together: a recipe that states one of them has stated all
    {"kit.precision", "kit.attention", "flash_attn", *PRECISION_SWITCHES},
    {"kit.launcher", "kit.devices", "deepspeed", "fsdp", ACCUMULATION},
    {MICRO_BATCH, ACCUMULATION},
)
Values = Mapping[str, Value]


def key_of(plan: Plan) -> Key:
    """By what a measurement of this plan is found again; `plan` is the one that is not tuned (`kit.tuned: false`)."""
    machine, settings, shapes = plan.machine, plan.settings, plan.inputs.model.shapes
    return Key(
        device=machine.arch if machine.devices else f"{machine.processor or 'CPU'}, {machine.cpu_count} threads",
        devices=plan.processes,
        torch=machine.torch_build,
        driver=machine.driver,
        llamafactory=version_of(settings["stage"]),
        shape=shapes.words if shapes else plan.inputs.model.name,
        **{name: settings[name] for name in Key.__struct_fields__ if name in settings.table},
    )


def global_batch(plan: Plan) -> int:
    """Rows of one step of the optimizer."""
    return int(plan.settings[MICRO_BATCH] * plan.settings[ACCUMULATION] * plan.processes)


def now_of(plan: Plan, name: str) -> Value:
    """What a setting (an argument, a `kit.` key, `env.NAME`) is in a plan."""
    if name.startswith("env."):
        return plan.environment.get(name.removeprefix("env."))
    if name == "kit.devices":
        return plan.processes
    if name.startswith("kit."):
        return getattr(plan, name.removeprefix("kit."), None)
    return plan.settings[name] if name in plan.settings.table else None


def stated(recipe: Recipe, settings: Iterable[str]) -> list[str]:
    """Those of the settings that the recipe states itself: its own value goes before a measured one."""
    entries = {**recipe.entries, **recipe.kit_entries}
    said = {name for name, entry in entries.items() if entry.value not in (None, "auto")}
    said |= {f"env.{name}" for name in recipe.kit.env}.union(*(group for group in TOGETHER if group & said))
    return [name for name in settings if name in said]


def tuned(inputs: Inputs, planner: Callable[[Inputs], Plan]) -> Plan:
    """The plan with what was measured of it, where the recipe leaves that open."""
    plan = plain = planner(inputs)
    match = matching(inputs.measured or (), key_of(plain))
    if match is None and (inputs.measured is None or not plain.machine.here):
        return plain
    if match is None:
        tries = "tries micro-batch, checkpointing and what else may be faster on this machine, in about 20 minutes"
        why = f"`iis-finetune tune {plain.recipe.path}` {tries}"
        return plain.note(Decision("tuned", False, "kit default", why))
    row, differences = match
    unused = "; ".join(differences) or ("" if plain.recipe.kit.tuned else "kit.tuned is false")
    if not unused:
        recipe = reduce(Recipe.with_line, _lines(plain, row.settings), plain.recipe)
        again = planner(replace(inputs, recipe=recipe, applied=row))
        unused = "; ".join(each.what for each in errors_of(again.problems) if each not in plain.problems)
        plan = plain if unused else _attributed(plain, again, row)
    why = f"{row.told}, not used: {unused}" if unused else row.told
    plan = plan.note(Decision("tuned", not unused, row.source, why))
    return plan if differences else _timed(plan, row)


def corrected(estimated: MemoryEstimate, plan: Plan) -> MemoryEstimate:
    """The estimate with what was measured beside it as an item of its own, so that the sum is what was measured."""
    row, expected = plan.inputs.applied, estimated.per_device_gib
    if row is None or row.peak_gib is None or expected is None or not _is(plan, row, row.settings):
        return estimated
    items = {**estimated.items, MEASURED: row.peak_gib - expected}
    return replace(estimated, per_device_gib=row.peak_gib, items=items)


def _lines(plan: Plan, settings: Values) -> list[str]:
    """The lines that the recipe leaves open; an optimizer step keeps the rows that it has."""
    kit, said = plan.recipe.kit, stated(plan.recipe, [*settings, MICRO_BATCH, ACCUMULATION])
    found = {name: value for name, value in settings.items() if value is not None and name not in said}
    env = {name.removeprefix("env."): found.pop(name) for name in list(found) if name.startswith("env.")}
    if found.pop(ACCUMULATION, None) or {MICRO_BATCH, "kit.launcher", "kit.devices"} & found.keys():
        if MICRO_BATCH not in said:
            found.setdefault(MICRO_BATCH, plan.settings[MICRO_BATCH])
        if not plan.settings.states(ACCUMULATION):
            found["kit.global_batch_size"] = global_batch(plan)
    lines = {**found, **({"kit.env": {**kit.env, **env}} if env else {})}
    return [f"{name}: {json.dumps(value)}" for name, value in lines.items()]


def _attributed(plain: Plan, again: Plan, row: Measured) -> Plan:
    """The plan whose every decision that is not as it was says that a measurement led to it."""
    why = f"{row.seconds_per_step:.3g} s a step, {row.start_seconds_per_step:.3g} without: {row.told}"
    reasons = {"override": why}  # what a line gave was measured; what follows from it has a reason of its own
    found = [
        each
        if each in plain.decisions
        else dataclasses.replace(each, source=row.source, reason=reasons.get(each.source, each.reason))
        for each in again.decisions
    ]
    names, now, before = {each.name for each in found}, again.arguments, plain.arguments
    silent = [name for name in row.settings if name not in names and now.get(name) != before.get(name)]
    found += [Decision(name, now.get(name), row.source, why) for name in silent]
    # A warning of a line that the user did not write has been answered by measuring it.
    said = [each for each in again.problems if each.where.file != COMMAND_LINE or each in plain.problems]
    return replace(again, decisions=tuple(found), problems=tuple(said))


def expected(plan: Plan, row: Measured, seconds_per_step: float) -> tuple[int, int] | None:
    """Steps and seconds of the whole recipe at such a step; None where its number of steps is not known."""
    steps = Case(plan.recipe, plan.settings, plan.machine, plan.inputs.model, plan.processes, rows=row.rows).steps
    if steps is None:
        return None
    return steps, round(row.start_up_seconds + steps * seconds_per_step * global_batch(plan) / row.global_batch_size)


def _timed(plan: Plan, row: Measured) -> Plan:
    """Note how long it takes, where the best or the start was measured with this recipe's own data."""
    measured = ((row.settings, row.seconds_per_step), (row.start_settings, row.start_seconds_per_step))
    each = next((seconds for settings, seconds in measured if _is(plan, row, settings)), None)
    found = each and expected(plan, row, each)
    if not found:
        return plan
    steps, seconds = found
    hours, minutes = divmod(round(seconds / 60), 60)
    length = f"{hours} h {minutes} min" if hours else f"{seconds // 60} min {seconds % 60} s"
    return plan.note(Decision("expected_seconds", seconds, row.source, f"{steps} steps, about {length}, {row.told}"))


def _is(plan: Plan, row: Measured, settings: Values) -> bool:
    """Whether the plan is what was measured; accumulation follows from the global batch, which may be another."""
    pairs = [(now_of(plan, name), value) for name, value in settings.items() if name != ACCUMULATION]
    same = all(str(now).lower() == str(value).lower() for now, value in pairs)  # a variable's 1 is '1', True is 'true'
    return same and row.dataset == plan.settings.names("dataset")
