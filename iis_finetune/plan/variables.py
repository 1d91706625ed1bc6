"""The step that writes the environment variables of a training, those of stage ppo's own environment among them."""

from ..arguments import LLAMAFACTORY, version_of
from ..decision import Decision
from ..machine import decide_environment
from ..models import Base
from .draft import Draft

HOOK = "{kit}/hook"
AUDIO_PLACEHOLDER = "{kit}/hook/torchaudio_placeholder"
PPO_ENVIRONMENT = "{ppo}"


def environment(draft: Draft) -> Draft:
    """The machine's variables, the kit's own, and over them `kit.env`."""
    decided = decide_environment(draft.machine, draft.launcher.here, draft.launcher.processes)
    variables = {each.name.removeprefix("environment."): str(each.value) for each in decided}
    paths = [HOOK, *([AUDIO_PLACEHOLDER] if draft.machine.torchaudio_placeholder else [])]
    variables |= {"PYTHONPATH": ":".join(paths), "IIS_RUN": "{run}", "IIS_PRECISION": draft.precision}
    variables["HF_DATASETS_CACHE"] = "{run}/cache"
    reason = "the data cache is keyed on path and time: in the run's own folder, an edited file is always read anew"
    cache = Decision("environment.HF_DATASETS_CACHE", "{run}/cache", "kit default", reason)
    draft = draft.export(variables).note(*decided, cache)
    for name, value in draft.recipe.kit.env.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        draft = draft.export({name: text}).keep(f"environment.{name}", text, "kit.env")
    return _ppo(draft, draft.inputs.reward) if draft.settings["stage"] == "ppo" else draft


def _ppo(draft: Draft, reward: Base | None) -> Draft:
    """Name the environment that has a LLaMA-Factory which can, and the result that `kit.reward` stands for."""
    # VIRTUAL_ENV is what activating an environment sets: its programs come first on PATH.
    draft = draft.export({"VIRTUAL_ENV": PPO_ENVIRONMENT, "IIS_STAGE": "ppo"})
    able = version_of("ppo")
    reason = f"LLaMA-Factory {LLAMAFACTORY} cannot run PPO; {able} can, in an environment of its own (make setup-ppo)"
    draft = draft.note(Decision("environment.VIRTUAL_ENV", PPO_ENVIRONMENT, "kit default", reason))
    if reward is None:
        return draft
    draft = draft.note(Decision("reward", reward.recipe.name, "recipe", "named by kit.reward"))
    draft = draft.write(reward_model_type="full" if reward.whole else "lora")
    if reward.whole or reward.adapters:
        draft = draft.write(reward_model=str(reward.model if reward.whole else reward.adapters[-1]))
    return draft
