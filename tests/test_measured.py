"""What was measured: kept, found again, used by a plan; every figure here is planted, none was measured."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from conftest import LONGEST, Command, run
from msgspec.structs import replace

from iis_finetune import launch, machine, models, plan, preflight, runs
from iis_finetune import recipe as recipes
from iis_finetune.errors import errors_of
from iis_finetune.plan import Inputs, Plan, key_of
from iis_finetune.plan.memory import MEASURED
from iis_finetune.runs import Measured, Workspace

ROOT = Path(__file__).parent.parent
PLANTED = Path(__file__).parent / "fixtures" / "measured"
GOLDEN = Path(__file__).parent / "golden" / "qwen7b_lora@mi50x2-measured.json"
NOWHERE = Workspace(ROOT, Path("/nowhere/models"), Path("/nowhere/runs"))
MI50S = dataclasses.replace(machine.profile("mi50x2"), name="here", torch_build="2.9.1+rocm6.4")


def rows_of(folder: Path = PLANTED) -> tuple[Measured, ...]:
    rows, problems = runs.load(folder)
    assert problems == []
    return rows


def make(
    *overrides: str,
    rows: tuple[Measured, ...] | None = None,
    host: machine.Machine = MI50S,
    file: str = "qwen7b_lora",
) -> Plan:
    recipe, problems = recipes.read(file, overrides, ROOT / "recipes")
    assert problems == []
    facts = models.look(str(recipe.value("model_name_or_path")), NOWHERE.models)
    return plan.make(Inputs(recipe, host, facts, NOWHERE, measured=rows_of() if rows is None else rows))


def decision(made: Plan, name: str) -> Any:
    return next((each for each in made.decisions if each.name == name), None)


def test_the_plan_of_a_measured_pair_is_as_it_was_reviewed(request: pytest.FixtureRequest) -> None:
    text = json.dumps(make().as_json(), indent=2, ensure_ascii=False).replace(str(ROOT), "{root}") + "\n"
    if request.config.getoption("--rewrite-golden"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), "pytest --rewrite-golden tests/test_measured.py"


def test_before_and_after_differ_only_in_what_was_measured_here() -> None:
    before, after = make(rows=()), make()
    new = [each for each in after.decisions if each not in before.decisions]
    assert {each.source for each in new} == {"measured here"}
    assert {"precision", "attention", "per_device_train_batch_size", "use_reentrant_gc"} <= {each.name for each in new}
    assert (after.precision, after.attention) == ("fp16", "sdpa")
    assert after.arguments["per_device_train_batch_size"] == 4
    assert after.arguments["gradient_accumulation_steps"] == 8  # 4 x 8 x 2 = 64, as before
    assert after.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert all(each.reason for each in new)
    assert len({each.name for each in after.decisions}) == len(after.decisions)
    assert errors_of(after.problems) == []


def test_the_plan_says_how_long_the_run_will_take() -> None:
    told = decision(make(), "expected_seconds")
    # 2900 rows in steps of 64 are 46, five times that 230, of 100 s each, after 120 s
    assert told.value == 120 + 230 * 100
    assert told.reason == "230 steps, about 6 h 25 min, measured here on 21 November 2026"
    assert decision(make("max_steps=3"), "expected_seconds").value == 120 + 3 * 100
    assert decision(make("kit.global_batch_size=32"), "expected_seconds").value == 120 + 455 * 50


def test_the_start_was_measured_as_well_so_its_length_is_known_too() -> None:
    made = make("kit.tuned=false")
    assert made.arguments == make(rows=()).arguments
    assert decision(made, "tuned").value is False
    assert decision(made, "expected_seconds").value == 120 + 230 * 250


def test_memory_is_what_was_measured_and_its_items_still_add_up() -> None:
    made = make()
    assert made.memory.per_device_gib == 21.5
    assert sum(made.memory.items.values()) == pytest.approx(21.5)
    assert MEASURED in made.memory.items
    assert MEASURED not in make("kit.precision=fp32").memory.items  # the peak of fp16


@pytest.mark.parametrize(
    ("stated", "name", "value"),
    [
        ("per_device_train_batch_size=2", "per_device_train_batch_size", 2),
        ("bf16=true", "precision", "bf16"),
        ("kit.precision=fp32", "precision", "fp32"),
        ("kit.attention=disabled", "precision", "fp32"),  # fp16 was measured with sdpa, not with this
        ("kit.env={OMP_WAIT_POLICY: ACTIVE}", "environment.OMP_WAIT_POLICY", "ACTIVE"),
    ],
)
def test_what_the_recipe_states_wins(stated: str, name: str, value: object) -> None:
    made = make(stated)
    assert decision(made, name) is None or decision(made, name).source != "measured here"
    assert (decision(made, name).value if decision(made, name) else made.settings[name]) == value
    assert errors_of(made.problems) == []
    assert decision(made, "use_reentrant_gc").source == "measured here"  # the rest of the row counts
    assert decision(made, "expected_seconds") is None  # this was never measured
    assert plan.global_batch(made) == 64


def test_a_batch_that_is_stated_in_full_stays_as_it_is() -> None:
    made = make("kit.global_batch_size=null", "per_device_train_batch_size=2", "gradient_accumulation_steps=3")
    assert (plan.global_batch(made), made.precision) == (12, "fp16")
    whole = make("kit.global_batch_size=60")  # no multiple of 4 x 2
    assert decision(whole, "tuned").value is False
    assert "60" in decision(whole, "tuned").reason
    assert whole.arguments == make("kit.global_batch_size=60", rows=()).arguments


def test_one_device_in_place_of_two_keeps_the_rows_of_a_step() -> None:
    (row,) = rows_of()
    alone = replace(row, settings={"kit.devices": 1, "kit.launcher": "single"}, start_settings={})
    made = make(rows=(alone,))
    assert (made.processes, plan.global_batch(made)) == (1, 64)
    assert made.environment["ROCR_VISIBLE_DEVICES"] == "0"
    assert decision(make("kit.devices=2", rows=(alone,)), "launcher").source != "measured here"


@pytest.mark.parametrize(
    ("host", "override", "reason"),
    [
        ({"torch_build": "2.13.0+rocm7.2"}, "lora_rank=64", "torch was 2.9.1+rocm6.4 and is 2.13.0+rocm7.2 now"),
        ({}, "lora_rank=8", "lora_rank was 64 and is 8 now"),
        ({"devices": MI50S.devices[:1]}, "lora_rank=64", "devices was 2 and is 1 now"),
    ],
)
def test_a_row_that_no_longer_fits_is_not_used_and_the_plan_says_why(
    host: dict[str, Any], override: str, reason: str
) -> None:
    now = dataclasses.replace(MI50S, **host)
    made = make(override, host=now)
    told = decision(made, "tuned")
    assert told.value is False
    assert reason in told.reason
    assert made.arguments == make(override, host=now, rows=()).arguments


def test_a_run_keeps_in_its_recipe_what_it_was_planned_with(tmp_path: Path) -> None:
    made = make()
    (tmp_path / "recipe.yaml").write_text(launch.yaml_text(launch.document_of(made.recipe)))
    again = make(rows=(), file=str(tmp_path / "recipe.yaml"))
    assert again.arguments == made.arguments
    assert again.environment == made.environment


def test_another_model_has_nothing_to_do_with_it_and_the_plan_advises_to_measure() -> None:
    told = decision(make(file="qwen0_5b_lora"), "tuned")
    assert (told.value, told.source) == (False, "kit default")
    assert "iis-finetune tune recipes/qwen0_5b_lora.yaml" in told.reason
    assert decision(make(rows=(), host=machine.profile("mi50x2")), "tuned") is None  # nobody can measure there


def test_what_cannot_be_used_here_is_left_out_with_the_reason() -> None:
    (row,) = rows_of()
    made = make(rows=(replace(row, settings={"lora_rnak": 3}),))
    assert "lora_rnak" in decision(made, "tuned").reason
    assert made.arguments == make(rows=()).arguments


def test_a_reported_row_counts_below_one_from_here_and_above_the_table(tmp_path: Path) -> None:
    (row,) = rows_of()
    document = runs.share(replace(row, trials=[{"why": "/home/me/it broke"}]), "somebody")
    text = json.dumps(document, default=str)
    assert "intelligence" not in text and "/home/me" not in text
    (tmp_path / "somebody.json").write_text(text)
    (shared,) = rows_of(tmp_path)
    made = make(rows=(shared,))
    assert decision(made, "precision").source == "reported"
    assert "reported by somebody on 21 November 2026" in decision(made, "tuned").reason
    assert decision(made, "expected_seconds") is None  # other rows, other lengths
    assert made.memory.per_device_gib == make("kit.precision=fp16", "kit.attention=sdpa", "use_reentrant_gc=false",
        "per_device_train_batch_size=4", rows=()).memory.per_device_gib  # fmt: skip
    both = make(rows=(shared, row))
    assert decision(both, "precision").source == "measured here"
    named = make(rows=(shared,), host=machine.profile("mi50x2"))  # --on: its torch is not known
    assert decision(named, "precision").source == "reported"


def test_what_is_shipped_as_reported_can_be_read() -> None:
    assert all(row.reported_by for row in rows_of(runs.REPORTED))


def test_a_row_replaces_the_one_of_its_key_and_joins_the_others(tmp_path: Path) -> None:
    (row,) = rows_of()
    other = replace(row, key=replace(row.key, lora_rank=8))
    for each in (row, other, replace(row, seconds_per_step=50.0, measured_on=date(2026, 12, 1))):
        file = runs.save(tmp_path / "measured", each)
    assert file.name == "gfx906.json"
    assert [(each.key.lora_rank, each.seconds_per_step) for each in rows_of(file.parent)] == [(8, 100.0), (64, 50.0)]
    named = replace(row, key=replace(row.key, device="AMD EPYC 7763 64-Core Processor, 8 threads"))
    assert runs.save(tmp_path, named).name == "amd-epyc-7763-64-core-processor-8-threads.json"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rows": [{}]}', '{"rows": 3}', "\x00"])
def test_a_damaged_file_is_one_warning_and_is_put_aside_not_lost(tmp_path: Path, text: str) -> None:
    file = tmp_path / "gfx906.json"
    file.write_text(text)
    rows, problems = runs.load(tmp_path)
    assert rows == ()
    assert [each.severity for each in problems] == ["warning"]
    assert str(file) in problems[0].fix
    runs.save(tmp_path, rows_of()[0])
    assert rows_of(tmp_path) == rows_of()
    assert file.with_name("gfx906.json.damaged").read_text() == text


@pytest.mark.slow
def test_a_run_is_trained_with_what_was_measured_and_goes_on_with_it_when_that_is_gone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    workspace = Workspace(project, project / "models", project / "runs")
    words = ("kit.env={OMP_NUM_THREADS: 1}",)
    seen = preflight.look(preflight.Question(str(project / "recipes" / "tiny.yaml"), words, workspace, {}, rows=False))
    (row,) = rows_of()
    own = replace(row, key=key_of(seen.plan), settings={"disable_gradient_checkpointing": True}, start_settings={})
    runs.save(workspace.measured, own)
    done = run(["train", "tiny", *words], project, LONGEST)
    assert done.returncode == 0, done.stderr
    assert "tuned: True (measured here on 21 November 2026)" in done.stdout
    first = runs.find(workspace, "1")
    told = runs.read_decided(first)
    chosen = told and told.decision("disable_gradient_checkpointing")
    assert chosen and (chosen.value, chosen.source) == (True, "measured here")
    assert "disable_gradient_checkpointing: true" in first.recipe.read_text()
    shutil.rmtree(workspace.measured)
    longer = run(["resume", "1", "max_steps=6"], project, LONGEST)
    assert longer.returncode == 0, longer.stderr
    assert "disable_gradient_checkpointing: true" in first.arguments.read_text()


@pytest.mark.extended
@pytest.mark.parametrize("part", ["precision", "memory", "tune", "wrapped"])
def test_a_part_of_the_gpu_benchmark_runs_in_small_on_a_cpu(part: str) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--part", part, "--cpu", "--minutes", "5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    head, _, columns, rule, *rows = done.stdout.splitlines()
    assert "CPU" in head
    assert set(rule) == {"|", "-"} and columns.startswith("| ")
    full = [row for row in rows if row.count("|") == columns.count("|")]
    assert len(full) >= {"precision": 3, "memory": 12, "tune": 3, "wrapped": 1}[part], done.stdout


def test_a_date_that_no_calendar_has_is_damage(tmp_path: Path) -> None:
    text = (PLANTED / "gfx906.json").read_text()
    (tmp_path / "x.json").write_text(text.replace("2026-11-21", "2026-02-31"))
    assert runs.load(tmp_path)[1]


def test_a_workspace_reads_its_own_rows_and_a_named_machine_none(project: Path) -> None:
    workspace = Workspace(project, project / "models", project / "runs")
    question = preflight.Question(str(project / "recipes" / "tiny.yaml"), (), workspace, {}, rows=False)
    before = preflight.look(question)
    (row,) = rows_of()
    own = replace(row, key=key_of(before.plan), settings={"disable_gradient_checkpointing": True}, dataset=["little"])
    own = replace(own, start_settings={"disable_gradient_checkpointing": False}, global_batch_size=4, peak_gib=None)
    runs.save(workspace.measured, own)
    after = preflight.look(question).plan
    assert decision(after, "disable_gradient_checkpointing").source == "measured here"
    assert decision(after, "expected_seconds").value == 120 + 4 * 100
    assert decision(preflight.look(replace(question, on="cpu")).plan, "tuned") is None
    gone_on = replace(question, workspace=replace(workspace, before=3))  # a run's own recipe has what it began with
    assert decision(preflight.look(gone_on).plan, "tuned") is None
    moved = replace(workspace, measured_in=project / "elsewhere")
    assert decision(preflight.look(replace(question, workspace=moved)).plan, "tuned").source == "kit default"
    shutil.rmtree(workspace.measured)
    assert preflight.look(question).plan == before.plan


def test_the_command_line_tells_what_was_measured_and_of_a_file_that_is_damaged(
    project: Path, quick: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "`iis-finetune tune recipes/tiny.yaml` tries" in quick("plan", "tiny").stdout
    workspace = Workspace(project, project / "models", project / "runs")
    seen = preflight.look(preflight.Question("recipes/tiny.yaml", (), workspace, {}, rows=False))
    (row,) = rows_of()
    own = replace(row, key=key_of(seen.plan), settings={}, start_settings={}, dataset=["little"], peak_gib=None)
    file = runs.save(project / "elsewhere", own)
    monkeypatch.setenv("IIS_MEASURED", str(file.parent))
    document = json.loads(quick("plan", "tiny", "--json", "max_steps=9").stdout)
    expected = next(each for each in document["decisions"] if each["name"] == "expected_seconds")
    assert (expected["value"], expected["source"]) == (120 + round(9 * 100 * 4 / 64), "measured here")
    assert "9 steps, about 2 min 56 s, measured here on 21 November 2026" in quick("plan", "tiny", "max_steps=9").stdout
    file.write_text("{")
    told = quick("plan", "tiny")
    assert told.returncode == 0
    assert told.stderr.count("warning") == 2  # with the count at the end
    assert "Traceback" not in told.stderr and str(file) in told.stderr


def test_what_was_measured_is_printed_to_be_shared(project: Path, quick: Command) -> None:
    none = quick("tune", "tiny", "--share", "somebody")
    assert none.returncode == 2 and "nothing that fits was measured" in none.stderr
    workspace = Workspace(project, project / "models", project / "runs")
    seen = preflight.look(preflight.Question("recipes/tiny.yaml", (), workspace, {}, rows=False))
    (row,) = rows_of()
    runs.save(workspace.measured, replace(row, key=key_of(seen.plan), dataset=["little"]))
    done = quick("tune", "tiny", "--share", "somebody")
    assert done.returncode == 0, done.stderr
    assert "little" not in done.stdout and str(project) not in done.stdout
    folder = project / "shared"
    folder.mkdir()
    (folder / "somebody.json").write_text(done.stdout)
    assert [each.reported_by for each in rows_of(folder)] == ["somebody"]
