"""Follow a detached start, or a run, from the terminal, and tell how it ends; what is followed is never harmed."""

import signal
import sys
import time
from typing import Any

from .. import process, runs
from ..errors import FINE, INTERRUPTED, RUN_FAILED, Place, Problem
from ..hub import Progress
from ..observe import follow, last_lines, signs
from ..process import Identity
from ..runs import Request, Run, weights
from . import show, streams
from .meter import DownloadMeter, StepMeter
from .summary import tell_evaluation
from .words import typed, workspace

POLL_SECONDS = 0.3


def to_request(request: Request, supervisor: Identity, looks: bool = False) -> int:
    """Follow a detached process until it ends; Ctrl-C asks it to stop and waits for that, unless one only looks."""
    follower = Follower(request)
    asked = False
    while True:
        try:
            follower.follow(supervisor)
            break
        except KeyboardInterrupt:
            if looks:
                follower.close()
                show.line("\nit goes on; next: iis-finetune status last")
                return FINE
            if asked:
                process.send([supervisor], signal.SIGQUIT)
                continue
            asked = True
            run = follower.meter.run if follower.meter else None
            what = waiting_for(run) if run else "waiting for the work under way"
            show.aside(f"stopping; {what} (Ctrl-C again ends it at once)")
            process.send([supervisor], signal.SIGINT)
    follower.close()
    if follower.code is None:
        show.aside(f"error: the supervisor is gone; the end of {request.log}:")
        for text in last_lines(request.log, 15):
            show.aside(f"  {text}")
        return INTERRUPTED if asked else RUN_FAILED
    return follower.code


def waiting_for(run: Run) -> str:
    """What a stop waits for, and about how long that takes."""
    pace = signs(run).seconds_per_step
    usual = f", about {show.duration(pace)} a step" if pace and pace >= 1 else ""
    return f"waiting for the step under way and its checkpoint{usual}"


class Follower:
    """Prints what a request tells; knows the exit code once it is told."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.position, self.began = 0, time.time()
        self.code: int | None = None
        self.meter: StepMeter | None = None
        self.download: DownloadMeter | None = None

    def follow(self, supervisor: Identity) -> None:
        while self.code is None and process.alive(supervisor):
            self.step()
            time.sleep(POLL_SECONDS)
        self.step()

    def step(self) -> None:
        for text, position in follow(self.request.progress, self.position):
            self.position = position
            self._tell(runs.json_object(text))
        if self.meter:
            self.meter.update()

    def _tell(self, told: dict[str, Any]) -> None:
        if "download" in told:
            if told["time"] < self.began:
                return  # the rate is that of what one has seen
            self.download = self.download or DownloadMeter(show.line)
            self.download(Progress(**told["download"]))
            return
        self.close()
        if "run" in told and "phase" not in told:
            run = Run(workspace().runs / told["run"])
            show.line(f"run {run.name}: {run.folder}")
            self.meter = StepMeter(run)
        elif "phase" in told:
            show.line(f"{told['phase']} ...")
            if "run" in told:
                self.meter = StepMeter(Run(workspace().runs / told["run"]))
                self.meter.now = signs(self.meter.run)  # its steps are done
        elif "exit" in told:
            self.code = int(told["exit"])
        else:
            _tell_ending(told, self.request)

    def close(self) -> None:
        for meter in (self.meter, self.download):
            if meter:
                meter.close()
        self.meter = self.download = None


def to_run(run: Run) -> int:
    """Follow a run; Ctrl-C ends only the following."""
    meter = StepMeter(run)
    try:
        while not streams.lost(sys.stdout) and runs.state(run) in ("starting", "running"):
            meter.update()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        meter.close()
        show.line(f"\n{run.name} goes on; next: iis-finetune status {run.number:04d}")
        return FINE
    meter.close()
    state = runs.state(run)
    show.line(f"{run.name}: {state}")
    return FINE if state in ("starting", "running", "finished") else RUN_FAILED  # the first two: nobody listens


def _tell_ending(told: dict[str, Any], request: Request) -> None:
    """Print one ending that a request told."""
    folder = workspace().runs
    if "finished" in told:
        _finished(Run(folder / told["finished"]))
    elif "evaluated" in told:
        tell_evaluation(Run(folder / told["evaluated"]), told.get("data", ()))
    elif "smoked" in told:
        asked = runs.read_json(request.asked) or {}
        words = typed(asked["recipe"], asked["overrides"])
        show.line(f"{Run(folder / told['smoked']).recipe_name}: smoke run passed: data, training and export work")
        show.line("  the base model itself was not loaded: a very small one of its kind stood in for it")
        refused = told.get("refused")  # the training itself, on this machine
        show.line(f"next: iis-finetune {'check' if refused else 'train'} {words}")
    elif "stopped" in told:
        show.line(f"{told['stopped']}: stopped" + (f": {told['why']}" if told.get("why") else ""))
        show.line(f"next: iis-finetune resume {Run(folder / told['stopped']).number:04d}")
    elif "problems" in told:
        show.problems([_problem(each) for each in told["problems"]], nothing_started=False)
    elif "failed" in told:
        _failed(told)


def _problem(told: dict[str, Any]) -> Problem:
    """Read back what Problem.as_json wrote."""
    place = Place(told["file"], told["line"], told["key"])
    return Problem(told["what"], told["fix"], place, told["severity"], told["kind"])


def _finished(run: Run) -> None:
    show.line(f"{run.name}: finished")
    names = ", ".join(path.name for path in weights(run.output))
    show.line(f"  result: {run.output} ({names})")
    picture = run.output / "training_loss.png"
    if picture.is_file():
        show.line(f"  loss:   {picture}")
    text = run.recipe.read_text(encoding="utf-8")
    if "evaluate_after:" not in text and "guard:" not in text and not run.smoke:
        merges = (run.output / "adapter_config.json").is_file()
        verb = "evaluate" if "eval_dataset:" in text else "export" if merges else "report"
        show.line(f"next: iis-finetune {verb} {run.number:04d}")


def _failed(told: dict[str, Any]) -> None:
    for text in told.get("lines", ()):
        show.aside(f"  | {text}")
    if "problem" in told:
        show.problems([_problem(told["problem"])], nothing_started=False)
    else:
        show.aside(f"error: {told['failed']}")
    show.aside(f"  log:   {told['log']}")
