"""The detached process: it reads its order, carries it out, and tells whoever is attached how that ends."""

import traceback
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from .. import dataset, runs
from ..errors import BUG, INPUT, KitError, ProblemsFound
from ..preflight import Question
from ..runs import Nodes, Request, Workspace
from ..supervise import Stop
from . import bringup, smoke
from .bringup import Session


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
    read = runs.read_json(request.asked)
    if not read:
        return INPUT
    order = runs.typed(request.asked, Order, read)
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
        return smoke.run(session)
    if order.resume:
        made = runs.find(session.question.workspace, order.resume)
        return bringup.resume(session, made, order.accept_changes)
    return bringup.train(session)
