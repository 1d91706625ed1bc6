"""Make what a training stands on, train under supervision, evaluate."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from .. import dataset, evaluate, launch, models, preflight, process, runs, supervise
from ..errors import FINE, ProblemsFound
from ..preflight import Examined, Question
from ..recipe import Recipe
from ..runs import Claim, Request, Run
from ..supervise import Stop
from .footing import check_devices, data_hashes, refuse_changes, under_its_own_name, without_errors
from .making import make_model, make_view, publish
from .supervision import environment_of, failure, task_of, tell_ending

Named = Literal["base", "reward"]  # the kit keys that name a recipe which is run first
NAMED: tuple[Named, ...] = ("base", "reward")


class Session(Struct, frozen=True):
    """One detached process: where it reports, what was asked, what may stop it."""

    request: Request
    question: Question
    stop: Stop

    def tell(self, **line: Any) -> None:
        self.request.tell(**line)

    def about(self, **changes: Any) -> Session:
        """The same session with another question."""
        return replace(self, question=replace(self.question, **changes))


def train(session: Session) -> int:
    """Train, then evaluate if the recipe says so; the exit code."""
    with brought_up(session) as (claim, examined):
        return _finish(session, claim, examined)


def resume(session: Session, made: Run, accepted: bool) -> int:
    """Resume a run from its newest good checkpoint, then evaluate; the exit code."""
    with runs.claimed(made, "prepared") as claim:
        session.tell(claimed=made.name)
        workspace = replace(session.question.workspace, before=made.number)
        examined = under_its_own_name(made, _made_ready(session.about(workspace=workspace)))
        changed = refuse_changes(made, examined, session.question, accepted)
        data = data_hashes(examined, session.question)
        with runs.turn(workspace):
            check_devices(examined, workspace, made)
            process.end(runs.living(made), 0)  # what an attempt without a supervisor left
            launch.rewrite(made, examined, workspace, data)
            claim.tell("trained")
        session.tell(run=made.name)
        runs.note(made, "resumed", changed=changed)
        supervise.supervise(task_of(made, examined, session.request, session.question), session.stop)
        return _finish(session, claim, examined)


@contextmanager
def brought_up(session: Session) -> Iterator[tuple[Claim, Examined]]:
    """Train a new run of the recipe after making what it needs; the run is held, and what was examined."""
    examined, question = _made_ready(session), session.question
    data = data_hashes(examined, question)
    with ExitStack() as held:
        with runs.turn(question.workspace):
            check_devices(examined, question.workspace)
            made = runs.create(question.workspace, examined.recipe.name, question.smoke)
            claim = held.enter_context(runs.claimed(made, "prepared"))
            launch.rewrite(made, examined, question.workspace, data)
            claim.tell("trained")
        session.tell(run=made.name)
        supervise.supervise(task_of(made, examined, session.request, question), session.stop)
        yield claim, examined


def _finish(session: Session, claim: Claim, examined: Examined) -> int:
    made = claim.run
    code = tell_ending(session.request, made, session.stop)
    kit, nodes = examined.recipe.kit, session.question.nodes
    asked = {data: guards for data, guards in ((kit.evaluate_after, False), (kit.guard, True)) if data}
    if code == FINE and asked and (nodes is None or nodes.rank == 0):
        claim.tell("evaluated")
        environment = environment_of(made, examined.machine, session.question.environment)
        for data, guards in reversed(asked.items()):  # the task's rows are what other verbs take next
            session.tell(phase=f"evaluating base and tuned on {data}", run=made.name)
            evaluate.after_training(evaluate.Evaluation(made, data, environment, session.stop, guards=guards))
        session.tell(evaluated=made.name, data=list(asked))
    return code


def _made_ready(session: Session) -> Examined:
    """Examine the recipe once, make what is missing, and refresh only what that changes."""
    question = session.question
    examined = without_errors(preflight.examine(question))
    for key in NAMED:
        needed = examined.base if key == "base" else examined.reward
        if needed and not needed.ready:
            _make_base(session.about(machine=examined.machine), examined.recipe, key)
            examined = without_errors(preflight.refresh(examined, question))
    if not examined.model.folder:
        make_model(session.request, examined, question)
        examined = without_errors(preflight.refresh(examined, question))
    make_view(session.request, examined, question.workspace)
    settings = examined.plan.settings
    folder = Path(question.data_folder(settings))  # LLaMA-Factory looks there and nowhere else
    if brought := dataset.bring([*settings.names("dataset"), *settings.names("eval_dataset")], folder):
        session.tell(phase=f"copied from the kit to {folder}: {', '.join(brought)}")
    return examined


def _make_base(session: Session, recipe: Recipe, key: Named) -> None:
    """Run the recipe of a base or reward model as it stands; a whole model it makes is kept in a folder of its own."""
    workspace = session.question.workspace
    workspace.models.mkdir(parents=True, exist_ok=True)
    named = recipe.kit.base if key == "base" else recipe.kit.reward
    with (workspace.models / f".{Path(str(named)).stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two starts at once make one base: the second waits, then finds it
        base, _ = models.base_of(recipe, workspace, key=key)
        if base is None or base.ready:
            return
        session.tell(phase=f"making the {key} model: recipe {base.recipe.name}")
        workspace = replace(workspace, before=None)
        of_base = session.about(recipe=str(base.recipe.path), overrides=(), nodes=None, workspace=workspace)
        with brought_up(of_base) as (claim, _):
            if runs.state_after_end(claim.run) != "finished":
                raise ProblemsFound([failure(claim.run)])
            if base.whole:
                publish(claim.run, Path(base.model))
