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
from ..plan.measured import ACCUMULATION, MICRO_BATCH, key_of, now_of
from ..runs import read_lines, typed
from ..runs.documents import append
from ..tables import read
from .levers import Settings
from .trial import Bench, Figures, Trial, try_out

GAIN = 0.98  # of the best's time: what is less of a gain is noise
AGAIN = 1.5  # of the start's time in the steps for the quality, whose rows are short
PATIENCE, LEAST_SECONDS = 4.0, 60.0  # times what the start took, at least: what takes longer hangs, or is of no use
FEWEST_ROWS = 4  # of a step for the quality
CONFIRMING = 0.5  # of all the time, at most, for start and best with all layers
EXACT, ROUNDED, HELD_OUT = 1e-5, 1e-3, 0.005  # how far losses may be apart, as a share of the start's
Changes = Literal["nothing", "rounding", "training"]
ORDER: tuple[Changes, ...] = ("nothing", "rounding", "training")


class CardFault(RunFailed):
    """The card computed outside its memory: nothing else may run on it before a reset."""


class Candidate(Struct, frozen=True):
    """Settings, the most that they may change, what they cost with the fewest layers of a trial and with all."""

    settings: Settings
    changes: Changes
    shallow: Figures
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
    looked_seconds: float = 0.0  # what a look at the quality took at most
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
    def fp32(self) -> bool:
        return self.at.examined.plan.precision == "fp32"

    @property
    def left_seconds(self) -> float:
        return max(self.minutes * 60 - (time.monotonic() - self.began), 0.0)

    @property
    def confirming_seconds(self) -> float:
        """What the start and the best will take with all layers; 0 where they are measured so anyhow, or cannot be."""
        if self.at.layers in self.at.depths or not self.at.examined.model.folder:
            return 0.0
        steps = read("tune.toml")["trial"]["time"]["max_steps"]
        pair = (self.accepted[0], self.best)
        needed = sum(each.shallow.start_up_seconds + (steps + 1) * each.whole.seconds_per_step for each in pair)
        return needed if needed <= CONFIRMING * self.minutes * 60 else 0.0

    def tries(self, lever: Row) -> bool:
        """Whether there is time for a lever beside what the last looks at the best will take."""
        look = self.looked_seconds or self.accepted[0].shallow.took_seconds
        looks = 2 if lever["changes"] == "nothing" else 3
        return self.left_seconds > self.confirming_seconds + looks * look

    def start(self) -> None:
        """Measure the recipe as it stands. Raises RunFailed where it cannot be trained here."""
        found = self._with_layers({}, self.at.depths)
        if isinstance(found, str):
            raise RunFailed(f"the recipe as it stands cannot be measured: {found}")
        self.accepted.append(Candidate({}, "nothing", found[0], whole(found, self.at.depths, self.at.layers)))
        self._say("as it stands", {}, self.best, "the start")

    def again(self, settings: Settings) -> bool:
        """Begin with what was the best before; whether there was time for it."""
        lever = {"name": "the best before", "changes": "rounding"}
        chosen = {name: value for name, value in settings.items() if name != ACCUMULATION and value is not None}
        tries = self.tries(lever)
        if tries:
            self._better(lever, chosen)
        return tries

    def pull(self, lever: Row) -> None:
        """Try what a lever has."""
        if any(self._now(name) != value for name, value in lever.get("only_if", {}).items()):
            return
        for settings in self._doubled(lever["doubled"]) if "doubled" in lever else self._listed(lever):
            if not self.tries(lever):
                self._say(lever["name"], settings, "", "not tried: too little time is left")
                return
            self._better(lever, settings)

    def settle(self) -> None:
        """Look at what the best trains, and at what it and the start cost with all layers; a best that fails goes."""
        while len(self.accepted) > 1:
            why = self._refusal(self.best)
            self._say("its quality", self.best.settings, why or self.best, why or "trains what the start trains")
            if not why:
                break
            self.accepted.pop()
        if not self.left_seconds:
            return
        if self.confirming_seconds:
            self._confirmed(0)
            while len(self.accepted) > 1 and not self._confirmed(-1):
                self.accepted.pop()
        elif not isinstance(found := self._with_layers(self.best.settings, self.at.depths), str):
            held = whole(found, self.at.depths, self.at.layers).held_gib
            self.accepted[-1] = replace(self.best, whole=replace(self.best.whole, held_gib=held))

    def _confirmed(self, number: int) -> bool:
        """Whether the model itself trains so; what that costs goes before what fewer layers foretold."""
        foretold = self.accepted[number]
        figures = self._tried(Trial(foretold.settings, self.at.layers))
        found: Candidate | str = f"{figures.trouble}: {figures.why}"
        if not figures.trouble:
            if number == 0:  # the others were foretold as shares of it
                self.accepted = [_scaled(each, foretold.whole, figures) for each in self.accepted]
            self.accepted[number] = found = replace(foretold, whole=figures)
        share = (
            foretold.whole.seconds_per_step / figures.seconds_per_step,
            foretold.whole.held_gib / (figures.held_gib or 1),
        )
        told = f"fewer layers foretold {share[0]:.0%} of this time and {share[1]:.0%} of this memory"
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
        plan, merged = self.at.examined.plan, {**self.best.settings, **settings}
        chosen = {key: value for key, value in merged.items() if value != now_of(plan, key)}
        found = self._measured(chosen, changes)
        why = found if isinstance(found, str) else self._no_gain(found) or self._apart(found)
        if not isinstance(found, str) and why is None and lever["changes"] != "nothing":
            why = self._refusal(found)  # at once: what is kept after it would go with it
        if not isinstance(found, str) and why is None:
            self.accepted.append(found)
        self._say(lever["name"], settings, found, why or "kept")

    def _measured(self, settings: Settings, changes: Changes) -> Candidate | str:
        """What the settings give, or why they are no candidate.

        Its time with all layers is the start's in the proportion of the trials with the fewest: a line through two
        trials of its own, drawn on to all layers, would make some times as much of chance.
        """
        found, start, depths = self._with_layers(settings, self.at.depths[:1]), self.accepted[0], self.at.depths
        if isinstance(found, str):
            return found
        (shallow,) = found
        share = shallow.seconds_per_step / start.shallow.seconds_per_step
        held = start.whole.held_gib * shallow.held_gib / start.shallow.held_gib
        limit = limit_gib(self.at.examined.machine)
        if limit and shallow.held_gib * self.at.layers / depths[0] > limit:
            found = self._with_layers(settings, depths)
            if isinstance(found, str):
                return found
            held = whole(found, depths, self.at.layers).held_gib
        seconds = share * start.whole.seconds_per_step
        return Candidate(settings, changes, shallow, replace(shallow, seconds_per_step=seconds, held_gib=held))

    def _with_layers(self, settings: Settings, depths: Sequence[int]) -> list[Figures] | str:
        """A trial with each number of layers, or what went wrong."""
        trials: list[Figures] = []
        for layers in depths:
            trials.append(self._tried(Trial(settings, layers)))
            if trials[-1].trouble:
                return f"{trials[-1].trouble}: {trials[-1].why}"
        return trials

    def _tried(self, trial: Trial) -> Figures:
        """One trial, or what it gave before. Raises CardFault."""
        text = json.dumps(
            [self.footing, sorted(trial.settings.items()), trial.layers, trial.purpose, trial.repeat, trial.rows]
        )
        name = hashlib.sha256(text.encode()).hexdigest()
        if name in self.known:
            return self.known[name]
        deeper = max(trial.layers / self.at.depths[0], 1.0)
        patience = PATIENCE * deeper * self.accepted[0].shallow.took_seconds if self.accepted else math.inf
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

    def _apart(self, found: Candidate) -> str | None:
        """Why the losses of the timed steps show already that it trains something else."""
        if now_of(self.at.examined.plan, "lora_dropout"):
            return None  # another micro-batch drops others
        start = self.accepted[0].shallow
        return refusal((start, found.shallow, start), found.changes, self.fp32, ROUNDED)

    def _refusal(self, found: Candidate) -> str | None:
        """Why what it trains in a few steps is not what the start trains; None where it is."""
        why, trained = None, list[Figures]()
        for settings, repeat in (({}, 0), (found.settings, 0), ({}, 1)):
            each = self._tried(Trial(settings, self.at.quality_layers, "quality", repeat, self._rows(found.settings)))
            self.looked_seconds = max(self.looked_seconds, each.took_seconds)
            if each.trouble == "out of time":
                return "faster, but no time was left to see what it trains: the same command goes on from there"
            if each.trouble or each.held_out is None:
                return f"refused: {each.trouble} in the steps for its quality: {each.why}"
            trained.append(each)
            if trained[1:]:  # the start's repeat tells what chance does: it can only allow more
                why = refusal((*trained, trained[0])[:3], found.changes, self.fp32)
                if not why:
                    break
        again = trained[1].seconds_per_step / trained[0].seconds_per_step
        slow = f"fast at first, and slow when repeated: {again:.1f} times the start's step"
        return why or (slow if again > AGAIN else None)

    def _rows(self, settings: Settings) -> int:
        """As few rows in a step for the quality as both the start and the settings can have."""
        plan, most = self.at.examined.plan, self.at.rows
        as_it_stands = {MICRO_BATCH: plan.settings[MICRO_BATCH], "kit.devices": plan.processes}
        shares = [each[MICRO_BATCH] * each["kit.devices"] for each in (as_it_stands, {**as_it_stands, **settings})]
        fits = (n for n in range(min(FEWEST_ROWS, most), most) if most % n == 0 and not any(n % one for one in shares))
        return next(fits, most)

    def _say(self, name: str, settings: Settings, found: Candidate | str, verdict: str) -> None:
        row: dict[str, Any] = {"name": name, "settings": dict(settings), "verdict": verdict}
        if not isinstance(found, str):
            cost, start = found.whole, self.accepted[0].shallow.losses[0]
            row |= {"tokens_per_second": cost.tokens_per_step / cost.seconds_per_step, "peak_gib": cost.held_gib}
            row |= {"seconds_per_step": cost.seconds_per_step, "noise": cost.noise}
            row |= {"loss_difference": found.shallow.losses[0] / start - 1}
        self.rows.append(row)
        self.tell({**row, "left_seconds": self.left_seconds})


def _scaled(found: Candidate, foretold: Figures, real: Figures) -> Candidate:
    seconds, held = (getattr(real, each) / (getattr(foretold, each) or 1) for each in ("seconds_per_step", "held_gib"))
    cost = found.whole
    return replace(
        found, whole=replace(cost, seconds_per_step=cost.seconds_per_step * seconds, held_gib=cost.held_gib * held)
    )


def refusal(trained: Sequence[Figures], changes: Changes, fp32: bool, exact: float = EXACT) -> str | None:
    """Why the second training is not what the first, the start's, is; the third, its repeat, tells what chance does."""
    losses = list(zip(*(each.losses for each in trained), strict=False))
    looks = []
    if trained[0].held_out is not None:
        looks = [("held-out rows", tuple(each.held_out or math.nan for each in trained), HELD_OUT)]
    if changes == "nothing" and fp32:
        looks += [(f"step {number}", each, exact) for number, each in enumerate(losses, 1)]
    elif changes != "training":
        looks += [("step 1", losses[0], ROUNDED)]
    for what, (first, other, repeated), least in looks:
        if not abs(first - other) <= max(least * abs(first), 2 * abs(first - repeated)):
            return f"fast, and refused: the loss of {what} is {other:.6g}, the start's {first:.6g}"
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
