"""The detached process: it makes what a training stands on, trains under supervision, evaluates; smoke runs too."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from .. import arguments, dataset, evaluate, export, launch, models, preflight, process, runs, supervise
from ..errors import BUG, FINE, INPUT, KitError, Problem, ProblemsFound, errors_of
from ..plan import after
from ..preflight import Examined, Question
from ..recipe import Recipe
from ..runs import Claim, Nodes, Request, Run, Workspace
from ..supervise import Stop
from ..tables import read
from .footing import (
    check_devices,
    data_hashes,
    environment_of,
    failure,
    make_model,
    make_view,
    publish,
    refuse_changes,
    task_of,
    tell_ending,
    under_its_own_name,
    without_errors,
)

Named = Literal["base", "reward"]  # the kit keys that name a recipe which is run first
NAMED: tuple[Named, ...] = ("base", "reward")
FOLDER = "@smoke"


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


class Order(Struct, frozen=True):
    """What a detached process is to do: train a recipe, or resume the run of that name."""

    recipe: str
    overrides: tuple[str, ...] = ()
    nodes: Nodes | None = None
    smoke: bool = False
    resume: str | None = None
    accept_changes: bool = False

    def question(self, workspace: Workspace, environment: Mapping[str, str]) -> Question:
        return Question(self.recipe, self.overrides, workspace, environment, nodes=self.nodes)


def place(order: Order, workspace: Workspace, readings: dataset.Readings) -> Request:
    """Write an order where its detached process will read it, with what is already known of the data files."""
    request = runs.new_request(workspace, to_builtins(order))
    readings.keep(request.readings)
    return request


def carry_out(folder: Path, workspace: Workspace, environment: Mapping[str, str]) -> int:
    """Carry out the order in a request's folder; the exit code is that of `train`."""
    request = Request(folder)
    asked = runs.read_json(request.asked)
    if not asked:
        return INPUT
    order = runs.typed(request.asked, Order, asked)
    stop = Stop()
    stop.install()
    question = replace(order.question(workspace, environment), readings=dataset.kept(request.readings))
    session = Session(request, question, stop)
    try:
        code = _work(session, order)
    except ProblemsFound as found:
        request.tell(problems=[problem.as_json() for problem in found.problems])
        code = found.exit_code
    except KitError as error:
        request.tell(failed=str(error), log=str(request.log))
        code = error.exit_code
    except Exception:  # noqa: BLE001 - whoever is attached must hear of the end, the trace goes into the log
        with request.log.open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        request.tell(failed="a bug in iis-finetune", log=str(request.log))
        code = BUG
    request.tell(exit=code)
    return code


def _work(session: Session, order: Order) -> int:
    if order.smoke:
        return smoke(session)
    if order.resume:
        made = runs.find(session.question.workspace, order.resume)
        return resume(session, made, order.accept_changes)
    return train(session)


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
    # Two starts at once make one base: the second waits, then finds it.
    with process.locked(workspace.models / f".{Path(str(named)).stem}.lock"):
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


# A smoke run ----------------------------------------------------------------------------------------------------------


def overrides_of(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    """The overrides that turn a recipe into its smoke run."""
    known, (settings, _) = read("smoke.toml"), arguments.settings_of(recipe)
    unset = [f"{key}=null" for key in known["unset"]["names"] if recipe.states(key)]
    least = {key: min(limit, settings[key]) for key, limit in known["at_most"].items()}
    held_out = {"val_size": known["held_out"]} if settings["val_size"] > 1 else {}
    given = {**known["set"], **least, **held_out, "model_name_or_path": str(folder)}
    return (*unset, *(f"{key}={value}" for key, value in given.items()))


def without_devices(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with every accelerator hidden."""
    return {**environment, **dict.fromkeys(after.VISIBLE, "-1")}


def smoke(session: Session) -> int:
    """Shrink the model, train, evaluate, export and compare, each with the code of a real run."""
    examined = preflight.examine(session.question)
    folder = _make_model(session, examined)
    scored: tuple[str, ...] = ()
    if examined.reward:
        recipe = examined.reward.recipe
        first = session.about(recipe=str(recipe.path), overrides=())
        with brought_up(_shrunken(first, recipe, folder)) as (scorer, _):
            reward = scorer.run
            code = tell_ending(session.request, reward, session.stop)
        if code != FINE:
            return code
        kind = "full" if examined.reward.whole else "lora"
        scored = (f"reward_model={reward.result.resolve()}", f"reward_model_type={kind}")
    small = _shrunken(session, examined.recipe, folder, scored)
    with brought_up(small) as (claim, of_small):
        made = claim.run
        code = tell_ending(session.request, made, session.stop)
        if code == FINE:
            environment = environment_of(made, of_small.machine, small.question.environment)
            claim.tell("evaluated")
            _evaluate(session, made, examined, environment)
            _export(session, made, environment)
            session.tell(smoked=made.name, refused=bool(errors_of(examined.problems)))
    return code


def _shrunken(session: Session, recipe: Recipe, folder: Path, more: tuple[str, ...] = ()) -> Session:
    words = (*session.question.overrides, *overrides_of(recipe, folder), *more)
    return session.about(overrides=words, environment=without_devices(session.question.environment), smoke=True)


def _make_model(session: Session, examined: Examined) -> Path:
    facts, question = examined.model, session.question
    if not facts.config:
        what = f"the shape of '{facts.name}' is not known here: it is neither on disk nor in the built-in table"
        fix = f"iis-finetune download {facts.name}"
        raise ProblemsFound([Problem(what, fix, examined.recipe.place("model_name_or_path"), kind="missing")])
    name = Path(facts.name).name if preflight.looks_local(facts.name) else facts.name.replace("/", "--")
    folder = question.workspace.models / f"{name}{FOLDER}"
    template = arguments.find_template(str(examined.plan.arguments.get("template")))
    words = template.tokens if template else ()
    texts = [file for source in preflight.sources_of(examined, question) for file in source.files]
    session.tell(phase=f"shrinking {facts.name} to {folder}")
    spec = models.smoke_spec(facts, words, texts, folder)
    launch.make_scratch(spec, session.request.folder / "scratch.json", examined.machine, question.environment)
    return folder


def _evaluate(session: Session, made: Run, examined: Examined, environment: Mapping[str, str]) -> None:
    """Evaluate on the held-out rows, else on the training rows: a smoke run shows only that it works."""
    recipe, stage = examined.recipe, examined.plan.settings["stage"]
    answers = stage in ("sft", "pt")  # the other stages' own data sets are pairs and marks
    data = recipe.kit.evaluate_after or (recipe.value("eval_dataset") or recipe.value("dataset") if answers else None)
    if not data or stage == "rm":
        session.tell(phase="evaluation left out: the recipe names no held-out rows with one answer each")
        return
    name = first_name(data)
    session.tell(phase=f"evaluating base and tuned on {name}", run=made.name)
    evaluate.evaluate(evaluate.Evaluation(made, name, environment, session.stop))


def _export(session: Session, made: Run, environment: Mapping[str, str]) -> None:
    session.tell(phase="merging, and comparing the merged model with base and adapter")
    wanted = export.Export(made.export.absolute(), environment, run=made, replace=True)
    export.export(after.trained_by(made, made.result), wanted)


def first_name(named: str | list[str]) -> str:
    """The first of the data sets that an argument names, as a list or with commas."""
    return str(named[0] if isinstance(named, list) else named).split(",")[0].strip()
