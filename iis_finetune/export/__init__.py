"""Merge what was trained into one model folder, and prove that it is the same model."""

import json
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from .. import launch, process
from ..arguments import trained_with
from ..errors import Place, Problem, ProblemsFound, RunFailed, errors_of
from ..models import called, look, without_folders
from ..observe import last_lines
from ..plan import after
from ..plan.after import Trained
from ..recipe import read
from ..runs import Provenance, Run, provenance_of, read_json, read_lines, write
from ..tensors import TORCH_NAMES
from .checks import DTYPES, TOLERANCE, check_files, check_sources, check_target, judge
from .gguf import LONGEST_SECONDS, Asked, Wish, convert, cost, printed, wish_of

TABLES = launch.KIT / "tables"
CARD_ALWAYS = ("stage", "finetuning_type")  # what else a YAML file does not state may have been otherwise
CARD_TOLD = (*CARD_ALWAYS, "lora_rank", "dataset", "template", "cutoff_len", "quantization_bit")
UNTOLD = ("kit.notify", "kit.env")  # a recipe's commands and variables: addresses, keys, names of a company's machines
IN_PROSE = r"()(?<![\w./~-]){}(?![\w-]|\.\w)"  # a path that stands there whole
NEW_TOKENS = 32
ANSWERED, HELD_OUT_ROWS = "*/tuned.jsonl", 20  # what an evaluation leaves; the rows that rounding's loss is told of


class Export(Struct, frozen=True):
    """Where to, in which dtype (`auto`: that of the training); `run` adds its recipe and metrics to the card."""

    target: Path
    environment: Mapping[str, str]
    precision: str = "auto"
    run: Run | None = None
    replace: bool = False  # the run's own export folder, which is swapped only once the new one is proven
    gguf: Wish | None = None


class Exported(Struct, frozen=True):
    """The folder, its torch dtype, what the comparison found, and what is unusual about it."""

    folder: Path
    dtype: str
    found: Mapping[str, Any]
    problems: tuple[Problem, ...]
    replaced: bool = False  # an earlier export of the run
    gguf: Mapping[str, Any] | None = None  # what the proof of the GGUF files found


def export(trained: Trained, wanted: Export) -> Exported:
    """Merge, compare, then give the folder its name. Raises ProblemsFound with every reason against it, RunFailed."""
    before = _checked(trained, wanted)
    dtype = _dtype(trained, wanted.precision)
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    making = wanted.target.with_name(f".{wanted.target.name}.unproven")
    refused = wanted.target.with_name(f"{wanted.target.name}.refused")
    for earlier in (making, refused):
        shutil.rmtree(earlier, ignore_errors=True)
    making.mkdir()
    try:
        _merge(trained, making / "model", wanted, dtype)
        found, problems = prove(trained, making / "model", wanted)
        if errors_of(problems):
            raise ProblemsFound(_kept(making / "model", refused, problems))
        finish(making / "model", found)
        write(making / "model" / "README.md", card(trained, wanted.run, dtype=dtype, found=found))
        _open_to_the_same(making / "model")
        replaced = wanted.target.exists()
        if replaced:
            wanted.target.replace(making / "old")
        (making / "model").replace(wanted.target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    asked = Asked(environment=wanted.environment, **_questions(wanted.run))
    files = convert(wanted.target, trained.name, wanted.gguf, asked) if wanted.gguf else None
    return Exported(wanted.target, dtype, found, (*before, *problems), replaced and wanted.replace, files)


def _checked(trained: Trained, wanted: Export) -> list[Problem]:
    """What is unusual before the merge; raises ProblemsFound with every reason against it."""
    known = provenance_of(wanted.run).model_fingerprint if wanted.run else None
    known = known if trained.weights.adapters else None  # a whole model replaced the one that the run started from
    found = [*([] if wanted.replace else check_target(wanted.target)), *check_sources(trained, known)]
    if errors_of(found):
        raise ProblemsFound(found)
    return found


def _open_to_the_same(model: Path) -> None:
    """Every file may be read by whom the umask lets: safetensors makes its own for their owner alone."""
    mode = stat.S_IMODE((model / "README.md").stat().st_mode)
    for path in model.iterdir():
        path.chmod(mode)


def _kept(model: Path, refused: Path, problems: list[Problem]) -> list[Problem]:
    """The problems of a merged folder, with where it lies now, for a look; the next export removes it."""
    model.replace(refused)
    return [replace(each, where=Place(str(refused))) if each.where.file == str(model) else each for each in problems]


def _dtype(trained: Trained, precision: str) -> str:
    named = TORCH_NAMES.get(trained.precision if precision == "auto" else precision)
    if named:
        return named
    folder = Path(trained.weights.model)
    saved = look(str(folder), folder.parent).dtype
    return saved if saved in DTYPES else "float32"


def _merge(trained: Trained, merged: Path, wanted: Export, dtype: str) -> None:
    file, log = merged.with_name("arguments.yaml"), wanted.target.with_name(f"{wanted.target.name}.log")
    write(file, launch.yaml_text(after.export(trained, str(merged.resolve()), dtype)))
    words = launch.program("export", str(file.resolve()))
    done = process.capture(process.bound(words), LONGEST_SECONDS, after.one_process(wanted.environment))
    write(log, f"{done.stdout}\n{done.stderr}" if done else "llamafactory-cli is not installed")
    if done is None or done.returncode != 0:
        raise RunFailed(f"LLaMA-Factory could not merge: {' '.join(last_lines(log, 1))}; see {log}")


def prove(trained: Trained, merged: Path, wanted: Export) -> tuple[dict[str, Any], list[Problem]]:
    """Compare a merged folder with base and adapter: what was found, and every reason against the folder."""
    missing = check_files(trained, merged)
    if missing:
        return {}, missing
    file = merged.with_name("parity.json")
    asked = comparison(trained, merged, _dtype(trained, wanted.precision), wanted.run)
    write(file, json.dumps(asked, ensure_ascii=False))
    failure = "the merged folder could not be compared and is not kept"
    found = json.loads(printed("parity", [str(file)], wanted.environment, failure))
    return found, judge(found, merged)


def comparison(trained: Trained, merged: Path, dtype: str, run: Run | None = None) -> dict[str, Any]:
    """What the program that compares is asked."""
    return {
        "arguments": after.export(trained, str(merged.resolve()), dtype),
        "adapters": list(trained.weights.adapters),
        "merged": str(merged.resolve()),
        "dtype": dtype,
        "tolerance": TOLERANCE,
        **_questions(run),
    }


def _questions(run: Run | None) -> dict[str, Any]:
    """What both models are asked, and how many tokens they may answer with."""
    prompts = json.loads((TABLES / "prompts.json").read_text(encoding="utf-8"))["prompts"]
    return {"rows": held_out(run) if run else [], "prompts": prompts, "new_tokens": NEW_TOKENS}


def held_out(run: Run) -> list[list[str]]:
    """Prompts and expected answers of rows that the run was evaluated on; none when it was not."""
    answered = max(run.evaluation.glob(ANSWERED), key=lambda path: path.stat().st_mtime_ns, default=None)
    rows = read_lines(answered) if answered else ()
    return [[row["prompt"], row["label"]] for row in islice(rows, HELD_OUT_ROWS)]


def finish(folder: Path, found: Mapping[str, Any]) -> None:
    """Tell other programs where an answer ends, and that a tied pair no longer is one."""
    missing = [stop for stop in found["stops"] if stop not in found["generation_stops"]]
    if missing:  # plain transformers reads this file alone, and would not stop
        known = [stop for stop in found["generation_stops"] if stop is not None]
        _change(folder / "generation_config.json", eos_token_id=[*known, *missing])
    if found["untied"]:
        _change(folder / "config.json", tie_word_embeddings=False)


def _change(path: Path, **values: Any) -> None:
    write(path, json.dumps({**(read_json(path) or {}), **values}, indent=2, ensure_ascii=False) + "\n")


def card(trained: Trained, run: Run | None, **told: Any) -> str:
    """README.md of the folder: what it is, where from, what was measured; its head is what model hubs read.

    `told`: dtype and found of a merge; kind and licence of what is given away.
    """
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(TABLES)
    environment = Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701 - not HTML
    settings, provenance = trained_with(trained.arguments), provenance_of(run) if run else Provenance()
    base = provenance.model or trained.weights.model
    recipe = re.sub(IN_PROSE.format(re.escape(base)), lambda _: called(base), _recipe(run)) if run else ""
    scores = [read_json(path) or {} for path in sorted(run.evaluation.glob("*/scores.json"))] if run else []
    return environment.get_template("card.md.j2").render(
        trained=trained,
        settings={name: settings[name] for name in CARD_TOLD if run or name in CARD_ALWAYS or settings.states(name)},
        base=called(base),
        on_a_hub=re.fullmatch(r"[\w.-]+/[\w.-]+", called(base)),
        data={Path(name).name: digest for name, digest in provenance.data_sha256.items()},
        recipe=without_folders(recipe),
        evaluations=[each for each in scores if each.get("metrics")] if run else None,
        **told,
    )


def _recipe(run: Run) -> str:
    """A run's recipe as others may read it."""
    if not run.recipe.is_file():
        return ""
    recipe = read(str(run.recipe))[0]
    told = {key: entry for key, entry in recipe.kit_entries.items() if not key.startswith(UNTOLD)}
    return launch.yaml_text(launch.document_of(structs.replace(recipe, kit_entries=told))).rstrip()
