"""Recipe + machine + what the model folder says -> arguments, environment, command, decisions; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..arguments import Settings, for_verb, settings_of
from ..decision import Decision
from ..errors import Problem, in_file_order
from ..machine import Machine, decide_environment, fused_attention
from ..models import Base, ModelFacts, needs_view, view_path
from ..recipe import Recipe
from ..runs import Decided, Nodes, Workspace
from . import launcher as launchers
from . import nodes as several
from . import ppo, training
from .draft import Draft
from .memory import MemoryEstimate, Workload, estimate
from .nodes import UNNAMED
from .remedies import remedies

__all__ = ["UNNAMED", "Inputs", "MemoryEstimate", "Nodes", "Plan", "make"]

SHOWN = ("recipe", "machine", "arguments", "environment", "command", "decisions", "memory", "problems")
COMMAND = ("llamafactory-cli", "train", "arguments.yaml")
HOOK = "{kit}/hook"
AUDIO_PLACEHOLDER = "{kit}/hook/torchaudio_placeholder"


@dataclass(frozen=True)
class Inputs:
    """All that a plan is made from; two equal inputs give two equal plans, on any computer."""

    recipe: Recipe
    machine: Machine
    model: ModelFacts
    workspace: Workspace
    base: Base | None = None
    nodes: Nodes | None = None
    reward: Base | None = None


@dataclass(frozen=True)
class Plan:
    """What would run. Paths hold `{run}`, `{models}`, `{data}`, `{kit}` and `{ppo}`, filled in at launch."""

    recipe: str
    machine: str
    arguments: Mapping[str, Any]
    environment: Mapping[str, str]
    command: tuple[str, ...]
    decisions: tuple[Decision, ...]
    memory: MemoryEstimate
    problems: tuple[Problem, ...]
    processes: int
    precision: str
    launcher: str
    settings: Settings
    view_of: Path | None = None
    files: Mapping[str, Any] = field(default_factory=dict)
    nodes: Nodes | None = None

    def decided(self) -> Decided:
        """What a run folder keeps of it; its paths are still placeholders."""
        return Decided(
            recipe=self.recipe,
            machine=self.machine,
            precision=self.precision,
            launcher=self.launcher,
            processes=self.processes,
            nodes=self.nodes,
            arguments=self.arguments,
            environment=self.environment,
            command=self.command,
            decisions=self.decisions,
            memory=self.memory.as_json(),
            problems=tuple(problem.as_json() for problem in self.problems),
        )

    def as_json(self) -> dict[str, Any]:
        """What `plan --json` shows."""
        written = asdict(self.decided())
        return {name: written[name] for name in SHOWN}


def make(inputs: Inputs) -> Plan:
    """Plan a training; the problems of the recipe's own lines are in it, found all together."""
    settings, problems = settings_of(inputs.recipe, inputs.workspace.ppo)
    draft = Draft(inputs.recipe, for_verb(settings.stated, "train", settings.table), problems=problems)
    precision = training.precision(draft, inputs.machine)
    attention = training.attention(draft, inputs.machine, precision)
    model = _model(draft, inputs, precision)
    workload = _workload(draft, inputs, precision, attention)
    launcher = _launcher(draft, inputs, workload)
    _environment(draft, inputs, launcher, precision)
    memory = _memory(draft, inputs, workload(launcher.name, launcher.processes))
    return Plan(
        recipe=inputs.recipe.name,
        machine=inputs.machine.name,
        arguments={key: value for key, value in draft.arguments.items() if value is not None},
        environment=draft.environment,
        command=COMMAND,
        decisions=tuple(draft.decisions),
        memory=memory,
        problems=tuple(in_file_order(draft.problems)),
        processes=launcher.processes,
        precision=precision,
        launcher=launcher.name,
        settings=settings.decide(**{key: value for key, value in draft.arguments.items() if not settings.states(key)}),
        view_of=model,
        files=draft.files,
        nodes=inputs.nodes,
    )


def _launcher(draft: Draft, inputs: Inputs, workload: Any) -> launchers.Launcher:
    """Decide it, and write what follows from the number of processes and machines."""
    nodes = inputs.nodes.number if inputs.nodes else 1
    launcher = launchers.decide(draft, inputs.machine, lambda name, n: _needed(inputs, workload(name, n)), nodes)
    training.batch(draft, launcher.processes)
    training.output(draft)
    if launcher.processes > 1:
        training.several_processes(draft, launcher.name)
    if inputs.nodes:
        several.write(draft, inputs.nodes, inputs.machine, launcher.name)
    return launcher


def _model(draft: Draft, inputs: Inputs, precision: str) -> Path | None:
    """Write where the model is read from; returns the folder that a precision view is made of, if one is needed."""
    name = inputs.model.name  # a hub's, or the path of a folder that kit.base has still to make
    expected = inputs.workspace.models / (name if Path(name).is_absolute() else name.replace("/", "--"))
    folder = inputs.workspace.root / (inputs.model.folder or expected)
    if inputs.base:
        draft.decisions.append(Decision("base", inputs.base.recipe.name, "recipe", "named by kit.base"))
    # A full training keeps FP32 weights under bf16 or fp16 autocast: rounding them first would only lose digits.
    whole = draft.arguments.get("finetuning_type") == "full" and precision != "fp32"
    of = folder if needs_view(inputs.model, precision) and not whole else None
    path = view_path(folder, precision, inputs.workspace.models) if of else folder
    draft.arguments["model_name_or_path"] = _placed(path, inputs.workspace)
    if inputs.base:
        training.adapters(draft, inputs.base)
    if of:
        draft.environment["IIS_BASE"] = _placed(folder, inputs.workspace)  # the adapter is to name it, not the view
        reason = f"the checkpoint holds {inputs.model.dtype}; LLaMA-Factory trains in what the model folder says"
        draft.decisions.append(Decision("precision view", _placed(path, inputs.workspace), "kit default", reason))
    return of


def _placed(path: Path, workspace: Workspace) -> str:
    try:
        return f"{{models}}/{path.relative_to(workspace.models)}"
    except ValueError:
        return str(path)


def _workload(draft: Draft, inputs: Inputs, precision: str, attention: str) -> Any:
    """A function of launcher and processes that says what the memory estimate needs to know."""
    values = draft.arguments

    def of(launcher: str, processes: int) -> Workload:
        return Workload(
            precision=precision,
            method=values.get("finetuning_type") or "lora",
            lora_rank=values.get("lora_rank") or 8,
            lora_target=values.get("lora_target") or "all",
            lora_dropout=values.get("lora_dropout") or 0.0,
            trainable_layers=abs(values.get("freeze_trainable_layers") or 2),
            fused_attention=fused_attention(inputs.machine, inputs.recipe.kit.env),
            rows_of_a_sample=training.rows_of_a_sample(values),
            micro_batch_size=(values.get("per_device_train_batch_size") or 1) * training.rows_of_a_sample(values),
            reference=training.reference_model(values),
            cutoff_len=values.get("cutoff_len") or 2048,
            gradient_checkpointing=not values.get("disable_gradient_checkpointing"),
            attention=attention,
            optimizer=values.get("optim") or "adamw_torch_fused",
            quantization_bit=values.get("quantization_bit"),
            launcher=launcher,
            processes=processes,
            accelerator=inputs.machine.accelerator,
        )

    return of


def _needed(inputs: Inputs, workload: Workload) -> float | None:
    return estimate(inputs.model, workload, _limit(inputs.machine)).per_device_gib


def _limit(machine: Machine) -> float | None:
    return min((device.memory_gib for device in machine.devices), default=machine.memory_gib)


def _memory(draft: Draft, inputs: Inputs, workload: Workload) -> MemoryEstimate:
    memory = estimate(inputs.model, workload, _limit(inputs.machine))
    need, limit = memory.per_device_gib, memory.limit_gib
    if need is not None and limit is not None and need > limit:
        largest = max(memory.items, key=lambda item: memory.items[item])
        what = f"{need:.1f} GiB a device are needed, {limit:.1f} are there; the largest part is {largest}"
        fix = remedies(workload, inputs.machine, limit, lambda changed: _needed(inputs, changed))
        draft.complain(Problem(what, fix, inputs.recipe.place("model_name_or_path"), kind="machine"))
    return memory


def _environment(draft: Draft, inputs: Inputs, launcher: launchers.Launcher, precision: str) -> None:
    for decision in decide_environment(inputs.machine, launcher.here, launcher.processes):
        draft.environment[decision.name.removeprefix("environment.")] = str(decision.value)
        draft.decisions.append(decision)
    paths = [HOOK, *([AUDIO_PLACEHOLDER] if inputs.machine.torchaudio_placeholder else [])]
    draft.environment["PYTHONPATH"] = ":".join(paths)
    draft.environment |= {"IIS_RUN": "{run}", "IIS_PRECISION": precision}
    draft.environment["HF_DATASETS_CACHE"] = "{run}/cache"
    reason = "the data cache is keyed on path and time: in the run's own folder, an edited file is always read anew"
    draft.decisions.append(Decision("environment.HF_DATASETS_CACHE", "{run}/cache", "kit default", reason))
    for name, value in inputs.recipe.kit.env.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        draft.environment[name] = text
        draft.keep(f"environment.{name}", text, "kit.env")
    if draft.arguments.get("stage") == "ppo":
        ppo.add(draft, inputs.reward)
