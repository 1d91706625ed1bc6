"""How the processes of a training share its model: what the launcher means, or a file of the user's own says."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..arguments import Settings

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
