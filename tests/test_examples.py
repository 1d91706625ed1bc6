"""No false alarms: LLaMA-Factory's own published examples get no error but for what is not on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from iis_finetune import preflight
from iis_finetune.errors import errors_of
from iis_finetune.rules import RULES
from iis_finetune.runs import Workspace

EXAMPLES = Path(__file__).parent / "fixtures" / "llamafactory_examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))
IGNORED = tuple(rule.what.partition("{")[0] for rule in RULES if rule.about == "ignored")
ABSENT = ("missing", "machine")
# Examples that LLaMA-Factory 0.9.5 with transformers 5.6 cannot run, and what is said of them.
BROKEN = {
    "extras/fp8/llama3_fp8_fsdp_sft.yaml": "fsdp_transformer_layer_cls_to_wrap",  # its parser does not know the key
    "extras/galore/llama3_full_sft.yaml": "use_galore",  # transformers' new default optimizer is none of GaLore's
    "extras/apollo/llama3_full_sft.yaml": "use_apollo",  # the same with APOLLO
    "megatron/qwen2_vl_full.yaml": "tensor_model_parallel_size",  # for USE_MCA=1, which reads other arguments
    "megatron/qwen3_moe_full.yaml": "tensor_model_parallel_size",
}
# Examples that run in one process only, where LLaMA-Factory starts one for every device it sees.
ALONE = {
    "extras/badam/llama3_full_sft.yaml": "use_badam",  # its parser wants ZeRO-3 for layers in several processes
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the examples are meant to be started: the repository's root, with examples/ in it."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXAMPLES)))
@pytest.mark.parametrize("machine", ["cpu", "h100", "h100x8", "mi50x2"])
def test_an_example_has_no_error_but_what_is_not_here(machine: str, file: Path, folder: Path) -> None:
    workspace = Workspace(folder, folder / "models", folder / "runs")
    examined = preflight.examine(preflight.Question(str(file), (), workspace, {}, machine))
    errors = [each for each in errors_of(examined.problems) if each.kind not in ABSENT]
    shared = any(each.name == "launcher" and each.value in ("ddp", "zero2") for each in examined.plan.decisions)
    broken = {**BROKEN, **(ALONE if shared else {})}
    expected = broken.get(str(file.relative_to(EXAMPLES)))
    said = [each.what for each in examined.problems if each.what.startswith(IGNORED)]
    assert said == []
    assert [each.where.key for each in errors][:1] == ([expected] if expected else []), [each.what for each in errors]


def test_there_are_examples_of_every_kind() -> None:
    folders = {file.relative_to(EXAMPLES).parts[0] for file in FILES}
    assert {"train_lora", "train_full", "train_qlora", "inference", "merge_lora", "extras"} <= folders
    assert len(FILES) == 58
