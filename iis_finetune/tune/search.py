"""The search: lever by lever, the best is kept; what each trial gave is written down at once."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from .. import launch
from ..errors import RunFailed
from ..machine import Row
from ..plan.fit import limit_gib
from ..plan.measured import key_of, now_of
from ..runs import read_lines, typed
from ..runs.documents import append
from .levers import Settings
from .trial import QUALITY_STEPS, TIMED_STEPS, Bench, Trial, Tried, try_out

GAIN = 0.98  # of the best's time: what is less of a gain is noise
SLOWER = 1.10  # of the best's time with fewest layers: the others are left out
PATIENCE = 4.0  # times what the start took: what takes longer hangs, or is not worth waiting for
LEAST_SECONDS = 60.0  # that every trial gets
SEARCHING = 0.75  # of the time; the rest is for the gate
EXACT, ROUNDED, HELD_OUT = 1e-5, 1e-3, 0.005  # how far losses may be apart, as a share of the start's
Changes = Literal["nothing", "rounding", "training"]
ORDER: tuple[Changes, ...] = ("nothing", "rounding", "training")


class CardFault(RunFailed):
    """The card computed outside its memory: nothing else may run on it before a reset."""


class Candidate(Struct, frozen=True):
    """Settings tried to the end, the most that they may change, what they cost with few layers and with all."""

    settings: Settings
    changes: Changes
    trials: tuple[Tried, ...]
    whole: Tried


@dataclass
class Search:
    """A search under way; `tell` is given each row of the table, `kept` is the file of what trials gave."""

    at: Bench
    kept: Path
    minutes: float
    tell: Callable[[dict[str, Any]], None]
    began: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[Candidate] = field(default_factory=list)  # the start first, the best last

    def __post_init__(self) -> None:
        plan = self.at.examined.plan
        self.known = {line["trial"]: typed(self.kept, Tried, line["tried"]) for line in read_lines(self.kept)}
        data = [path.read_text(encoding="utf-8") for path in sorted(self.at.workspace.data.glob("*.json"))]
        self.footing = json.dumps([to_builtins(key_of(plan)), plan.arguments, plan.environment, data], default=str)
        self.fp32 = plan.precision == "fp32"

    @property
    def best(self) -> Candidate:
        return self.accepted[-1]

    def left(self, share: float = 1.0) -> float:
        """Seconds left of a share of the time."""
        return share * self.minutes * 60 - (time.monotonic() - self.began)

    def start(self) -> None:
        """Measure the recipe as it stands. Raises RunFailed where it cannot be trained here."""
        found = self._measured({}, "nothing")
        if isinstance(found, str):
            raise RunFailed(f"the recipe as it stands cannot be measured: {found}")
        self.accepted.append(found)
        self._say("as it stands", found, "the start")

    def pull(self, lever: Row) -> None:
        """Try what a lever has on top of the best, and keep what is better."""
        if any(self._now(name) != value for name, value in lever.get("only_if", {}).items()):
            return
        before = self.best
        for upwards in (True, False):
            for settings in self._tries(lever, upwards):
                if self.left(SEARCHING) > 0 and not self._better(lever, settings) and "doubled" in lever:
                    break
            if self.best is not before:
                return

    def settle(self) -> None:
        """Hold the best to the gate; where it fails, the one before it is the best."""
        while len(self.accepted) > 1:
            wrong = self._refusal(self.best)
            self._say("the best", self.best, wrong or f"trains the same for {QUALITY_STEPS} steps")
            if wrong is None:
                return
            self.accepted.pop()

    def _tries(self, lever: Row, upwards: bool) -> Iterator[dict[str, Any]]:
        from psutil import cpu_count

        if "doubled" in lever:
            name, most = lever["doubled"], self.at.rows // int(self._now("kit.devices"))
            value = int(self._now(name))
            while 0 < (value := value * 2 if upwards else value // 2) <= most:
                if most % value == 0:
                    yield {name: value}
        elif upwards:
            words = {"{physical_cores}": str(cpu_count(logical=False) or 1)}
            filled = [{name: words.get(value, value) for name, value in each.items()} for each in lever["try"]]
            yield from (each for each in filled if any(self._now(name) != each[name] for name in each))

    def _now(self, name: str) -> Any:
        return self.best.settings.get(name, now_of(self.at.examined.plan, name))

    def _better(self, lever: Row, settings: Settings) -> bool:
        """Measure the best with a lever's settings on top; whether that is the new best."""
        changes = max(lever["changes"], self.best.changes, key=ORDER.index)
        found = self._measured({**self.best.settings, **settings}, changes)
        why = found if isinstance(found, str) else self._no_gain(found)
        if not isinstance(found, str) and why is None and lever["changes"] != "nothing":
            why = self._refusal(found)
        if not isinstance(found, str) and why is None:
            self.accepted.append(found)
        self._say(lever["name"], found, why or "kept", settings)
        return why is None

    def _measured(self, settings: Settings, changes: Changes) -> Candidate | str:
        """What the settings give, or why they are no candidate."""
        trials: list[Tried] = []
        for number, layers in enumerate(self.at.depths):
            tried = self._tried(Trial(settings, layers))
            if tried.trouble:
                return f"{tried.trouble}: {tried.why}"
            if self.accepted:
                start, best = self.accepted[0].trials[number], self.best.trials[number].seconds_per_step
                why = _apart("the first loss", start.losses[0], tried.losses[0], self._least(changes))
                if why and changes != "training":
                    return f"refused: {why}"
                if len(self.at.depths) > 1 and tried.seconds_per_step > SLOWER * best:
                    return f"slower with {layers} layers: {tried.seconds_per_step / best:.2f} times the best's step"
            trials.append(tried)
        return Candidate(settings, changes, tuple(trials), whole(trials, self.at.depths, self.at.layers))

    def _tried(self, trial: Trial) -> Tried:
        """One trial, or what it gave before. Raises CardFault, and RunFailed when a run has the device by now."""
        text = json.dumps([self.footing, sorted(trial.settings.items()), trial.layers, trial.purpose, trial.repeat])
        name = hashlib.sha256(text.encode()).hexdigest()
        if name in self.known:
            return self.known[name]
        if other := launch.occupant(self.at.examined.plan.environment, self.at.question.workspace):
            raise RunFailed(f"{other.name} has begun on the same device; what was measured is kept: tune again later")
        longer = PATIENCE * (QUALITY_STEPS / TIMED_STEPS if trial.purpose == "quality" else 1)
        patience = longer * self.accepted[0].trials[0].took_seconds if self.accepted else math.inf
        tried = try_out(self.at, trial, max(min(max(patience, LEAST_SECONDS), self.left()), 1.0))
        if tried.trouble == "stall" and self.left() <= 0:
            return replace(tried, trouble="out of time")  # not kept: the next `tune` tries it again
        self.known[name] = tried
        append(self.kept, {"trial": name, "settings": trial.settings, "tried": to_builtins(tried)})
        if tried.trouble == "gpu fault":
            raise CardFault(f"{tried.why}; reset the card, or restart the computer, before anything else runs on it")
        return tried

    def _no_gain(self, found: Candidate) -> str | None:
        limit = limit_gib(self.at.examined.machine)
        if limit and found.whole.held_gib > limit:
            return f"does not fit: the whole model needs {found.whole.held_gib:.1f} of {limit:.1f} GiB"
        faster = found.whole.seconds_per_step <= GAIN * self.best.whole.seconds_per_step
        return None if faster else "no faster"

    def _refusal(self, found: Candidate) -> str | None:
        """Why what it trains in twenty steps is not what the start trains; None where it is."""
        layers = self.at.depths[0]
        starts = [self._tried(Trial({}, layers, "quality", repeat)) for repeat in (0, 1)]
        tried = self._tried(Trial(found.settings, layers, "quality"))
        for each in (*starts, tried):
            if each.trouble or each.held_out is None:
                return f"refused: {each.trouble} in {QUALITY_STEPS} steps: {each.why}"
        looks = [("the loss on held-out rows", HELD_OUT, [each.held_out or 0.0 for each in (*starts, tried)])]
        if found.changes != "training":
            looks += [("the first loss", self._least(found.changes), [each.losses[0] for each in (*starts, tried)])]
        for what, least, (one, two, other) in looks:
            if why := _apart(what, one, other, max(least, 2 * abs(one - two) / abs(one))):
                return f"fast, and refused: {why}"
        return None

    def _least(self, changes: Changes) -> float:
        return EXACT if changes == "nothing" and self.fp32 else ROUNDED

    def _say(self, name: str, found: Candidate | str, verdict: str, settings: Settings | None = None) -> None:
        row: dict[str, Any] = {"name": name, "settings": dict(settings or {}), "verdict": verdict}
        if not isinstance(found, str):
            whole, start = found.whole, self.accepted[0].trials[0].losses[0]
            row |= {"tokens_per_second": whole.tokens_per_step / whole.seconds_per_step, "peak_gib": whole.held_gib}
            row |= {"seconds_per_step": whole.seconds_per_step, "noise": whole.noise}
            row |= {"loss_difference": found.trials[0].losses[0] / start - 1}
        self.rows.append(row)
        self.tell({**row, "left_seconds": max(self.left(), 0.0)})


def _apart(what: str, start: float, other: float, least: float) -> str | None:
    if abs(start - other) <= least * abs(start):
        return None
    return f"{what} is {other:.6g}, the start's {start:.6g}: more than {least:.2g} of it apart"


def whole(trials: Sequence[Tried], depths: Sequence[int], layers: int) -> Tried:
    """Time and memory grow by the same with each layer, so two numbers of layers tell those of all."""
    if len(trials) == 1:
        return trials[0]
    (first, last), (one, two) = trials, depths
    share = (layers - one) / (two - one)
    parts = ((1 - share) * first.seconds_per_step, share * last.seconds_per_step)
    noise = math.hypot(parts[0] * first.noise, parts[1] * last.noise) / sum(parts)
    held = (1 - share) * first.held_gib + share * last.held_gib
    return replace(last, seconds_per_step=sum(parts), noise=noise, held_gib=held)
