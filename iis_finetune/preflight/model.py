"""What is wrong with the model and the reward model that a recipe names, and with what it says of them."""

from fnmatch import fnmatchcase
from pathlib import Path

from .. import models
from ..arguments import Settings, find_model, settings_of
from ..errors import Problem
from ..models import Base, ModelFacts
from ..plan import Inputs
from ..recipe import Recipe
from ..runs import Run, read_decided
from ..tables import read

LONGEST_HUB_ID = 200  # two names of 96 letters and a slash; what is longer may be too long for a path as well


def model_problems(recipe: Recipe, model: ModelFacts, settings: Settings) -> list[Problem]:
    """Is it there and whole; do adapter, targets and template belong to it?"""
    problems = _folder(recipe, model)
    targets = (("lora_target", models.check_targets), ("additional_target", models.check_additional_target))
    for key, check in targets:
        if settings.states(key):
            problems += check(settings.names(key), model, recipe.place(key))
    if settings.states("template"):
        problems += models.check_template(settings["template"], model, recipe.place("template"))
    adapters = recipe.value("adapter_name_or_path")
    if isinstance(adapters, str):
        place = recipe.place("adapter_name_or_path")
        problems += [each for name in adapters.split(",") for each in models.check_adapter(Path(name), model, place)]
    return problems


def _folder(recipe: Recipe, model: ModelFacts) -> list[Problem]:
    place = recipe.place("model_name_or_path")
    stated = recipe.value("model_name_or_path")
    if recipe.kit.base and stated and stated != model.name:
        there = recipe.place("kit.base")
        what = f"'model_name_or_path' and 'kit.base' ({there}) name two different bases"
        return [Problem(what, "keep one of them; kit.base=null unsets the other", place)]
    if recipe.kit.base or (recipe.kit.from_scratch and not model.folder):
        return []  # made first when it is missing
    if not model.name:
        return [Problem("no model_name_or_path", "name a base model, or kit.base: RECIPE", place)]
    if model.folder:
        return models.check_folder(model.folder, place)
    if looks_local(model.name):
        what = f"the model folder '{model.name}' does not exist"
        return [Problem(what, "give the path of a model folder, or a hub id", place, kind="missing", code=2)]
    length = f", so what cutoff_len {recipe.value('cutoff_len')} cuts off the rows is not counted"
    what = f"'{model.name}' is not on disk yet{length if recipe.states('cutoff_len') else ''}"
    fetch = "train downloads it first" if recipe.value("do_train") else f"iis-finetune download {model.name}"
    return [_gate(recipe, model.name, fetch) or Problem(what, fetch, place, "warning", "missing")]


def _gate(recipe: Recipe, name: str, fetch: str) -> Problem | None:
    """What has to be done by hand before a model can be downloaded."""
    if recipe.kit.source == "modelscope" or not any(fnmatchcase(name, each) for each in read("models.toml")["gated"]):
        return None
    known = find_model(name) or find_model(name.replace("/Llama", "/Meta-Llama"))
    what = f"'{name}' is not on disk yet, and Hugging Face gives it only to those who accepted its licence"
    fix = f"accept it at https://huggingface.co/{name}, then hf auth login, or export HF_TOKEN=...; {fetch}"
    if known and known.modelscope:
        fix += f"; or model_name_or_path={known.modelscope} kit.source=modelscope, which asks for neither"
    return Problem(what, fix, recipe.place("model_name_or_path"), "warning", "missing")


def looks_local(name: str) -> bool:
    """Whether a model name can only be a path: hub ids are `owner/name`."""
    written_so = name.startswith((".", "/", "~", "models/")) or name.count("/") != 1
    return written_so or len(name) > LONGEST_HUB_ID or Path(name).exists()


def reward_problems(inputs: Inputs, settings: Settings) -> list[Problem]:
    """Is it there, is it one, and does it score the model that is trained?"""
    recipe, reward, named = inputs.recipe, inputs.reward, inputs.recipe.value("reward_model")
    if settings["stage"] != "ppo" or not (reward or named):
        return []
    if reward is None:
        return _reward_folder(recipe, str(named), settings["reward_model_type"])
    place = recipe.place("kit.reward")
    if named:
        what = f"'reward_model' and 'kit.reward' ({place}) name two reward models"
        return [Problem(what, "keep one of them; kit.reward=null unsets the other", recipe.place("reward_model"))]
    of_reward, _ = settings_of(reward.recipe)
    stage = of_reward["stage"]
    if stage != "rm":
        return [Problem(f"kit.reward names a recipe of stage {stage}, which gives no reward", "name one of rm", place)]
    if reward.whole:
        return []
    return _footing(inputs, reward, settings)


def _reward_folder(recipe: Recipe, named: str, kind: str) -> list[Problem]:
    if kind == "api" or (kind == "full" and not looks_local(named)):
        return []
    wanted = "config.json" if kind == "full" else "adapter_config.json"
    if (Path(named) / wanted).is_file():
        return []
    what = f"reward_model '{named}' is no folder with {wanted} (reward_model_type: {kind})"
    fix = "reward_model: RUN/output of a training with stage rm, or kit.reward: RECIPE, which makes it"
    return [Problem(what, fix, recipe.place("reward_model"), kind="missing", code=2)]


def _footing(inputs: Inputs, reward: Base, settings: Settings) -> list[Problem]:
    """An adapter scores only the weights that it was trained on: with the same adapter merged below it, or none."""
    place = inputs.recipe.place("kit.reward")
    of_reward, _ = models.base_of(reward.recipe, inputs.workspace)
    merged = settings["create_new_adapter"]
    ours = _weights(inputs.recipe, inputs.base, merged)
    theirs = _weights(reward.recipe, of_reward, reward.recipe.value("create_new_adapter"))
    if ours != theirs:
        what = f"the reward adapter of '{reward.recipe.name}' belongs to {theirs}, and this recipe trains {ours}"
        return [Problem(what, "give both recipes the same kit.base and the same create_new_adapter", place)]
    if not (merged and reward.ready and inputs.base and inputs.base.ready):
        return []
    decided = read_decided(Run(Path(str(settings["reward_model"])).parent))
    if decided.arguments.get("adapter_name_or_path") == settings["adapter_name_or_path"]:
        return []
    what = f"the reward model was trained on another result of '{inputs.base.recipe.name}' than this recipe trains"
    return [Problem(what, f"iis-finetune train {reward.recipe.name}", place, kind="missing")]


def _weights(recipe: Recipe, base: Base | None, merged: object) -> str:
    """The frozen weights below the adapter that a recipe trains, in words."""
    model = base.model if base else recipe.value("model_name_or_path", "")
    if base is None or not merged or base.whole:
        return str(model)
    return f"{model} with the adapter of '{base.recipe.name}' merged"
