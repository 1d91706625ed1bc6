"""A recipe and the world looked at together: what is found once is not looked for again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from iis_finetune import doctor, machine, preflight
from iis_finetune.doctor import Subject
from iis_finetune.preflight import Question
from iis_finetune.runs import Workspace

CHILD = (
    "kit: {base: first}\nstage: sft\ndo_train: true\ntemplate: qwen\ndataset: little\ncutoff_len: 64\nmax_steps: 2\n"
)


@pytest.fixture
def question(project: Path, monkeypatch: pytest.MonkeyPatch) -> Question:
    """About a recipe whose base, a whole model, is not made yet."""
    monkeypatch.chdir(project)
    text = (project / "recipes" / "tiny.yaml").read_text(encoding="utf-8")
    whole = text.replace("finetuning_type: lora", "finetuning_type: full").replace(
        "lora_rank: 8\nlora_target: all\n", ""
    )
    (project / "recipes" / "first.yaml").write_text(whole, encoding="utf-8")
    (project / "recipes" / "second.yaml").write_text(CHILD, encoding="utf-8")
    workspace = Workspace(project, project / "models", project / "runs")
    return Question("second", (), workspace, dict(os.environ), on="mi50")


def test_a_refreshed_look_sees_what_was_made_and_reads_nothing_again(question: Question, project: Path) -> None:
    seen: list[object] = []
    asked = replace(question, progress=lambda *told: seen.append(told))
    before = preflight.examine(asked)
    assert before.base and not before.base.ready and before.model.folder is None
    shutil.copytree(project / "models" / "tiny", project / "models" / "first")
    after = preflight.refresh(before, replace(asked, on="h100"))
    assert after.base and after.base.ready and after.model.folder == project / "models" / "first"
    assert after.machine is before.machine
    assert after.plan.arguments["model_name_or_path"].startswith("{models}/first")
    seen.clear()
    (project / "data" / "little.json").unlink()
    again = preflight.refresh(after, asked)
    assert (again.problems, again.data, seen) == (after.problems, after.data, [])
    assert any("little.json" in each.what for each in preflight.examine(asked).problems)


def test_a_recipe_goes_without_its_guard_where_that_is_not_registered(question: Question) -> None:
    asked = replace(question, overrides=("kit.guard=everyday", "kit.evaluate_after=news"))
    found = {each.where.key: each for each in preflight.examine(asked).problems if "is not in" in each.what}
    assert found["kit.guard"].severity == "warning" and found["kit.guard"].what.startswith("no guard: ")
    assert found["kit.evaluate_after"].severity == "error"


def test_a_machine_that_is_given_is_not_looked_for(question: Question) -> None:
    known = machine.profile("v100")
    assert preflight.look(replace(question, machine=known)).machine is known


def test_the_mistakes_of_a_base_that_is_made_first_count(question: Question, project: Path) -> None:
    file = project / "recipes" / "first.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "lora_rnak: 3\n", encoding="utf-8")
    found = [each for each in preflight.examine(question).problems if each.severity == "error"]
    assert [(each.where.key, Path(str(each.where.file)).name) for each in found] == [("lora_rnak", "first.yaml")]


def test_a_disk_that_cannot_hold_the_checkpoints_is_an_error_before_the_start(question: Question) -> None:
    words = ("model_name_or_path=Qwen/Qwen2.5-7B-Instruct", "finetuning_type=full", "max_steps=100000", "save_steps=1")
    here = replace(question, recipe="tiny", overrides=words, on=None)
    (problem,) = [each for each in preflight.examine(here).problems if "checkpoints need" in each.what]
    assert (problem.kind, problem.where.key, problem.exit_code) == ("machine", "save_total_limit", 3)
    few = replace(question, recipe="tiny", on=None)
    assert not [each for each in preflight.examine(few).problems if "checkpoints need" in each.what]


def test_a_push_needs_a_target_and_a_login_before_the_training(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    here = replace(question, recipe="tiny", on=None, overrides=("push_to_hub=true",), environment={})

    def said(asked: Question) -> list[str]:
        return [each.what for each in preflight.examine(asked).problems if each.where.key == "push_to_hub"]

    assert [("no target" in what, "needs a login" in what) for what in said(here)] == [(True, False), (False, True)]
    named = replace(here, overrides=("push_to_hub=true", "hub_model_id=me/mine"))
    assert ["needs a login" in what for what in said(named)] == [True]
    assert said(replace(named, environment={"HF_TOKEN": "t"})) == []
    assert said(replace(named, on="mi50")) == []


@pytest.mark.parametrize(
    ("right", "misspelt"),
    [("lora_rank=64", "lora_rnak=64"), ("lora_rank=64", "lora_r=64"), ("kit.precision=fp16", "kit.precison=fp16")],
)
def test_a_misspelt_key_changes_nothing_else_that_is_said(question: Question, right: str, misspelt: str) -> None:
    asked = replace(question, recipe="tiny", on="mi50")
    more = ("model_name_or_path=Qwen/Qwen2.5-14B-Instruct", "cutoff_len=4096")
    good, bad = (preflight.examine(replace(asked, overrides=(*more, word))) for word in (right, misspelt))
    assert any("a device are needed" in each.what for each in good.problems)
    (typo,) = [each for each in bad.problems if "unknown" in each.what]
    assert typo.where.key == misspelt.partition("=")[0]
    assert [each.what for each in bad.problems if each != typo] == [each.what for each in good.problems]


def test_the_curves_of_tensorboard_lie_in_the_runs_own_folder(question: Question) -> None:
    def environment(*overrides: str) -> dict[str, str]:
        return dict(preflight.look(replace(question, recipe="tiny", overrides=overrides)).plan.environment)

    assert environment("report_to=tensorboard")["TENSORBOARD_LOGGING_DIR"] == "{run}/tensorboard"
    own = "kit.env={TENSORBOARD_LOGGING_DIR: x}"
    assert environment("report_to=tensorboard", own)["TENSORBOARD_LOGGING_DIR"] == "x"
    assert "TENSORBOARD_LOGGING_DIR" not in environment()


def told(question: Question, text: str, *overrides: str) -> list[tuple[str, str]]:
    """What is wrong with a recipe of this text, and what mends it."""
    (question.workspace.recipes / "own.yaml").write_text(text, encoding="utf-8")
    found = preflight.examine(replace(question, recipe="own", overrides=overrides))
    return [(each.what, each.fix) for each in found.problems]


GATED = "model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct\ntemplate: llama3\n"
FEW = GATED + "stage: sft\ndo_train: true\ndataset: little\nmax_samples: 20\ncutoff_len: 20\nfinetuning_type: lora\n"


def test_a_model_behind_a_licence_names_the_page_the_login_and_a_mirror(question: Question) -> None:
    [(what, fix)] = [each for each in told(question, FEW) if "accepted its licence" in each[0]]
    assert "meta-llama/Meta-Llama-3-8B-Instruct" in what
    words = ("https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct", "hf auth login", "HF_TOKEN", "LLM-Research/")
    assert all(word in fix for word in words)
    mirrored = told(question, FEW, "kit.source=modelscope", "model_name_or_path=LLM-Research/Meta-Llama-3-8B-Instruct")
    assert not any("licence" in what for what, _ in mirrored)


def test_rows_that_cannot_be_counted_in_tokens_are_said_to_be_uncounted(question: Question) -> None:
    [what] = [what for what, _ in told(question, FEW, "model_name_or_path=some/one") if "not on disk" in what]
    assert "what cutoff_len 20 cuts off the rows is not counted" in what


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        (
            "per_device_train_batch_size: 1\ngradient_accumulation_steps: 16\nnum_train_epochs: 2.0",
            "kit.global_batch_size: 2 and no gradient_accumulation_steps line",
        ),
        ("kit: {global_batch_size: 64}\nnum_train_epochs: 5.0", "kit.global_batch_size: 4"),
        ("per_device_train_batch_size: 1\nnum_train_epochs: 0.5", "num_train_epochs: 1"),
    ],
)
def test_a_run_of_few_steps_is_told_their_number_and_the_line_that_gives_more(
    question: Question, line: str, mended: str
) -> None:
    [(what, fix)] = [each for each in told(question, f"{FEW}{line}\n") if "steps in the whole run" in each[0]]
    assert mended in fix and any(letter.isdigit() for letter in what)
    override = fix.split(" and ")[0].split(", or")[0].replace(": ", "=")
    left = told(question, FEW + line.replace("gradient_accumulation_steps: 16\n", "") + "\n", override)
    assert not any("steps in the whole run" in each for each, _ in left)


def test_a_merge_recipe_is_not_measured_by_the_memory_of_a_training(question: Question) -> None:
    text = f"{GATED}adapter_name_or_path: saves/one\nexport_dir: merged\n"
    found = told(replace(question, on="rtx3060"), text)
    assert not any("GiB" in what for what, _ in found)
    assert any("iis-finetune download meta-llama" in fix for _, fix in found)


def test_the_lock_of_a_broken_off_build_stops_a_deepspeed_training_before_it_waits_without_end(
    question: Question, tmp_path: Path
) -> None:
    lock = tmp_path / "my kernels" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    environment = {**question.environment, "TORCH_EXTENSIONS_DIR": str(tmp_path / "my kernels")}
    words = ("kit.launcher=zero2", "kit.devices=2", "finetuning_type=full")
    here = replace(question, recipe="tiny", overrides=words, on=None, environment=environment)

    def said(asked: Question) -> list[tuple[str, str]]:
        return [(each.severity, each.fix) for each in preflight.examine(asked).problems if "broken off" in each.what]

    assert said(here) == [("error", f"rm '{lock}'")]
    assert said(replace(here, overrides=("kit.devices=2",))) == said(replace(here, on="mi50x2")) == []
    with lock.open():  # a build under way
        assert said(here) == []
    subject = Subject(machine.detect(environment=environment), environment, question.workspace)
    (check,) = [each for each in doctor.examine(subject, quick=True) if each.name == "compiled kernels"]
    assert (check.state, check.found) == ("warning", "1 half made")
    lock.unlink()
    assert said(here) == []
    assert "compiled kernels" not in [each.name for each in doctor.examine(subject, quick=True)]
