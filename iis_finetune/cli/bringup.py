"""What the detached process does: make the base, the model and the view, train under supervision, evaluate."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import evaluate, hub, launch, machine, models, preflight, process, rules, runs, supervise
from ..errors import BUG, FINE, INTERRUPTED, RUN_FAILED, KitError, Place, Problem, ProblemsFound, exit_code
from ..launch import Prepared
from ..models import Base
from ..observe import began, last_lines, raised, tail
from ..preflight import Examined, Question
from ..runs import Request, Run
from ..supervise import Stop
from . import fetch, resuming

LOG_LINES = 15
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


Work = Callable[[Request, Question, Stop], int]


def run(request: Request, question: Question, work: Work) -> int:
    """Do the work, telling the request's progress file how it ends. The exit code that `train` hands on."""
    stop = Stop()
    stop.install()
    try:
        code = work(request, question, stop)
    except ProblemsFound as found:
        request.tell(problems=[problem.as_json() for problem in found.problems])
        code = found.exit_code
    except KitError as error:
        request.tell(failed=str(error), log=str(request.log))
        code = error.exit_code
    except Exception:  # noqa: BLE001 - whoever is attached must hear of the end, the trace goes into the log
        traceback.print_exc()
        request.tell(failed="a bug of iis-finetune", log=str(request.log))
        code = BUG
    request.tell(exit=code)
    return code


def train(request: Request, question: Question, stop: Stop, made: Run | None = None) -> int:
    """Train, or go on with the run that is `made` already, then evaluate if the recipe says so."""
    made = _go_on(request, made, question, stop) if made else bring_up(request, question, stop)
    code = outcome(request, made, stop)
    data = preflight.examine(replace(question, rows=False)).recipe.kit.evaluate_after
    if code == FINE and data and (question.nodes is None or question.nodes.rank == 0):
        request.tell(phase="evaluating base and tuned on the held-out rows", run=made.name)
        evaluate.after_training(made, data, resuming.environment_of(made, question), stop)
        request.tell(evaluated=made.name)
    return code


def bring_up(request: Request, question: Question, stop: Stop) -> Run:
    """A run of the recipe, trained; everything it stands on is made first."""
    examined = _made_ready(request, question, stop)
    resuming.check_devices(examined, question)
    data = resuming.data_hashes(examined, question)
    prepared = Prepared(examined.recipe, examined.plan, examined.machine, data, question.smoke)
    made = launch.prepare(prepared, question.workspace)
    request.tell(run=made.name)
    supervise.supervise(resuming.job_of(made, examined, request, question), stop)
    return made


def _go_on(request: Request, made: Run, question: Question, stop: Stop) -> Run:
    """A run that is there, trained on from its newest good checkpoint."""
    asked = runs.read_json(request.asked) or {}
    _made_ready(request, question, stop)
    examined = resuming.examine_run(made, question)
    changed = resuming.check_footing(made, examined, question, asked.get("accept_changes", False))
    resuming.check_devices(examined, question, made)
    resuming.end_orphans(made)
    resuming.rewrite(made, examined, question, resuming.data_hashes(examined, question))
    request.tell(run=made.name)
    runs.note(made, "resumed", changed=changed)
    supervise.supervise(resuming.job_of(made, examined, request, question), stop)
    return made


def _made_ready(request: Request, question: Question, stop: Stop) -> Examined:
    """The recipe examined again once its base, its model and its view are there."""
    examined = resuming.examine(question)
    if examined.base and not examined.base.ready:
        _make_base(request, examined.base, question, stop)
        examined = resuming.examine(question)
    if examined.reward and not examined.reward.ready:
        _make_base(request, examined.reward, question, stop)
        examined = resuming.examine(question)
    if not examined.model.folder:
        _make_model(request, examined, question)
        examined = resuming.examine(question)
    resuming.make_view(request, examined, question)
    return examined


def _make_base(request: Request, base: Base, question: Question, stop: Stop) -> None:
    """Run the recipe of a base or reward model as it stands; a whole model it makes is kept in a folder of its own."""
    models_root = question.workspace.models
    models_root.mkdir(parents=True, exist_ok=True)
    with (models_root / f".{base.recipe.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two starts at once make one base: the second waits, then finds it
        seen = resuming.examine(question)
        if base.recipe.name not in [each.recipe.name for each in (seen.base, seen.reward) if each and not each.ready]:
            return
        request.tell(phase=f"making the {'reward' if base == seen.reward else 'base'} model: recipe {base.recipe.name}")
        made = bring_up(request, replace(question, recipe=str(base.recipe.path), overrides=(), nodes=None), stop)
        if runs.state_after_end(made) != "finished":
            raise ProblemsFound([_failure(made)])
        if base.whole:
            publish(made, Path(base.model))


def publish(made: Run, folder: Path) -> None:
    """Copy a whole model out of a run's output to a model folder, complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    for path in sorted(made.output.iterdir()):
        if path.name in KEPT or path.suffix in (".safetensors", ".jinja"):
            shutil.copyfile(path, temporary / path.name)
    runs.write(temporary / "iis-finetune.json", json.dumps({"made_by": made.name}) + "\n")
    if folder.is_dir():
        shutil.rmtree(folder)
    temporary.replace(folder)


def _make_model(request: Request, examined: Examined, question: Question) -> None:
    """Random weights when the recipe says so; anything else comes from a hub."""
    if examined.recipe.kit.from_scratch:
        request.tell(phase=f"making {examined.model.name} with random weights")
        make_scratch(request, models.scratch_spec(examined.recipe, question.workspace), question)
        return
    revision = examined.recipe.value("model_revision")
    order = fetch.of_model(examined.model.name, examined.recipe.kit.source, revision=revision)
    request.tell(phase=f"downloading {examined.model.name} to {order.folder}")
    with fetch.Meter(lambda text: request.tell(phase=text)) as meter:
        hub.fetch(order, question.environment, meter)


def make_scratch(request: Request, spec: Mapping[str, Any], question: Question) -> None:
    """A model folder with random weights, made in a child as the spec orders."""
    file = request.folder / "scratch.json"
    runs.write(file, json.dumps(spec, indent=2, ensure_ascii=False) + "\n")
    host = machine.detect(environment=question.environment)
    environment = launch.child_environment(host, question.environment, {"PYTHONPATH": ""})
    words = [sys.executable, "-m", "iis_finetune.probe.scratch", str(file)]
    done = process.capture(words, 600, {**environment, "PYTHONPATH": str(launch.KIT.parent)})
    if done is None or done.returncode != 0:
        text = done.stderr.strip().splitlines()[-1:] if done else ["no python"]
        raise ProblemsFound([Problem(f"the model could not be made: {' '.join(text)}", "see the log", kind="machine")])


def outcome(request: Request, made: Run, stop: Stop) -> int:
    """Tell how a run ended; what LLaMA-Factory refused before the first step is the user's to change."""
    state = runs.state_after_end(made)
    if state == "finished":
        request.tell(finished=made.name)
        return FINE
    if state == "stopped":
        request.tell(stopped=made.name, why=_why(made))
        return INTERRUPTED if stop.asked == "SIGINT" else RUN_FAILED
    problem = _failure(made)
    request.tell(failed=made.name, lines=last_lines(made.log, LOG_LINES), log=str(made.log), problem=problem.as_json())
    # With the model in memory LLaMA-Factory has refused nothing: what ends a run from there on is a failure of the run.
    return RUN_FAILED if began(made) or made.loaded.is_file() else exit_code([problem])


def _failure(made: Run) -> Problem:
    """The known cause of a failed run, else what its log says."""
    known = rules.explain(tail(made.log), Place(str(made.log)))
    if known:
        return known
    if began(made):
        why, _, advice = (_why(made) or "no reason in the log").partition("; ")
        return Problem(f"{made.name} failed: {why}", advice or f"see {made.log}", Place(str(made.log)))
    why = raised(made.log) or _why(made) or "no reason in the log"
    return Problem(f"LLaMA-Factory refuses to start {made.name}: {why}", f"see {made.log}", Place(str(made.arguments)))


def _why(made: Run) -> str | None:
    """The supervisor's last word on a run."""
    tried = runs.attempts(made)
    return tried[-1].why if tried else None
