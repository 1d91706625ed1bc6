"""GGUF files of an export: made by llama.cpp, and never another model than the one that was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import LONGEST, ROOT, TINY, Command, run

from iis_finetune import export
from iis_finetune.errors import ProblemsFound
from iis_finetune.export import gguf
from iis_finetune.runs import Run

WIDE = {**TINY, "hidden_size": 256, "intermediate_size": 512}  # q4_k packs 256 weights of a row
WHOLE = {"logit_difference": 1e-4, "largest_logit": 8.0, "tokens_equal": True, "template_equal": True}
SOUND: dict[str, Any] = {**WHOLE, "stops_equal": True}


def file(kind: str = "Q8_0", largest: float = 0.006, equal: int = 19) -> dict[str, Any]:
    tensors = {kind: {"compared": 9, "largest": largest, "name": "blk.0.attn_q.weight"}}
    return {"bytes": 2**30, "texts": 20, "equal_texts": equal, "near_ties": 0, "loss": 1.01, "tensors": tensors}


@pytest.mark.parametrize(
    ("source", "files", "said"),
    [
        (SOUND, {"q8_0": file()}, []),
        (SOUND, {"f16": file("F16", 1e-4, equal=20)}, []),
        (SOUND, {"q8_0": file(largest=0.02)}, ["x-q8_0.gguf: blk.0.attn_q.weight (Q8_0) is 2.0% off"]),
        (SOUND, {"q8_0": file(largest=float("nan"))}, ["x-q8_0.gguf: blk.0.attn_q.weight (Q8_0) is nan% off"]),
        (SOUND, {"f16": file("F16", 1e-4)}, ["x-f16.gguf: 19 of 20 greedy answers are equal"]),
        ({**SOUND, "logit_difference": 0.1}, {}, ["logits in FP32 differ by up to 0.1, 0.001 is allowed"]),
        ({**SOUND, "logit_difference": float("nan")}, {}, ["logits in FP32 differ by up to nan"]),
        ({**SOUND, "tokens_equal": False}, {}, ["texts are cut into other tokens"]),
        (
            {**SOUND, "template_equal": False, "stops_equal": False},
            {},
            ["the chat template", "answers end with another"],
        ),
    ],
)
def test_a_file_that_is_not_the_exported_model_is_told_with_its_tensor(
    source: dict[str, Any], files: dict[str, Any], said: list[str]
) -> None:
    found = gguf.judge({"source": source, "files": files}, {kind: Path(f"x-{kind}.gguf") for kind in files})
    assert len(found) == len(said) and all(each in what for each, (what, _) in zip(said, found, strict=True)), found


def test_what_a_quantisation_costs_is_said_in_words() -> None:
    assert gguf.cost(1.0, 1.01) == "1.0100 (+1.0%): as good"
    assert gguf.cost(1.0, 1.05) == "1.0500 (+5.0%): worse"
    assert gguf.cost(None, None) == ""


def test_a_kind_or_tools_that_are_not_there_are_told_before_anything_is_merged(
    quick: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slip = quick("export", "last", "--gguf", "q8_0,q4_k")
    assert slip.returncode == 2 and "no GGUF kind 'q4_k'" in slip.stderr and "did you mean 'q4_k_m'?" in slip.stderr
    monkeypatch.setenv("IIS_LLAMA_CPP", str(tmp_path))
    lacking = quick("export", "last", "--gguf", "q8_0")
    assert lacking.returncode == 3 and f"IIS_LLAMA_CPP={tmp_path} has no convert_hf_to_gguf.py" in lacking.stderr
    assert "make setup EXTRA=gguf" in lacking.stderr


@pytest.mark.extended
def test_the_files_of_a_run_answer_as_its_export_does_and_stay_with_it(
    evaluated_project: Path, evaluated_run: Run, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    done = run(["export", "last", "--to", str(to), "--gguf", "f16,q8_0", "--json"], evaluated_project, LONGEST)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["gguf"]
    assert found["files"]["f16"]["equal_texts"] + found["files"]["f16"]["near_ties"] == found["files"]["f16"]["texts"]
    assert found["rows"] and found["files"]["q8_0"]["loss"] == pytest.approx(found["loss"], rel=0.02)
    names = {path.name for path in (to / "gguf").iterdir()}
    assert names == {
        f"{evaluated_run.name}-f16.gguf",
        f"{evaluated_run.name}-q8_0.gguf",
        "Modelfile.f16",
        "Modelfile.q8_0",
    }
    assert f"FROM ./{evaluated_run.name}-q8_0.gguf\n" in (to / "gguf" / "Modelfile.q8_0").read_text()


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random-weight model with the tokenizer of the tiny one, as an export leaves it."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    spec = folder.parent / "spec.json"
    config = {**json.loads((tiny_model / "config.json").read_text()), **WIDE}
    spec.write_text(json.dumps({"config": config, "tokenizer": {"copy_from": str(tiny_model)}, "to": str(folder)}))
    words = [sys.executable, "-m", "iis_finetune.probe.scratch", str(spec)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=LONGEST)
    (folder / "Modelfile").write_text("FROM .\n")
    return folder


SPOIL = """
import json, sys
from pathlib import Path
from iis_finetune.probe import gguf as probe
spec = json.loads(Path(sys.argv[1]).read_text())
sys.path.insert(0, spec["tools"] + "/gguf-py")
import gguf
real = probe.quantise
def spoiled(source, target, kind):
    real(source, target, kind)
    tensor = next(each for each in gguf.GGUFReader(target).tensors if each.name == "blk.0.ffn_up.weight")
    with target.open("r+b") as file:
        file.seek(tensor.data_offset)
        head = file.read(int(tensor.n_bytes) // 4)
        file.seek(tensor.data_offset)
        file.write(head[::-1])
probe.quantise = spoiled
print(json.dumps(probe.compare(spec)))
"""


@pytest.mark.extended
def test_each_kind_of_a_wide_model_is_proven_and_a_spoiled_tensor_is_caught(
    wide_model: Path, tmp_path: Path, children_environment: dict[str, str]
) -> None:
    wish = gguf.wish_of("f16,q8_0,q4_k_m", {})
    prompts = ["Count from one to ten.", "你好，请介绍一下你自己。"] * 10
    asked = gguf.Asked(environment=children_environment, prompts=prompts, rows=[], new_tokens=8)
    found = export.convert(wide_model, "wide", wish, asked)
    for kind, told in found["files"].items():
        print(kind, told)
    assert "Q4_K" in found["files"]["q4_k_m"]["tensors"]
    assert found["files"]["f16"]["equal_texts"] + found["files"]["f16"]["near_ties"] == 20
    source, spec = tmp_path / "exact.gguf", tmp_path / "spec.json"
    gguf.printed("gguf_convert", [str(wish.tools), str(wide_model), str(source)], children_environment, "failed")
    files = {kind: tmp_path / f"{kind}.gguf" for kind in wish.kinds}
    told = {
        "merged": str(wide_model),
        "source": str(source),
        "files": {kind: str(each) for kind, each in files.items()},
    }
    spec.write_text(json.dumps({**told, "tools": str(wish.tools), "prompts": prompts, "rows": [], "new_tokens": 8}))
    words = [sys.executable, "-c", SPOIL, str(spec)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=LONGEST, check=True)
    wrong = [what for what, _ in gguf.judge(json.loads(done.stdout.splitlines()[-1]), files)]
    for kind in wish.kinds:
        assert any(what.startswith(f"{kind}.gguf: blk.0.ffn_up.weight") for what in wrong), (kind, wrong)


def test_a_refused_file_is_kept_where_the_message_says_and_the_export_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = tmp_path / "export"
    exported.mkdir()
    (exported / "Modelfile").write_text("FROM .\n")

    def made(_exported: Path, files: dict[str, Path], *_: object) -> dict[str, Any]:
        for path in files.values():
            path.write_text("bytes")
        return {"source": SOUND, "files": {kind: file(largest=1.0) for kind in files}}

    monkeypatch.setattr(gguf, "_made", made)
    asked = gguf.Asked(environment={}, prompts=[], rows=[], new_tokens=8)
    with pytest.raises(ProblemsFound) as found:
        export.convert(exported, "x", gguf.Wish(["q8_0"], tmp_path), asked)
    kept = Path(str(found.value.problems[0].where.file))
    assert kept == exported / "gguf.refused" and (kept / "x-q8_0.gguf").is_file()
    assert sorted(path.name for path in exported.iterdir()) == ["Modelfile", "gguf.refused"]
