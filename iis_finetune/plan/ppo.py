"""What stage ppo adds to a plan: an environment of its own and the reward model."""

from __future__ import annotations

from ..arguments import LLAMAFACTORY, version_of
from ..decision import Decision
from ..models import Base
from .draft import Draft

ENVIRONMENT = "{ppo}"


def add(draft: Draft, reward: Base | None) -> None:
    """Name the environment that has a LLaMA-Factory which can, and the result that `kit.reward` stands for."""
    # VIRTUAL_ENV is what activating an environment sets: its programs come first on PATH.
    draft.environment |= {"VIRTUAL_ENV": ENVIRONMENT, "IIS_STAGE": "ppo"}
    able = version_of("ppo")
    reason = f"LLaMA-Factory {LLAMAFACTORY} cannot run PPO; {able} can, in an environment of its own (make setup-ppo)"
    draft.decisions.append(Decision("environment.VIRTUAL_ENV", ENVIRONMENT, "kit default", reason))
    if reward is None:
        return
    draft.decisions.append(Decision("reward", reward.recipe.name, "recipe", "named by kit.reward"))
    draft.arguments["reward_model_type"] = "full" if reward.whole else "lora"
    if reward.whole or reward.adapters:
        draft.arguments["reward_model"] = str(reward.model if reward.whole else reward.adapters[-1])
