"""Exports: what is refused before and after a merge, the model card, and real merges proven to be the same model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import LONGEST, run
from msgspec.structs import replace

from iis_finetune import export, launch
from iis_finetune.errors import Place, Problem, ProblemsFound, RunFailed
from iis_finetune.export.checks import check_files, check_sources, check_target, judge
from iis_finetune.plan import after
from iis_finetune.runs import Run


@pytest.fixture(scope="module")
def merged(evaluated_run: Run, evaluated_project: Path) -> Path:
    """The run's export, made and proven by the command."""
    done = run(["export", "last"], evaluated_project, LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal greedy answers:           20 of 20" in done.stdout
    return evaluated_run.export


# Before anything is loaded


def test_an_export_never_writes_over_what_is_there(tmp_path: Path) -> None:
    assert check_target(tmp_path / "new") == check_target(tmp_path) == []
    (tmp_path / "file").write_text("x")
    assert [each.what for each in check_target(tmp_path)] == [f"'{tmp_path}' exists and is not empty"]


PROVEN: dict[str, Any] = {
    "logit_difference": 1e-6,
    "tolerance": 1e-4,
    "texts": 20,
    "equal_texts": 19,
    "near_ties": 1,
    "weights": {"compared": 26, "largest_difference": 0.0, "tolerance_exceeded": []},
    "rounding": None,
    "missing": [],
    "unexpected": [],
    "tokenizer": {"prompts_equal": True, "template_equal": True, "stops_equal": True, "modelfile_equal": True},
    "own_template_equal": True,
}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"logit_difference": 0.5}, "logits differ by up to 0.5"),
        ({"tolerance": float("inf")}, "too large for it"),
        ({"near_ties": 0}, "1 of 20 greedy answers differ"),
        ({"missing": ["lm_head.weight"]}, "lacks tensors: lm_head.weight"),
        ({"weights": {**PROVEN["weights"], "tolerance_exceeded": ["a"]}}, "weights differ from base and adapter"),
        ({"weights": {**PROVEN["weights"], "tolerance_exceeded": ["a"] * 20}}, "merged from another base model"),
        ({"tokenizer": {**PROVEN["tokenizer"], "stops_equal": False}}, "answers end with another token"),
    ],
)
def test_each_difference_is_a_reason_of_its_own(changed: dict[str, Any], reason: str | None) -> None:
    found = [each.what for each in judge({**PROVEN, **changed}, Path("merged"))]
    assert (reason is None and found == []) or (reason is not None and reason in found[0] and len(found) == 1)


def test_a_refused_folder_is_kept_where_the_message_says(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_trained: object, model: Path, _wanted: object) -> tuple[dict[str, Any], list[Problem]]:
        return {}, [Problem("it is another model", "do not use it", Place(str(model)))]

    merge = lambda _trained, model, *_: shutil.copytree(tiny_model, model)  # noqa: E731
    monkeypatch.setattr(export, "_merge", merge)
    monkeypatch.setattr(export, "prove", refuse)
    for _ in range(2):  # the second finds the first one's
        with pytest.raises(ProblemsFound) as found:
            export.export(after.Trained("x", {}, after.Weights(str(tiny_model))), export.Export(tmp_path / "to", {}))
        (problem,) = found.value.problems
        assert problem.where.file == str(tmp_path / "to.refused")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["to.refused"]
        assert (tmp_path / "to.refused" / "config.json").is_file()


def test_an_export_is_open_to_whom_the_umask_lets_and_says_what_it_replaced(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(_trained: object, model: Path, *_: object) -> None:
        shutil.copytree(tiny_model, model)
        (model / "model.safetensors").chmod(0o600)  # as safetensors leaves it

    monkeypatch.setattr(export, "_merge", merge)
    nothing_to_add = {"stops": [], "generation_stops": [], "untied": False}
    monkeypatch.setattr(export, "prove", lambda *_: ({**PROVEN, **nothing_to_add}, []))
    trained = after.Trained("x", {}, after.Weights(str(tiny_model)))
    made = [export.export(trained, export.Export(tmp_path / "export", {}, replace=True)) for _ in range(2)]
    assert [each.replaced for each in made] == [False, True]
    (tmp_path / "usual").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "export").iterdir()}
    assert modes == {(tmp_path / "usual").stat().st_mode}


def test_an_adapter_that_cannot_be_merged_is_refused_before_it_is(tmp_path: Path, tiny_model: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"base_model_name_or_path": str(tiny_model), "target_modules": ["lm_head"], "r": 8}
    settings["init_lora_weights"] = "pissa_niter_16"
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.bin").write_bytes(b"")
    weights = after.Weights(str(tiny_model), (str(adapter),))
    found = " ".join(each.what for each in check_sources(after.Trained("x", {}, weights), "0" * 64))
    assert "one matrix in this model" in found
    assert "PiSSA" in found
    assert "are not those that x was trained on" in found


def test_a_reward_model_is_not_exported_without_the_head_it_scores_with(tmp_path: Path) -> None:
    result, merged = tmp_path / "output", tmp_path / "merged"
    weights = after.Weights(str(tmp_path / "base"), (str(result),))
    reward = after.Trained("reward", {"stage": "rm"}, weights)
    for folder in (result, merged):
        folder.mkdir()
    (result / "value_head.safetensors").write_bytes(b"head")
    assert ["value_head.safetensors" in each.what for each in check_files(reward, merged)] == [True]
    shutil.copy(result / "value_head.safetensors", merged)
    assert check_files(reward, merged) == []
    (merged / "value_head.safetensors").write_bytes(b"other")
    assert len(check_files(reward, merged)) == 1
    assert check_files(replace(reward, arguments={"stage": "dpo"}), merged) == []


def test_the_card_says_what_was_done_and_nothing_that_is_not_known(tmp_path: Path) -> None:
    run = Run(tmp_path / "0001-a")
    scores = run.evaluation / "held_out" / "scores.json"
    scores.parent.mkdir(parents=True)
    metric = {"name": "valid_json", "title": "valid JSON", "base": 0.5, "tuned": 0.75}
    metrics = [{**metric, "low": -0.25, "high": 0.5, "verdict": "better"}, {**metric, "low": None, "verdict": None}]
    guard = {"told": "did it forget? not worse"}
    scores.write_text(json.dumps({"data": "held_out", "rows": 4, "metrics": metrics, "guard": guard}))
    run.provenance.write_text(json.dumps({"model": "org/base", "data_sha256": {"/data/little.json": "ab"}}))
    run.recipe.write_text("stage: sft\n")
    trained = after.Trained("0001-a", {"template": "qwen"}, after.Weights("models/base@fp32"), "fp32")
    told = export.card(trained, run, dtype="float32", found=PROVEN)
    assert told.startswith("---\nbase_model: org/base\nlibrary_name: transformers\n")
    for line in (
        "A fine-tuned model, made from `org/base`, saved in float32.",
        "- method: sft, lora, rank 8",
        "- SHA-256 of little.json: `ab`",
        "| valid JSON | 0.5 | 0.75 | -0.25 to +0.5 | better |",
        "| valid JSON | 0.5 | 0.75 |  |  |",
        "did it forget? not worse",
        "- greedy answers that are equal: 19 of 20 (1 more: equal up to a near tie)",
    ):
        assert line in told.splitlines(), line
    from_a_file = export.card(trained, None, dtype="float32", found=PROVEN)
    assert "made from `models/base@fp32`" in from_a_file and "- template: qwen" in from_a_file
    assert "rank" not in from_a_file and "longest row" not in from_a_file  # the file does not say what they were


# On a real run


@pytest.mark.slow
def test_an_export_is_whole_and_loads_with_plain_transformers(merged: Path) -> None:
    text = (merged / "README.md").read_text(encoding="utf-8")
    for told in ("fp32", "template: qwen", "SHA-256 of little.json", "valid JSON", "20 of 20", "lora_rank: 8"):
        assert told in text, told
    assert (merged / "Modelfile").is_file()
    assert not [path for path in merged.rglob("*") if path.is_symlink()]
    assert len({path.stat().st_mode for path in merged.iterdir()}) == 1
    script = "import sys; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(merged)], check=True, timeout=300, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_each_planted_fault_is_refused_with_its_reason(
    evaluated_run: Run, evaluated_project: Path, children_environment: dict[str, str], tmp_path: Path, dtype: str
) -> None:
    ours, whole = after.trained_by(evaluated_run, evaluated_run.output), tmp_path / "whole"
    done = run(["export", "last", "--dtype", dtype, "--to", str(whole), "--json"], evaluated_project, LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["equal_texts"] + found["near_ties"] == 20
    if dtype != "fp32":
        cost = found["rounding"]
        assert found["logit_difference"] <= found["tolerance"] == pytest.approx(3 * cost["logit_difference"])
        assert cost["logit_difference"] > 0
        assert (cost["rows"], cost["rounded_loss"]) == (20, pytest.approx(cost["loss"], rel=0.02))
        assert "held-out rows" in (whole / "README.md").read_text(encoding="utf-8")
    cases = {"one_weight": "weights differ from base and adapter", "base": "merged from another base model"}
    if dtype == "fp32":
        cases |= {"tokenizer": "tokenizer files are missing: tokenizer.json"}
        cases |= {"template": "differs from the template of the training"}
    for name, reason in cases.items():
        folder = tmp_path / name / "model"
        planted(name, ours, whole, (folder, children_environment))
        wanted = export.Export(folder, children_environment, dtype, evaluated_run)
        _, problems = export.prove(ours, folder, wanted)
        assert any(reason in problem.what for problem in problems), (name, problems)


def planted(name: str, ours: after.Trained, merged: Path, place: tuple[Path, dict[str, str]]) -> None:
    """A merged folder with one fault."""
    folder, environment = place
    folder.parent.mkdir()
    if name == "template":  # merged anew, with the template of another model
        wrong = replace(ours, arguments={**ours.arguments, "template": "llama2"})
        file = folder.parent / "e.yaml"
        file.write_text(launch.yaml_text(after.export(wrong, str(folder), "float32")), encoding="utf-8")
        words = launch.program("export", str(file))
        subprocess.run(words, env=environment, check=True, capture_output=True, timeout=300)
        return
    shutil.copytree(merged, folder)
    if name == "tokenizer":
        (folder / "tokenizer.json").unlink()
    if name == "one_weight":
        change_one_weight(folder / "model.safetensors")
    if name == "base":  # the same adapter added to other weights
        change_all_weights(folder / "model.safetensors")


def change_one_weight(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40  # the highest bit of the last number's exponent
    path.write_bytes(data)


def change_all_weights(path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(7)
    tensors = {
        name: (each + 0.02 * torch.randn(each.shape, generator=generator)).to(each.dtype)
        for name, each in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.slow
def test_an_export_that_is_refused_leaves_the_earlier_one(
    evaluated_run: Run, merged: Path, children_environment: dict[str, str], tmp_path: Path
) -> None:
    ours = after.trained_by(evaluated_run, evaluated_run.output)
    other = tmp_path / "tiny"
    shutil.copytree(ours.weights.model, other)
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace('"hidden_size": 64', '"hidden_size": 32')
    )
    before = sorted(path.name for path in merged.iterdir())
    wrong = replace(ours, weights=after.Weights(str(other), ours.weights.adapters))
    with pytest.raises((ProblemsFound, RunFailed)):
        export.export(wrong, export.Export(merged, children_environment, run=evaluated_run, replace=True))
    assert sorted(path.name for path in merged.iterdir()) == before
    assert not list(merged.parent.glob(".export*"))
