"""Which packages a recipe needs beside LLaMA-Factory's own, and which versions LLaMA-Factory checks at run time."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..arguments import accepted_versions
from ..errors import Problem
from .case import Case

Versions = Mapping[str, str | None]
RANGES = accepted_versions()
TRIO = ("torch", "torchvision", "torchaudio")
ALWAYS = (*RANGES, *TRIO)  # what matters whatever the recipe
# report_to -> package; transformers integrations/integration_utils.py, 2026-11-21
TRACKERS = {
    "azure_ml": "azureml-core", "clearml": "clearml", "codecarbon": "codecarbon", "comet_ml": "comet-ml",
    "dagshub": "dagshub", "dvclive": "dvclive", "flyte": "flytekit", "mlflow": "mlflow", "neptune": "neptune",
    "swanlab": "swanlab", "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb",
}  # fmt: skip
# optim -> package, by a pattern; first match wins. transformers trainer_optimizer.py, 2026-11-21
OPTIMIZERS = {
    r"adamw_torch_[48]bit": "torchao",
    r"galore_": "galore_torch",
    r"apollo_": "apollo_torch",
    r".*8bit|paged_|lion_|ademamix|rmsprop_bnb": "bitsandbytes",
    r"lomo|adalomo": "lomo-optim",
    r"grokadamw": "grokadamw",
    r"schedule_free": "schedulefree",
    r"adamw_apex": "apex",
    r"stable_adamw": "torch-optimi",
}


@dataclass(frozen=True)
class Need:
    """A package that one of the arguments needs, and from which version on."""

    package: str
    keys: str
    when: Callable[[Case], object]
    at_least: str | None = None


def _switch(package: str, key: str, at_least: str | None = None) -> Need:
    return Need(package, key, lambda c: c[key], at_least)


def _method(name: str) -> Need:
    return Need(name, "quantization_method", lambda c: c["quantization_bit"] and c["quantization_method"] == name)


def _engine(name: str) -> Need:
    return Need(name, "infer_backend", lambda c: c.purpose == "inference" and c["infer_backend"] == name)


def _saved(kind: str, package: str, at_least: str | None = None) -> Need:
    return Need(package, "model_name_or_path", lambda c: c.model.quantization == kind, at_least)


# hparams/parser.py:205-258, model/model_utils/quantization.py and train/tuner.py:93 of LLaMA-Factory, 2026-11-21.
# bitsandbytes for quantization_bit is the machine's matter: which build depends on the device.
NEEDS = (
    _switch("galore_torch", "use_galore"),
    _switch("apollo_torch", "use_apollo"),
    _switch("badam", "use_badam", "1.2.1"),
    _switch("adam-mini", "use_adam_mini"),
    _switch("liger-kernel", "enable_liger_kernel"),
    _switch("liger-kernel", "use_liger_kernel"),
    _switch("unsloth", "use_unsloth"),
    _switch("mixture-of-depth", "mixture_of_depths", "1.1.6"),
    _switch("swanlab", "use_swanlab"),
    _switch("hyper_parallel", "use_hyper_parallel"),
    *(_switch(package, "use_kt") for package in ("kt-kernel", "transformers-kt", "accelerate-kt")),
    *(_switch(package, "predict_with_generate") for package in ("jieba", "nltk", "rouge_chinese")),
    _switch("optimum", "export_quantization_bit", "1.24.0"),
    _switch("gptqmodel", "export_quantization_bit", "2.0.0"),
    _method("hqq"),
    _method("eetq"),
    _saved("gptq", "gptqmodel", "2.0.0"),
    _saved("awq", "autoawq"),
    _saved("aqlm", "aqlm", "1.1.0"),
    Need("matplotlib", "plot_loss", lambda c: c.trains and c["plot_loss"]),
    Need("deepspeed", "deepspeed kit.launcher", lambda c: c.zero_stage is not None, "0.9.3"),
    Need("torchao", "fp8", lambda c: c["fp8"] and c["fp8_backend"] == "torchao" and c.machine.devices),
    Need("transformer_engine", "fp8", lambda c: c["fp8"] and c["fp8_backend"] == "te" and c.machine.devices),
    *(_engine(name) for name in ("vllm", "sglang")),
)


def _needs(case: Case) -> list[Need]:
    """What this recipe needs; a tracker and an optimizer each name a package of their own."""
    found = [need for need in NEEDS if need.when(case)]
    trackers = case.names("report_to") if case.trains else []
    found += [Need(TRACKERS[name], "report_to", bool) for name in trackers if name in TRACKERS]
    by_name = optimizer_package(case)
    return [*found, Need(by_name, "optim", bool)] if by_name and case.trains else found


def optimizer_package(case: Case) -> str | None:
    """The package that an optimizer comes from; None for those of torch and transformers."""
    return next((package for pattern, package in OPTIMIZERS.items() if re.match(pattern, case["optim"])), None)


def packages_of(case: Case) -> tuple[str, ...]:
    """The packages whose installed versions `check_packages` wants to know."""
    return tuple(dict.fromkeys([*ALWAYS, *(need.package for need in _needs(case))]))


def check_packages(case: Case, versions: Versions) -> list[Problem]:
    """What is missing, too old or too new, and whether torch's two companions were built for it."""
    return [*check_needs(case, versions), *check_always(versions, case.machine.torchaudio_placeholder)]


def check_needs(case: Case, versions: Versions) -> list[Problem]:
    """What this recipe alone needs and does not find."""
    problems = []
    for need in _needs(case):
        found = versions.get(need.package)
        if found is None or (need.at_least and _release(found) < _release(need.at_least)):
            key = next((key for key in need.keys.split() if case.recipe.states(key)), need.keys.split()[0])
            state = "is not installed" if found is None else f"is {found}"
            wanted = f"'{need.package}>={need.at_least}'" if need.at_least else need.package
            what = f"'{key}' needs the package {need.package}, which {state}"
            problems.append(Problem(what, f"pip install {wanted}", case.recipe.place(key), kind="missing"))
    return problems


def check_always(versions: Versions, placeholder: bool | None) -> list[Problem]:
    """What LLaMA-Factory refuses to start with, whatever the recipe; `placeholder` as in Machine."""
    return [*_ranges(versions), *_trio(versions, placeholder)]


def _release(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, `+cpu` and the like left out."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _ranges(versions: Versions) -> list[Problem]:
    problems = []
    for name, (lowest, highest) in RANGES.items():
        found = versions.get(name)
        if found is not None and not _release(lowest) <= _release(found) <= _release(highest):
            what = f"{name} {found} is installed; LLaMA-Factory starts with {lowest} to {highest} only"
            problems.append(Problem(what, f"make setup, or pip install '{name}=={highest}'", kind="missing"))
    return problems


def _trio(versions: Versions, placeholder: bool | None) -> list[Problem]:
    """LLaMA-Factory imports torchaudio for every model, transformers torchvision where it is there."""
    torch, vision, audio = (versions.get(name) for name in TRIO)
    if torch is None:
        return []
    fix = "make setup, or iis-finetune doctor --fix"
    if audio is None and not placeholder:
        what = "torchaudio is not installed; LLaMA-Factory imports it for every model"
        return [Problem(what, fix, kind="missing")]
    tag, minor = torch.partition("+")[2], _release(torch)[1]
    unlike = []
    if vision and (vision.partition("+")[2] != tag or _release(vision)[:2] != (0, minor + 15)):
        unlike.append(f"torchvision {vision}")
    if audio and audio.partition("+")[2] != tag and placeholder is None:
        unlike.append(f"torchaudio {audio}")
    return [
        Problem(f"{name} was built for another torch than {torch}: it may not load", fix, severity="warning",
                kind="missing")
        for name in unlike
    ]  # fmt: skip
