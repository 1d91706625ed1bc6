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

from ..errors import RunFailed
from ..machine import Row
from ..plan.fit import limit_gib
from ..plan.measured import ACCUMULATION, key_of, now_of
from ..runs import read_lines, typed
from ..runs.documents import append
from .levers import Settings
from .trial import Bench, Figures, Trial, try_out

GAIN = 0.98  # of the best's time: what is less of a gain is noise
SLOWER = 1.10  # of the best's time with fewest layers: the others are left out
AGAIN = 1.5  # of the start's time in the steps for the quality, whose rows are short
PATIENCE, LEAST_SECONDS = 4.0, 60.0  # times what the start took, at least: what takes longer hangs, or is of no use
EXACT, ROUNDED, HELD_OUT = 1e-5, 1e-3, 0.005  # how far losses may be apart, as a share of the start's
Changes = Literal["nothing", "rounding", "training"]
ORDER: tuple[Changes, ...] = ("nothing", "rounding", "training")


class CardFault(RunFailed):
    """The card computed outside its memory: nothing else may run on it before a reset."""


class Candidate(Struct, frozen=True):
    """Settings tried to the end, the most that they may change, what they cost with few layers and with all."""

    settings: Settings
    changes: Changes
    trials: tuple[Figures, ...]
    whole: Figures


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
        lines = (line for line in read_lines(self.kept) if "figures" in line)
        self.known = {str(line.get("trial")): typed(self.kept, Figures, line["figures"]) for line in lines}
        data = [path.read_text(encoding="utf-8") for path in sorted(self.at.workspace.data.glob("*.json"))]
        self.footing = json.dumps([to_builtins(key_of(plan)), plan.arguments, plan.environment, data], default=str)

    @property
    def best(self) -> Candidate:
        return self.accepted[-1]

    @property
    def left_seconds(self) -> float:
        return max(self.minutes * 60 - (time.monotonic() - self.began), 0.0)

    def start(self) -> None:
        """Measure the recipe as it stands. Raises RunFailed where it cannot be trained here."""
        found = self._measured({}, "nothing")
        if isinstance(found, str):
            raise RunFailed(f"the recipe as it stands cannot be measured: {found}")
        self.accepted.append(found)
        self._say("as it stands", {}, found, "the start")

    def again(self, settings: Settings) -> bool:
        """Begin with what was the best before; whether there was time for it."""
        lever = {"name": "the best before", "changes": "rounding"}
        chosen = {name: value for name, value in settings.items() if name != ACCUMULATION and value is not None}
        if self.left_seconds:
            self._better(lever, chosen)
        return self.left_seconds > 0

    def pull(self, lever: Row) -> None:
        """Try what a lever has."""
        if any(self._now(name) != value for name, value in lever.get("only_if", {}).items()):
            return
        for settings in self._doubled(lever["doubled"]) if "doubled" in lever else self._listed(lever):
            if self.left_seconds:
                self._better(lever, settings)

    def confirm(self) -> None:
        """Measure the start and the best with the model itself where it is on disk; a best that fails there goes."""
        if self.at.examined.model.folder and self.at.layers not in self.at.depths:
            self._confirmed(0)
            while len(self.accepted) > 1 and not self._confirmed(-1):
                self.accepted.pop()

    def _confirmed(self, number: int) -> bool:
        """Whether the model itself trains so; what that costs goes before what fewer layers foretold."""
        foretold = self.accepted[number]
        figures = self._tried(Trial(foretold.settings, self.at.layers))
        found: Candidate | str = f"{figures.trouble}: {figures.why}"
        if not figures.trouble:
            self.accepted[number] = found = replace(foretold, whole=figures)
        told = f"fewer layers foretold {foretold.whole.seconds_per_step / figures.seconds_per_step:.0%} of this time"
        self._say("all layers", foretold.settings, found, found if isinstance(found, str) else told)
        return figures.trouble in (None, "out of time")

    def _doubled(self, name: str) -> Iterator[dict[str, Any]]:
        """Twice the value as long as that is better; where it never is, half of it."""
        most, before = self.at.rows // int(self._now("kit.devices")), self._now(name)
        for factor in (2, 0.5):
            while 1 <= (value := int(self._now(name) * factor)) <= most and most % value == 0:
                yield {name: value}
                if self._now(name) != value:
                    break
            if self._now(name) != before:
                return

    def _listed(self, lever: Row) -> Iterator[dict[str, Any]]:
        from psutil import cpu_count

        words = {"{physical_cores}": str(cpu_count(logical=False) or 1)}
        filled = [{name: words.get(str(value), value) for name, value in each.items()} for each in lever["try"]]
        yield from (each for each in filled if any(self._now(name) != each[name] for name in each))

    def _now(self, name: str) -> Any:
        return self.best.settings.get(name, now_of(self.at.examined.plan, name))

    def _better(self, lever: Row, settings: Settings) -> None:
        """Measure the best with a lever's settings on top, and keep what is better and trains the same."""
        changes = max(lever["changes"], self.best.changes, key=ORDER.index)
        found = self._measured({**self.best.settings, **settings}, changes)
        why = found if isinstance(found, str) else self._no_gain(found) or self._refusal(found)
        if not isinstance(found, str) and why is None:
            self.accepted.append(found)
        self._say(lever["name"], settings, found, why or "kept")

    def _measured(self, settings: Settings, changes: Changes) -> Candidate | str:
        """What the settings give, or why they are no candidate."""
        trials: list[Figures] = []
        for number, layers in enumerate(self.at.depths):
            figures = self._tried(Trial(settings, layers))
            if figures.trouble:
                return f"{figures.trouble}: {figures.why}"
            trials.append(figures)
            best = self.best.trials[number].seconds_per_step if self.accepted else math.inf
            if len(self.at.depths) > 1 and figures.seconds_per_step > SLOWER * best:
                return f"slower with {layers} layers: {figures.seconds_per_step / best:.2f} times the best's step"
        return Candidate(settings, changes, tuple(trials), whole(trials, self.at.depths, self.at.layers))

    def _tried(self, trial: Trial) -> Figures:
        """One trial, or what it gave before. Raises CardFault."""
        text = json.dumps([self.footing, sorted(trial.settings.items()), trial.layers, trial.purpose, trial.repeat])
        name = hashlib.sha256(text.encode()).hexdigest()
        if name in self.known:
            return self.known[name]
        deeper = max(trial.layers / self.at.depths[-1], 1.0)
        patience = PATIENCE * deeper * self.accepted[0].trials[-1].took_seconds if self.accepted else math.inf
        figures = try_out(self.at, trial, max(min(max(patience, LEAST_SECONDS), self.left_seconds), 1.0))
        if figures.trouble == "stall" and not self.left_seconds:
            return replace(figures, trouble="out of time")  # not kept: the next `tune` tries it again
        self.known[name] = figures
        if figures.trouble == "stall":
            return figures  # not kept either: the machine may have been busy
        append(self.kept, {"trial": name, "settings": trial.settings, "figures": to_builtins(figures)})
        if figures.trouble == "gpu fault":
            raise CardFault(f"{figures.why}; reset the card, or restart the computer, before anything else runs on it")
        return figures

    def _no_gain(self, found: Candidate) -> str | None:
        limit = limit_gib(self.at.examined.machine)
        if limit and found.whole.held_gib > limit:
            return f"does not fit: the whole model needs {found.whole.held_gib:.1f} of {limit:.1f} GiB"
        return None if found.whole.seconds_per_step <= GAIN * self.best.whole.seconds_per_step else "no faster"

    def _refusal(self, found: Candidate) -> str | None:
        """Why what it trains in a few steps is not what the start trains; None where it is."""
        layers = self.at.depths[0]
        one, two = (self._tried(Trial({}, layers, "quality", repeat)) for repeat in (0, 1))
        other = self._tried(Trial(found.settings, layers, "quality"))
        for each in (one, two, other):
            if each.trouble == "out of time":
                return "faster, but no time was left to see what it trains: the same command goes on from there"
            if each.trouble or each.held_out is None:
                return f"refused: {each.trouble} in the steps for its quality: {each.why}"
        again = other.seconds_per_step / max(one.seconds_per_step, two.seconds_per_step)
        if again > AGAIN:
            return f"fast at first, and slow when repeated: {again:.1f} times the start's step"
        return refusal((one, two, other), found.changes, self.at.examined.plan.precision == "fp32")

    def _say(self, name: str, settings: Settings, found: Candidate | str, verdict: str) -> None:
        row: dict[str, Any] = {"name": name, "settings": dict(settings), "verdict": verdict}
        if not isinstance(found, str):
            cost, start = found.whole, self.accepted[0].trials[0].losses[0]
            row |= {"tokens_per_second": cost.tokens_per_step / cost.seconds_per_step, "peak_gib": cost.held_gib}
            row |= {"seconds_per_step": cost.seconds_per_step, "noise": cost.noise}
            row |= {"loss_difference": found.trials[0].losses[0] / start - 1}
        self.rows.append(row)
        self.tell({**row, "left_seconds": self.left_seconds})


def refusal(trained: tuple[Figures, Figures, Figures], changes: Changes, fp32: bool) -> str | None:
    """Why the third of three trainings is not what the first is; the second, a repeat of it, tells what chance does."""
    losses = list(zip(*(each.losses for each in trained), strict=False))
    looks = [("held-out rows", tuple(each.held_out or math.nan for each in trained), HELD_OUT)]
    if changes == "nothing" and fp32:
        looks += [(f"step {number}", each, EXACT) for number, each in enumerate(losses, 1)]
    elif changes != "training":
        looks += [("step 1", losses[0], ROUNDED)]
    for what, (start, again, found), least in looks:
        if not abs(start - found) <= max(least * abs(start), 2 * abs(start - again)):
            return f"fast, and refused: the loss of {what} is {found:.6g}, the start's {start:.6g}"
    return None


def whole(trials: Sequence[Figures], depths: Sequence[int], layers: int) -> Figures:
    """Time and memory grow by the same with each layer, so two numbers of layers tell those of all."""
    if len(trials) == 1:
        return trials[0]
    (first, last), (one, two) = trials, depths
    share = (layers - one) / (two - one)
    parts = ((1 - share) * first.seconds_per_step, share * last.seconds_per_step)
    noise = math.hypot(parts[0] * first.noise, parts[1] * last.noise) / sum(parts)
    held = (1 - share) * first.held_gib + share * last.held_gib
    return replace(last, seconds_per_step=sum(parts), noise=noise, held_gib=held)
