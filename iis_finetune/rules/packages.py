"""Which packages a recipe needs beside LLaMA-Factory's own, and which versions LLaMA-Factory checks at run time."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from msgspec import Struct

from ..arguments import accepted_versions
from ..errors import Problem
from ..tables import read
from ..wheels import TRIO
from .case import Case
from .conditions import optimizer_package
from .rule import holds

Versions = Mapping[str, str | None]
RANGES = accepted_versions()
ALWAYS = (*RANGES, *TRIO)  # what matters whatever the recipe


NO_LLAMAFACTORY = Problem(
    "LLaMA-Factory is not installed",
    "make setup; outside a clone the lines of `iis-finetune doctor --install-plan`, torch for this card first",
    kind="missing",
)


class Need(Struct, frozen=True):
    """A package that the first of the arguments that a recipe states needs, and from which version on."""

    package: str
    keys: str
    at_least: str | None = None


def _needs(case: Case) -> Iterator[Need]:
    known = read("packages.json")
    for row in known["needs"]:
        if holds(row.get("when", {row["keys"]: True}), case):
            yield Need(row["package"], row["keys"], row.get("at_least"))
    if case.trains:
        yield from (
            Need(known["trackers"][name], "report_to") for name in case.names("report_to") if name in known["trackers"]
        )
        if by_name := optimizer_package(case):
            yield Need(by_name, "optim")


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
            missing = "is not installed" if case.machine.here else "set-up does not bring"
            state = missing if found is None else f"is {found}"
            wanted = f"'{need.package}>={need.at_least}'" if need.at_least else need.package
            what = f"'{key}' needs the package {need.package}, which {state}"
            problems.append(Problem(what, f"pip install {wanted}", case.recipe.place(key), kind="missing"))
    return problems


def check_elsewhere(case: Case) -> list[Problem]:
    """What this recipe needs on a machine that is not looked at, beside what set-up brings there."""
    brought = dict.fromkeys(read("packages.json")["of_setup"], "1000.0")
    return [replace(each, severity="warning") for each in check_needs(case, brought)]


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
