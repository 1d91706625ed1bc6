"""Look at a recipe and the world together: every problem, before anything starts."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from .. import dataset, machine, models, plan, rules, runs
from .. import recipe as recipes
from ..arguments import Settings, as_meant
from ..errors import Place, Problem, in_file_order
from ..machine import Machine
from ..models import Base, ModelFacts
from ..plan import Plan
from ..recipe import Recipe
from ..runs import Nodes, Workspace
from . import deep
from .here import broken_off_builds, fitting, here_problems
from .model import looks_local, model_problems, reward_problems

DataFound = tuple[list[Problem], int | None]  # what is wrong with the data sets; usable rows, where they were counted

TRAINED_ON = "dataset"
LEAST_SHARE = 1e-6  # LLaMA-Factory's: a val_size up to it holds nothing out
# LLaMA-Factory's arguments that may name a file or folder, beside those that the plan sets itself.
PATHS = (
    *("adapter_name_or_path", "ref_model", "ref_model_adapters", "reward_model", "reward_model_adapters"),
    *("deepspeed", "tokenized_path", "dataset_dir", "media_dir", "export_quantization_dataset", "cache_dir"),
)


class Question(Struct, frozen=True):
    """What a verb before training asks about: a recipe with overrides, here or on a named machine.

    `rows`: whether the data are read; `limit` rows at most (None: all), `progress` is told how far that is, and
    `readings` has what was read before. `also`: data sets that are looked at as if they were registered.
    """

    recipe: str
    overrides: tuple[str, ...]
    workspace: Workspace
    environment: Mapping[str, str]
    on: str | None = None
    rows: bool = True
    smoke: bool = False  # the run it leads to is a smoke run, for which a sample of the rows is read
    limit: int | None = dataset.LIMIT
    progress: dataset.Progress | None = None
    readings: dataset.Readings = field(default_factory=dataset.Readings)  # those made already, and those to come
    nodes: Nodes | None = None
    machine: Machine | None = None  # found already: it is not looked for again
    also: tuple[dataset.Unregistered, ...] = ()

    def data_folder(self, settings: Settings) -> str:
        """dataset_dir as it will be filled in."""
        return str(settings["dataset_dir"]).replace("{data}", str(self.workspace.data))

    def registry(self, settings: Settings) -> dataset.Registry | str:
        """Where data sets are looked up: dataset_dir, and in the data folder what would be registered."""
        folder = self.data_folder(settings)
        if not self.also or Path(folder) != self.workspace.data:
            return folder
        return dataset.known(self.workspace.data, dataset.entries_of(self.also))


class Examined(Struct, frozen=True):
    """The answer: the plan and every problem; `base`, `reward` and `model` say what has to be made or fetched first."""

    recipe: Recipe
    machine: Machine
    plan: Plan
    base: Base | None
    model: ModelFacts
    problems: tuple[Problem, ...]
    reward: Base | None = None
    data: DataFound | None = None  # None where the data were not looked at
    steps: int | None = None  # of the optimizer, in the whole run, where the rows were counted


def look(question: Question) -> Examined:
    """Read, detect and plan, without the checks; raises ProblemsFound when there is no recipe to speak of."""
    recipe, problems = recipes.read(question.recipe, question.overrides, question.workspace.recipes)
    recipe = _with_whole_paths(as_meant(recipe), question.workspace)
    host = question.machine or (machine.profile(question.on) if question.on else None)
    host = host or machine.detect(environment=question.environment)
    base, base_problems = models.base_of(recipe, question.workspace)
    reward, reward_problems = models.base_of(recipe, question.workspace, key="reward")
    model = _model(recipe, base, question.workspace)
    nodes = question.nodes
    if nodes and host.here and nodes.address != plan.UNNAMED:
        nodes = replace(nodes, interface=machine.interface_to(nodes.address))
    # A run that goes on has what was measured in its own recipe, and all nodes of one must plan the same.
    bound = question.workspace.before is not None or nodes is not None
    rows, damaged = runs.load(runs.REPORTED, *([question.workspace.measured] if host.here else []))
    inputs = plan.Inputs(recipe, host, model, question.workspace, base, nodes, reward)
    planned = plan.make(inputs if bound else replace(inputs, measured=rows))
    found = (*problems, *base_problems, *reward_problems, *damaged, *planned.problems)
    return Examined(recipe, host, planned, base, model, found, reward)


def examine(question: Question) -> Examined:
    """Look, then check; every problem is in the answer."""
    return _checked(look(question), question)


def refresh(examined: Examined, question: Question) -> Examined:
    """Examine again after a base or a model was made; the machine is not detected again, nor are rows read again."""
    seen = look(replace(question, machine=examined.machine))
    same_tokenizer = seen.model.folder == examined.model.folder
    return _checked(seen, question, examined.data if same_tokenizer else None)


def _checked(seen: Examined, question: Question, data: DataFound | None = None) -> Examined:
    recipe, host, planned = seen.recipe, seen.machine, seen.plan
    problems = [*seen.problems, *model_problems(recipe, seen.model, planned.settings)]
    of_data, rows = data = data or _data(seen, question)
    case = replace(_case(seen), rows=rows)
    problems += [*of_data, *rules.check(case), *plan.machine_problems(case)]
    of_found = replace(question, machine=host)
    problems += [*_of_base(seen.base, of_found), *_of_base(seen.reward, of_found)]
    problems += reward_problems(planned.inputs, planned.settings)
    if host.here:
        problems += here_problems(case, planned, question.workspace, question.environment)
        problems += machine.warned_variables(host, {**question.environment, **planned.environment})
        problems = [fitting(each, Path(sys.prefix)) for each in problems]
    else:
        problems += rules.check_elsewhere(case)
    steps = case.steps if case.trains else None
    return replace(seen, problems=tuple(in_file_order(dict.fromkeys(problems))), data=data, steps=steps)


def _data(seen: Examined, question: Question) -> DataFound:
    """Every problem of the data sets, and how many usable rows there are to train on, where that was counted."""
    settings, kit = seen.plan.settings, seen.recipe.kit
    stage, registry = str(settings["stage"]), question.registry(settings)
    # An evaluation after training asks for answers, so pairs and labels are not for it.
    answers = "sft" if stage != "pt" else stage
    named = (
        (TRAINED_ON, settings.names(TRAINED_ON), stage),
        ("eval_dataset", settings.names("eval_dataset"), stage),
        ("kit.evaluate_after", kit.evaluate_after, answers),
        ("kit.guard", kit.guard, answers),
    )
    problems: list[Problem] = []
    read: dict[str, list[dataset.Read]] = {key: [] for key, _, _ in named}
    for key, names, read_as in named:
        if not names:
            continue
        found, wrong = dataset.check_registered(names, registry, read_as, seen.recipe.place(key))
        without = [Problem(f"no guard: {each.what}", each.fix, each.where, "warning") for each in wrong]
        problems += without if key == "kit.guard" else wrong  # a recipe is taken along to projects that have no guard
        for source in found if question.rows else ():
            read[key].append(_rows(seen, question, source, read_as))
            problems += [*read[key][-1].reading.problems, *read[key][-1].reading.truncation.problems]
    problems += _leaks(seen, question, read)
    counts = [each.reading.kept if each.reading.complete else None for each in read[TRAINED_ON]]
    return problems, sum(count or 0 for count in counts) if counts and None not in counts else None


def sources_of(examined: Examined, question: Question) -> list[dataset.Source]:
    """The training's data sets, as far as they are on disk."""
    settings = examined.plan.settings
    registry = question.registry(settings)
    return dataset.check_registered(settings.names("dataset"), registry, settings["stage"], Place())[0]


def _leaks(seen: Examined, question: Question, read: Mapping[str, list[dataset.Read]]) -> Iterator[Problem]:
    """A warning for each data set that holds out rows which the training sees."""
    trained, near = read[TRAINED_ON], question.limit is None
    by_chance = trained if seen.plan.settings["val_size"] > LEAST_SHARE else []
    held_out = {**read, TRAINED_ON: [], "val_size": by_chance} if trained else {}
    before = list[dataset.Read]()  # what the recipes learnt that this one goes on from
    for base in seen.base.chain if seen.base and any(held_out.values()) else ():
        before += dataset.learnt(base.recipe.name, base.settings, question.registry(base.settings), question.limit)[0]
    for key, sets in held_out.items():
        learnt = [*before, *trained] if key == "val_size" else [*trained, *before]
        for each in sets:
            leaks = dataset.leaks_of(each, learnt, near, question.progress)
            yield from leaks.problems(seen.recipe.place(key), trained, question.workspace.data)


def _rows(seen: Examined, question: Question, source: dataset.Source, stage: str) -> dataset.Read:
    """The rows of a data set, and what would be cut off them as far as that is known here."""
    settings, kit = seen.plan.settings, seen.recipe.kit
    limit = dataset.SAMPLE if question.smoke else question.limit
    compared = kit.evaluate_after or kit.guard or settings.names("eval_dataset") or settings["val_size"] > LEAST_SHARE
    options = replace(dataset.options_of(settings, stage, limit), keyed=bool(compared))
    tokenizer_json = seen.model.folder / "tokenizer.json" if seen.model.folder else None
    reading = question.readings.check_rows(source, options, tokenizer_json, question.progress)
    return dataset.Read(source, options, reading)


def ask_llamafactory(examined: Examined, question: Question) -> list[Problem]:
    """What LLaMA-Factory's own parser, tokenizer and template say to the plan; about 10 s."""
    return deep.ask(_case(examined), examined.plan, question.workspace, question.environment)


def _with_whole_paths(recipe: Recipe, workspace: Workspace) -> Recipe:
    """The training runs in its run folder, so a path that is there from here is written out whole."""

    def whole(name: str) -> str:
        path = workspace.root / name.strip()
        return str(path) if name.strip() and path.exists() else name

    entries = dict(recipe.entries)
    for key in PATHS:
        entry = entries.get(key)
        if entry and isinstance(entry.value, str):
            entries[key] = replace(entry, value=",".join(map(whole, entry.value.split(","))))
    return replace(recipe, entries=entries)


def _of_base(base: Base | None, question: Question) -> list[Problem]:
    """The problems of a base that has still to be made: it is trained first, so its mistakes count as much."""
    if base is None or base.ready or base.recipe.kit.reward:
        return []  # two recipes of stage ppo may name each other; that such a one gives no reward is said elsewhere
    found = examine(replace(question, recipe=str(base.recipe.path), overrides=(), nodes=None))
    return [problem for problem in found.problems if problem.where.file == str(base.recipe.path)]


def _model(recipe: Recipe, base: Base | None, workspace: Workspace) -> ModelFacts:
    name = base.model if base else recipe.value("model_name_or_path", "")
    facts = models.look(str(name), workspace.models)
    if facts.known:
        return facts
    described = models.facts_of(base.first if base else recipe)
    return replace(described, name=facts.name) if described else facts


def _case(seen: Examined) -> rules.Case:
    """What the rules look at; a base that is made first will have left its adapter when this recipe starts."""
    case, base = seen.plan.case(), seen.base
    if base is None or base.ready or base.whole:
        return case
    return replace(case, settings=case.settings.decide(adapter_name_or_path=f"the result of {base.recipe.name}"))
