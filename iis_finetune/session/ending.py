"""How a run ended, and the known cause if it failed."""

from __future__ import annotations

from .. import rules, runs
from ..errors import FINE, INTERRUPTED, RUN_FAILED, Place, Problem, exit_code
from ..observe import began, last_lines, raised, tail
from ..runs import Request, Run
from ..supervise import Stop

LOG_LINES = 15


def tell_ending(request: Request, made: Run, stop: Stop) -> int:
    """The exit code of a run's end; what LLaMA-Factory refused before the first step is the user's to change."""
    state = runs.state_after_end(made)
    if state == "finished":
        request.tell(finished=made.name)
        return FINE
    if state == "stopped":
        request.tell(stopped=made.name, why=_why(made))
        return INTERRUPTED if stop.asked == "SIGINT" else RUN_FAILED
    problem = failure(made)
    request.tell(failed=made.name, lines=last_lines(made.log, LOG_LINES), log=str(made.log), problem=problem.as_json())
    # With the model in memory LLaMA-Factory has refused nothing: what ends a run from there on is a failure of the run.
    return RUN_FAILED if began(made) or made.loaded.is_file() else exit_code([problem])


def failure(made: Run) -> Problem:
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
