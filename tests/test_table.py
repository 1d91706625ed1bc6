"""Every stage with every method: run through the kit's own plan and export's own comparison, or refused by `check`.

python tests/test_table.py    runs the whole table (minutes) and prints it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from msgspec.structs import replace

from iis_finetune import export, launch, models, plan, preflight, runs
from iis_finetune.errors import errors_of
from iis_finetune.export.checks import check_files, check_sources, judge
from iis_finetune.machine import package_version
from iis_finetune.plan import after
from iis_finetune.preflight import Examined, Question
from iis_finetune.recipe import Recipe
from iis_finetune.runs import Run, Workspace

# A recipe of the project for each stage, and what it is changed by.
STAGES: dict[str, tuple[str, ...]] = {
    "pt": ("pretrain",),
    "sft": ("qwen0_5b_lora",),
    "rm": ("reward", "learning_rate=2e-3", "max_steps=30"),  # its value head has dropout: a noisy loss
    "dpo": ("dpo",),
    "orpo": ("dpo", "pref_loss=orpo"),
    "simpo": ("dpo", "pref_loss=simpo"),
    "kto": ("kto",),
}
LORA = ("finetuning_type=lora", "lora_rank=8", "lora_alpha=16", "lora_dropout=0", "lora_target=all")
WHOLE = ("lora_rank=null", "lora_alpha=null", "lora_dropout=null", "lora_target=null")
METHODS: dict[str, tuple[str, ...]] = {
    "LoRA": LORA,
    "rsLoRA": (*LORA, "use_rslora=true", "learning_rate=2e-3"),
    "LoRA+": (*LORA, "loraplus_lr_ratio=16", "learning_rate=1e-3"),
    "DoRA": (*LORA, "use_dora=true"),
    "PiSSA": (*LORA, "pissa_init=true", "learning_rate=2e-3"),
    "full": (*WHOLE, "finetuning_type=full", "learning_rate=1e-3"),
    "freeze": (*WHOLE, "finetuning_type=freeze", "freeze_trainable_layers=1"),
    "OFT": (*WHOLE, "finetuning_type=oft"),
    "4 bit": (*LORA, "quantization_bit=4"),
    "8 bit": (*LORA, "quantization_bit=8"),
}
# Beside the table: only with SFT.
EXTRAS: dict[str, tuple[str, ...]] = {
    "NEFTune": (*LORA, "neftune_noise_alpha=5"),
    "packing": (*LORA, "packing=true"),
    "neat packing": (*LORA, "neat_packing=true"),
    "PiSSA converted": (*LORA, "pissa_init=true", "pissa_convert=true"),
    "ShareGPT": (*LORA, "dataset=intelligence_sharegpt"),
    "ChatML": (*LORA, "dataset=intelligence_chatml"),
    "DoRA in 4 bit": (*LORA, "use_dora=true", "quantization_bit=4"),
}
# After SFT with LoRA, as `kit.base` plans it.
AFTER_SFT: dict[str, tuple[str, ...]] = {"after SFT": LORA, "after SFT, 4 bit": (*LORA, "quantization_bit=4")}
# What LLaMA-Factory cannot do, and the words in which `check` says so.
IMPOSSIBLE = {
    "dpo PiSSA": "needs as its reference",
    "kto PiSSA": "needs as its reference",
    "sft DoRA in 4 bit": "refused after the model is loaded",
}
# These fail where input and output embedding are one matrix, as in the 0.5B models; elsewhere they run.
UNTIED = ("rm full", "rm freeze")
FEW = ("sft LoRA", "sft 4 bit", "rm LoRA", "dpo OFT", "kto full", "sft PiSSA", "dpo after SFT")  # in `make test-slow`
COMMON = (
    *("cutoff_len=256", "max_samples=8", "max_steps=6", "warmup_ratio=0", "lr_scheduler_type=constant"),
    *("kit.global_batch_size=8", "per_device_train_batch_size=8", "save_steps=100", "plot_loss=false"),
    *("kit.env={OMP_NUM_THREADS: 1}", "num_train_epochs=null", "disable_gradient_checkpointing=true"),
)


@dataclass(frozen=True)
class Cell:
    """A stage and a method; the name is both."""

    stage: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.stage} {self.method}"

    @property
    def quantised(self) -> bool:
        return "bit" in self.method

    def words(self, model: str) -> tuple[str, ...]:
        recipe, *changes = STAGES[self.stage]
        method = {**METHODS, **EXTRAS, **AFTER_SFT}[self.method]
        return (recipe, f"model_name_or_path={model}", "learning_rate=5e-3", *COMMON, *changes, *method)


CELLS = [Cell(stage, method) for stage in STAGES for method in METHODS] + [Cell("sft", each) for each in EXTRAS]
CELLS += [Cell("dpo", each) for each in AFTER_SFT]
POSSIBLE = [cell for cell in CELLS if cell.name not in IMPOSSIBLE]


@pytest.fixture(scope="module")
def table_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's recipes and data, with a tiny model of tied and one of untied embeddings."""
    folder = tmp_path_factory.mktemp("table")
    for name in ("recipes", "data"):
        (folder / name).symlink_to(ROOT / name)
    text = str(ROOT / "data" / "intelligence_train.json")
    children = []
    for name, tied in (("tied", True), ("untied", False)):
        spec = {"config": {**TINY, "tie_word_embeddings": tied}, "seed": 1, "to": str(folder / "models" / name)}
        spec["tokenizer"] = {"train_on": [text], "vocab_size": 1200}
        file = folder / f"{name}.json"
        file.write_text(json.dumps(spec), encoding="utf-8")
        children.append(subprocess.Popen([sys.executable, "-m", "iis_finetune.probe.scratch", str(file)], cwd=ROOT))
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    return folder


def workspace_of(folder: Path) -> Workspace:
    return Workspace(folder, folder / "models", folder / "runs")


def examined(cell: Cell, folder: Path, model: str | None = None) -> Examined:
    recipe, *overrides = cell.words(str(folder / "models" / (model or ("untied" if cell.name in UNTIED else "tied"))))
    return preflight.examine(Question(recipe, tuple(overrides), workspace_of(folder), dict(os.environ)))


@pytest.mark.parametrize("cell", POSSIBLE, ids=lambda cell: cell.name)
def test_check_lets_through_what_runs(cell: Cell, table_project: Path) -> None:
    wrong = [each for each in errors_of(examined(cell, table_project).problems) if each.kind != "missing"]
    assert wrong == []


@pytest.mark.parametrize(("name", "reason"), IMPOSSIBLE.items(), ids=list(IMPOSSIBLE))
def test_check_refuses_what_cannot_run(name: str, reason: str, table_project: Path) -> None:
    cell = next(each for each in CELLS if each.name == name)
    assert any(reason in each.what for each in errors_of(examined(cell, table_project).problems))


@pytest.mark.parametrize("name", UNTIED)
def test_check_refuses_a_whole_reward_model_of_tied_embeddings(name: str, table_project: Path) -> None:
    cell = next(each for each in CELLS if each.name == name)
    wrong = errors_of(examined(cell, table_project, "tied").problems)
    assert any("ties its output layer" in each.what for each in wrong)


@pytest.mark.parametrize(
    ("card", "said"), [("mi50", "no ready-made build"), ("mi100", "below ROCm 7.14"), ("a100", "")]
)
def test_what_bitsandbytes_has_no_build_for_is_said_of_a_named_card(card: str, said: str) -> None:
    found = preflight.examine(Question("qlora", (), workspace_of(ROOT), {}, card))
    told = [each.what for each in found.problems if "bitsandbytes" in each.what]
    assert not errors_of(found.problems)
    assert len(told) == bool(said) and all(said in each for each in told)


def prepared(
    cell: Cell, folder: Path, sft: tuple[Run, Recipe] | None = None
) -> tuple[Run, after.Trained, dict[str, Any]]:
    """The cell's run folder, what it will have trained, what its child is asked."""
    found = examined(cell, folder)
    assert errors_of(found.problems) == [], found.problems
    if sft:  # its result is not there yet, so that no look at the folder would find it
        base = models.Base(sft[1], str(found.model.folder), (sft[0].result.resolve(),), ready=True)
        planned = plan.make(plan.Inputs(found.recipe, found.machine, found.model, workspace_of(folder), base))
        found = replace(found, plan=planned)
    run = runs.create(workspace_of(folder), found.recipe.name)
    launch.rewrite(run, found, workspace_of(folder), {})
    arguments = after.read_arguments(run)
    ours = after.Trained(
        run.name, arguments, after.tuned_weights(arguments, run.output.resolve()), found.plan.precision
    )
    environment = runs.fill(found.plan.environment, run, workspace_of(folder))
    environment["PYTHONPATH"] = f"{ROOT}:{environment['PYTHONPATH']}"
    asked = export.comparison(ours, run.export, "float32")
    files = {"arguments": str(run.arguments), "output": str(run.output)}
    return run, ours, {"cell": cell.name, **files, "environment": environment, "comparison": asked}


Result = tuple[Run, after.Trained, dict[str, Any]]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, table_project: Path) -> Iterator[dict[str, Result]]:
    """The cells that were asked for, all of them through one child."""
    here = [each for each in request.session.items if each.path == Path(__file__) and "results" in each.fixturenames]  # type: ignore[attr-defined]
    cells = [each.callspec.params["cell"] for each in here]  # type: ignore[attr-defined]
    cells = [cell for cell in cells if not cell.quantised or package_version("bitsandbytes")]
    ready = {cell.name: prepared(cell, table_project) for cell in cells if cell.method not in AFTER_SFT}
    later = [cell for cell in cells if cell.method in AFTER_SFT]
    if later:
        first = Cell("sft", "LoRA")
        ready.setdefault(first.name, prepared(first, table_project))
        sft = ready[first.name][0], examined(first, table_project).recipe
        ready |= {cell.name: prepared(cell, table_project, sft) for cell in later}
    asked, told = table_project / "cells.json", table_project / "results.jsonl"
    asked.write_text(json.dumps([each for _, _, each in ready.values()]), encoding="utf-8")
    told.touch()
    environment = {**os.environ, **next(iter(ready.values()))[2]["environment"]}
    environment["HF_DATASETS_CACHE"] = str(table_project / "cache")
    command = [sys.executable, str(ROOT / "tests" / "table_child.py"), str(asked), str(told)]
    with (table_project / "child.log").open("w") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=3600, check=False)
    lines = {line["cell"]: line for line in map(json.loads, told.read_text(encoding="utf-8").splitlines())}
    yield {name: (run, ours, lines.get(name, {"failed": "the child ended"})) for name, (run, ours, _) in ready.items()}
    print(f"\n{table(ready, lines)}\n(the children's words: {table_project / 'child.log'})")


def losses(run: Run) -> list[float]:
    lines = run.trainer_log.read_text(encoding="utf-8").splitlines() if run.trainer_log.is_file() else []
    return [each["loss"] for each in map(json.loads, lines) if "loss" in each]


def table(ready: dict[str, Any], lines: dict[str, Any]) -> str:
    """Markdown: the loss of the first and the last step of each cell that ran."""

    def text(name: str) -> str:
        if name in IMPOSSIBLE:
            return "refused"
        if name not in ready:
            return "not run"
        found = losses(ready[name][0])
        mark = "*" if name in UNTIED else ""
        return f"{found[0]:.2f} → {found[-1]:.2f}{mark}" if "found" in lines.get(name, {}) else "FAILED"

    rows = [["stage", *METHODS], ["---"] * (len(METHODS) + 1)]
    rows += [[stage, *(text(f"{stage} {method}") for method in METHODS)] for stage in STAGES]
    rows += [["", ""], *([f"sft, {each}", text(f"sft {each}")] for each in EXTRAS)]
    rows += [[f"dpo, {each}", text(f"dpo {each}")] for each in AFTER_SFT]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=pytest.mark.slow if cell.name in FEW else pytest.mark.extended, id=cell.name)
        for cell in POSSIBLE
    ],
)
def test_a_cell_learns_loads_merges_and_is_the_same_model(cell: Cell, results: dict[str, Result]) -> None:
    if cell.quantised and not package_version("bitsandbytes"):
        pytest.skip("bitsandbytes is not installed: make setup EXTRA=bitsandbytes")
    run, ours, told = results[cell.name]
    assert "found" in told, told["failed"]
    seen = losses(run)
    third = len(seen) // 3
    assert third and sum(seen[-third:]) < sum(seen[:third]), seen
    assert bool(json.loads(run.loaded.read_text(encoding="utf-8"))["quantization"]) == cell.quantised
    ours = replace(ours, weights=after.tuned_weights(ours.arguments, run.result.resolve()))
    assert errors_of(check_sources(ours)) == []
    if ours.weights.adapters:
        config = json.loads((run.result / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == ours.weights.model
    assert [*check_files(ours, run.export), *errors_of(judge(told["found"], run.export))] == []
    assert told["found"]["weights"]["compared"] >= 20


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-s", "-q", "-m", "slow or extended or not slow"]))
