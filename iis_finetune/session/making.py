"""Make what a training is given: a model from a hub or of random weights, a precision view, a base's own folder."""

import shutil
import threading
import time
from pathlib import Path

from msgspec import to_builtins

from .. import hub, launch, models, runs
from ..preflight import Examined, Question
from ..runs import Request, Run, Workspace

KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TOLD_SECONDS = 1.0


def make_model(request: Request, examined: Examined, question: Question) -> None:
    """Random weights when the recipe says so; anything else comes from a hub."""
    recipe, name, environment = examined.recipe, examined.model.name, question.environment
    if recipe.kit.from_scratch:
        request.tell(phase=f"making {name} with random weights")
        spec = models.scratch_spec(recipe, question.workspace)
        launch.make_scratch(spec, request.folder / "scratch.json", examined.machine, environment)
        return
    revision, folder = recipe.value("model_revision"), question.workspace.models
    order = hub.ModelOrder(name, folder, False, revision, recipe.kit.source, chosen_by="kit.source=")
    request.tell(phase=f"downloading {name} to {order.folder}")
    hub.fetch(order, environment, _Teller(request))


class _Teller:
    """Passes a download's progress on, once a second at most; called from several threads."""

    def __init__(self, request: Request) -> None:
        self.request, self.told = request, 0.0
        self.lock = threading.Lock()

    def __call__(self, progress: hub.Progress) -> None:
        with self.lock:
            if progress.note or time.monotonic() - self.told >= TOLD_SECONDS:
                self.told = time.monotonic()
                self.request.tell(download=to_builtins(progress))


def make_view(request: Request, examined: Examined, workspace: Workspace) -> None:
    """The precision view that the plan trains from, if it needs one."""
    plan = examined.plan
    if plan.view_of:
        request.tell(phase=f"making the {plan.precision} view of {examined.model.name}")
        models.precision_view(plan.view_of, plan.precision, workspace.models)


def publish(made: Run, folder: Path) -> None:
    """Copy a whole model out of a run's output to a model folder, complete or not at all; the base's lock is held."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # left by one that was killed
    temporary.mkdir(parents=True)
    for path in sorted(made.output.iterdir()):
        if path.name in KEPT or path.suffix in (".safetensors", ".jinja"):
            shutil.copyfile(path, temporary / path.name)
    runs.write_json(temporary / "iis-finetune.json", {"made_by": made.name})
    if folder.is_dir():
        shutil.rmtree(folder)
    temporary.replace(folder)
