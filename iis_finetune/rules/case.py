"""What the rules look at: what a recipe's arguments will be, its model, where it would run and how that is shared."""

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from ..arguments import Settings
from ..machine import Machine, fused_attention
from ..models import ModelFacts
from ..recipe import Kit, Recipe

Purpose = Literal["train", "evaluate", "export", "inference", "nothing"]
TRAINING: tuple[Purpose, ...] = ("train", "evaluate", "nothing")  # what `llamafactory-cli train` does

FEW_STEPS = 20  # fewer move a LoRA at an ordinary learning rate hardly at all
# transformers 5.6 training_args.py, `fsdp`: what each word keeps in one part a process; without one of them, all of it
FSDP_STAGES = {"no_shard": 0, "shard_grad_op": 2, "hybrid_shard_zero2": 2}


class Sharing(Struct, frozen=True, dict=True):
    """`launcher` is the kit's word, or `deepspeed` and `fsdp` where the recipe states that argument itself."""

    launcher: str
    settings: Settings

    @cached_property
    def own_zero(self) -> Mapping[str, Any] | None:
        """What a DeepSpeed configuration of the user's own says of ZeRO; None where it cannot be read."""
        config = self.settings["deepspeed"]
        if isinstance(config, str):
            try:
                config = json.loads(Path(config).read_bytes())
            except (OSError, ValueError):
                return None
        part = config.get("zero_optimization", {}) if isinstance(config, dict) else None
        return part if isinstance(part, dict) else None

    @property
    def zero_stage(self) -> int | None:
        """The ZeRO stage of this run; None without DeepSpeed, 0 where its configuration does not say."""
        if self.launcher.startswith("zero"):
            return int(self.launcher[4])
        stage = (self.own_zero or {}).get("stage")
        return (stage if isinstance(stage, int) else 0) if self.launcher == "deepspeed" else None

    @property
    def stage(self) -> int | None:
        """What is cut up: 0 nothing, 1 the optimizer's states, 2 gradients too, 3 weights too; None is unknown."""
        if self.launcher == "fsdp":
            return next((FSDP_STAGES[word] for word in self._fsdp if word in FSDP_STAGES), 3)
        if self.launcher == "deepspeed" and self.own_zero is None:
            return None
        return self.zero_stage or 0

    @property
    def offloads(self) -> bool:
        """Whether the optimizer's states lie in the computer's own memory."""
        return self._elsewhere("offload_optimizer")

    @property
    def offloads_weights(self) -> bool:
        return self.stage == 3 and self._elsewhere("offload_param")

    @property
    def _fsdp(self) -> list[str]:
        words = self.settings["fsdp"]  # or true: all is cut up
        return words.split() if isinstance(words, str) else list(map(str, words)) if isinstance(words, list) else []

    def _elsewhere(self, part: str) -> bool:
        if self.launcher == "deepspeed":
            own = (self.own_zero or {}).get(part)
            return isinstance(own, dict) and own.get("device", "none") != "none"
        return self.launcher.endswith("_offload") or (self.launcher == "fsdp" and "offload" in self._fsdp)


class Case(Struct, frozen=True, dict=True):
    """A recipe with what the plan decided for it; `case[name]` is what an argument will be.

    `rows` are the usable training rows of all data sets together, None where they were not counted.
    """

    recipe: Recipe
    settings: Settings
    machine: Machine
    model: ModelFacts
    processes: int = 1
    launcher: str = "single"
    precision: str = "fp32"
    attention: str = "sdpa"
    rows: int | None = None

    @property
    def kit(self) -> Kit:
        return self.recipe.kit

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def states(self, *names: str) -> bool:
        return self.settings.states(*names)

    def says(self, name: str, value: Any) -> bool:
        """Whether the recipe gives an argument this very value."""
        return self.states(name) and self[name] == value

    def refused(self, name: str) -> bool:
        """Whether the recipe gives an argument a value that cannot be used, which has been said at its line."""
        return self.recipe.value(name) is not None and name in self.settings.table and not self.states(name)

    def names(self, name: str) -> list[str]:
        return self.settings.names(name)

    def some(self, *keys: str) -> bool:
        """Whether one of these arguments is switched on, or given."""
        return any(self[key] for key in keys)

    @property
    def purpose(self) -> Purpose:
        """What LLaMA-Factory would do with this recipe; `nothing` is a data set without any `do_*`."""
        if self["do_train"]:
            return "train"
        if self.some("do_eval", "do_predict"):
            return "evaluate"
        if self["export_dir"]:
            return "export"
        return "nothing" if self.some("dataset", "eval_dataset") else "inference"

    @property
    def trains(self) -> bool:
        return self.purpose == "train"

    @property
    def evaluates(self) -> bool:
        """Whether anything is evaluated; an eval_strategy switches do_eval on."""
        return bool(self["do_eval"]) or self["eval_strategy"] != "no"

    @property
    def held_out(self) -> str:
        """The line that gives an evaluation its rows."""
        return "val_size: 0.05, or eval_dataset: NAME" if self["dataset"] else "eval_dataset: NAME"

    @property
    def evaluating(self) -> str:
        """The lines that an evaluation between the steps needs, without those that are there."""
        rows = self.some("eval_dataset") or self["val_size"] > 1e-6
        return "eval_strategy: steps" if rows else "eval_strategy: steps and val_size: 0.05"

    @property
    def metric(self) -> str | None:
        """What the best model is chosen by, `eval_` left out; None when nothing chooses."""
        chooses = self["load_best_model_at_end"] or self["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy")
        name = self["metric_for_best_model"] or ("loss" if chooses else None)
        return name.removeprefix("eval_") if name else None

    @property
    def launcher_is_automatic(self) -> bool:
        return self.recipe.kit.launcher == "auto" and not self.states("deepspeed", "fsdp")

    @cached_property
    def sharing(self) -> Sharing:
        return Sharing(self.launcher, self.settings)

    @property
    def zero_stage(self) -> int | None:
        """The ZeRO stage of this run; None without DeepSpeed, 0 where its configuration does not say."""
        return self.sharing.zero_stage

    @property
    def sharded(self) -> bool:
        """Whether no process holds a whole copy of the weights (ZeRO-3, FSDP)."""
        return self.zero_stage == 3 or self.launcher == "fsdp"

    @property
    def fused_attention(self) -> bool:
        """False where sdpa has only its math form, which keeps all scores (gfx906 and others)."""
        return fused_attention(self.machine, self.kit.env)

    @property
    def micro_batch(self) -> int:
        """Rows of one step on one device."""
        return int(self["per_device_train_batch_size"])

    @property
    def accumulation(self) -> int:
        """Micro-batches of one step of the optimizer."""
        return int(self["gradient_accumulation_steps"])

    @property
    def batches(self) -> int | None:
        """Micro-batches of one epoch on each device; None where rows are packed together or were not counted."""
        if self.rows is None or self.micro_batch < 1 or self.some("packing", "neat_packing", "streaming"):
            return None
        if self["stage"] == "pt" and self["packing"] is not False:
            return None
        held_out = self["val_size"] if self["val_size"] >= 1 else self.rows * self["val_size"]
        rows_each = (self.rows - int(held_out)) / (self.micro_batch * self.processes)
        return math.floor(rows_each) if self["dataloader_drop_last"] else math.ceil(rows_each)

    @property
    def steps(self) -> int | None:
        """Steps of the optimizer in the whole run; None where that cannot be known."""
        if self["max_steps"] > 0:
            return int(self["max_steps"])
        if self.batches is None or self.accumulation < 1:
            return None
        each = max(1, math.ceil(self.batches / self.accumulation))
        return math.ceil(each * float(self["num_train_epochs"]))

    @property
    def more_steps(self) -> str:
        """The line after which the whole run has FEW_STEPS: a smaller batch where one is enough, else more epochs."""
        batches, epochs = self.batches or 1, float(self["num_train_epochs"])
        smaller = [2**power for power in range((self.accumulation - 1).bit_length()) if 2**power <= batches]
        if enough := [each for each in smaller if math.ceil(batches / each) * epochs >= FEW_STEPS]:
            return f"kit.global_batch_size: {enough[-1] * self.micro_batch * self.processes}"
        return f"num_train_epochs: {math.ceil(FEW_STEPS / math.ceil(batches / self.accumulation))}"

    @property
    def warmup(self) -> int:
        """Steps until the learning rate is reached; below 1 both arguments are a share of the run."""
        wanted = self["warmup_ratio"] if self["warmup_ratio"] is not None else self["warmup_steps"]
        return math.ceil(wanted * (self.steps or 0)) if wanted < 1 else int(wanted)


def is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def names_in(folder: str) -> list[str]:
    """The names in a folder; none when it is not one."""
    try:
        return [entry.name for entry in Path(folder).iterdir()]
    except (OSError, ValueError):
        return []


def same(one: str, other: str) -> bool:
    """Whether two paths are the same place, links followed."""
    try:
        return Path(one).resolve() == Path(other).resolve()
    except (OSError, ValueError, RuntimeError):
        return one == other
