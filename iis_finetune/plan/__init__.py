"""Recipe + machine + what the model folder says -> arguments, environment, command, decisions; pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..arguments import Settings, settings_of
from ..decision import Decision
from ..errors import Problem, in_file_order
from ..runs import Decided, Nodes
from .choices import accumulation, attention, environment, micro_batch, output, precision
from .draft import Draft, Inputs
from .fit import fit
from .memory import MemoryEstimate
from .processes import UNNAMED, launcher, several_nodes, several_processes
from .starting_point import starting_point

COMMAND = ("llamafactory-cli", "train", "arguments.yaml")
SHOWN = ("recipe", "machine", "arguments", "environment", "command", "decisions", "memory", "problems")
STEPS = (
    *(precision, attention, starting_point, micro_batch, launcher, accumulation, output),
    *(several_processes, several_nodes, environment),
)


@dataclass(frozen=True)
class Plan:
    """What would run. Paths hold `{run}`, `{models}`, `{data}`, `{kit}` and `{ppo}`, filled in at launch.

    `settings` answers for every argument, also for those that LLaMA-Factory is not given; `view_of` is the model folder
    that a precision view is made of, `files` are written into the run folder beside the arguments.
    """

    recipe: str
    machine: str
    settings: Settings
    arguments: Mapping[str, Any]
    environment: Mapping[str, str]
    command: tuple[str, ...]
    decisions: tuple[Decision, ...]
    memory: MemoryEstimate
    problems: tuple[Problem, ...]
    precision: str
    launcher: str
    processes: int
    view_of: Path | None
    files: Mapping[str, Any]
    nodes: Nodes | None

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
    draft = fit(_planned(inputs), _planned)
    return Plan(
        recipe=inputs.recipe.name,
        machine=inputs.machine.name,
        settings=draft.settings,
        arguments=draft.arguments,
        environment=draft.environment,
        command=COMMAND,
        decisions=draft.decisions,
        memory=draft.memory,
        problems=tuple(in_file_order(draft.problems)),
        precision=draft.precision,
        launcher=draft.launcher.name,
        processes=draft.launcher.processes,
        view_of=draft.view_of,
        files=draft.files,
        nodes=inputs.nodes,
    )


def _planned(inputs: Inputs) -> Draft:
    """All that is decided before the memory is looked at."""
    settings, problems = settings_of(inputs.recipe, inputs.workspace.ppo)
    draft = Draft(inputs, settings, problems=tuple(problems))
    for step in STEPS:
        draft = step(draft)
    return draft
