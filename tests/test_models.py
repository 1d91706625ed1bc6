"""The model folder: facts without torch, checks, precision views, shrunken models."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from iis_finetune.arguments import trained_with
from iis_finetune.errors import Place, Problem, ProblemsFound
from iis_finetune.models import (
    ModelFacts,
    check_adapter,
    check_additional_target,
    check_folder,
    check_targets,
    check_template,
    fingerprint,
    look,
    needs_view,
    precision_view,
    view_path,
)
from iis_finetune.models.base import adapters_of
from iis_finetune.models.facts import count_parameters, find_folder, shapes_of
from iis_finetune.models.folders import shrink
from iis_finetune.runs import Run
from iis_finetune.tables import read

PLACE = Place("recipe.yaml", 3, "model_name_or_path")
NOWHERE = Path("nowhere")
ROWS = read("models.toml")["model"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "models" / "tiny"))


def edit(path: Path, **values: Any) -> None:
    content = {**json.loads(path.read_bytes()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> None:
    """Zeros in the safetensors layout: length of the header, header, data."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 4
        for number in shape:
            size *= number
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


# facts


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["names"][0])
def test_the_table_gives_the_parameters_that_the_models_page_states(row: dict[str, Any]) -> None:
    shapes = shapes_of(row["config"])
    assert shapes is not None
    assert count_parameters(shapes) == row["parameters"]


def test_a_model_that_is_not_here_is_known_from_the_table_whatever_its_case() -> None:
    facts = look("qwen/qwen2.5-7b-instruct", NOWHERE)
    assert (facts.known, facts.folder, facts.dtype, facts.parameters) == ("table", None, "bfloat16", 7_615_616_512)
    assert facts.linear_layers["down_proj"] == (18944, 3584)
    assert facts.linear_layers["k_proj"] == (3584, 512)


def test_an_unknown_model_is_a_name_and_nothing_else() -> None:
    assert look("someone/something", NOWHERE) == ModelFacts("someone/something")


def test_a_folder_on_disk_says_the_same_as_the_loaded_model(model: Path) -> None:
    facts = look("tiny", model.parent)
    # counted by hand: embedding 400 x 64 (tied), 2 blocks, the last norm
    block = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3 + (64 + 32 + 32) + 2 * 64
    assert facts.shapes is not None
    assert facts.parameters == facts.shapes.vocabulary_size * 64 + 2 * block + 64
    assert count_parameters(facts.shapes) == facts.parameters
    assert facts.known == "disk"
    assert facts.dtype == "float32"
    assert facts.chat_template is True
    assert facts.architecture == "Qwen2ForCausalLM"
    assert set(facts.linear_layers) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert facts.linear_layers["k_proj"] == (64, 32)


def test_layers_of_an_architecture_that_the_table_lacks_come_from_the_headers(model: Path) -> None:
    edit(model / "config.json", model_type="novel")
    tensors = {
        "transformer.h.0.attn.c_attn.weight": (192, 64),
        "transformer.h.0.ln.weight": (64,),
        "wte.weight": (9, 64),
    }
    write_safetensors(model / "model.safetensors", tensors)
    facts = look("tiny", model.parent)
    assert facts.linear_layers == {"c_attn": (64, 192)}
    assert facts.parameters == 192 * 64 + 64 + 9 * 64


def test_a_folder_is_found_by_name_by_hub_name_and_by_path(model: Path, tmp_path: Path) -> None:
    hub = Path(shutil.copytree(model, model.parent / "org--name"))
    assert find_folder("tiny", model.parent) == model
    assert find_folder("org/name", model.parent) == hub
    assert find_folder(str(model), tmp_path) == model
    assert find_folder("org/other", model.parent) is None


def test_a_download_under_way_is_not_a_model(model: Path) -> None:
    model.rename(model.parent / "org--name.incomplete")
    assert find_folder("org/name", model.parent) is None


def test_the_dtype_comes_from_either_key_of_config_json_else_from_the_weights(model: Path) -> None:
    for values, expected in (
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": None}, "float32"),
    ):
        edit(model / "config.json", **values)
        assert look("tiny", model.parent).dtype == expected


def test_looking_takes_milliseconds(model: Path) -> None:
    look("tiny", model.parent)
    began = time.perf_counter()
    for _ in range(10):
        look("tiny", model.parent)
    assert (time.perf_counter() - began) / 10 < 0.02


# the folder


def break_index(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model-00001-of-00002.safetensors", {"a": (2, 2)})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def as_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}', encoding="utf-8")


def bigger_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 99_999, "content": "<|new|>"})
    path.write_text(json.dumps(content), encoding="utf-8")


SPOILT: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing", "missing"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read as JSON", "missing"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has no weights", "missing"),
    (lambda folder: (folder / "model.safetensors").write_text(POINTER), "is a git-lfs pointer", "missing"),
    (lambda folder: (folder / "tokenizer.json").write_text(POINTER), "is a git-lfs pointer", "missing"),
    (cut, "is not as long as its own header says", "missing"),
    (break_index, "model-00002-of-00002.safetensors is named by the shard index and missing", "missing"),
    (without_tokenizer, "has no tokenizer", "missing"),
    (as_adapter, "is an adapter, not a whole model", "invalid"),
    (lambda folder: edit(folder / "config.json", vocab_size=500), "says vocab_size 500", "invalid"),
    (bigger_token, "has token 99999, the embedding only", "invalid"),
    (shutil.rmtree, "is not there", "missing"),
]


@pytest.mark.parametrize(("spoil", "what", "kind"), SPOILT, ids=[what for _, what, _ in SPOILT])
def test_a_spoilt_model_folder_is_one_problem(
    model: Path, spoil: Callable[[Path], object], what: str, kind: str
) -> None:
    assert check_folder(model, PLACE) == []
    spoil(model)
    problems = check_folder(model, PLACE)
    assert [problem.kind for problem in problems] == [kind], problems
    assert what in problems[0].what
    assert problems[0].where == PLACE
    assert problems[0].fix


def test_half_precision_of_the_other_kind_is_a_warning(model: Path) -> None:
    write_safetensors(model / "model.safetensors", {"norm.weight": (2,)}, "BF16")
    edit(model / "config.json", dtype="float16")
    assert [problem.severity for problem in check_folder(model, PLACE)] == ["warning"]


# fingerprints


def test_a_fingerprint_is_that_of_the_weights_not_of_the_folder(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    assert fingerprint(tmp_path) == fingerprint(tiny_model) is not None
    (tmp_path / "model.safetensors").unlink()
    data = bytearray((tiny_model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert fingerprint(tmp_path) != fingerprint(tiny_model)


# targets, template, adapter


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("all", []),
        ("q_proj,v_proj", []),
        (["self_attn.q_proj", "mlp.down_proj"], []),
        ("lm_head", []),
        ("q_proj,v_porj", ["'v_proj'"]),
        ("query_key_value", ["use one of down_proj"]),
        ("qproj,kproj", ["'q_proj'", "'k_proj'"]),
        ("all,q_proj", ["lora_target: all, alone"]),
    ],
)
def test_a_target_that_matches_no_layer_is_an_error(target: Any, said: list[str]) -> None:
    names = trained_with({"lora_target": target}).names("lora_target")
    problems = check_targets(names, look("Qwen/Qwen2.5-7B", NOWHERE), PLACE)
    assert len(problems) == len(said)
    assert all(part in problem.fix for part, problem in zip(said, problems, strict=True))


def test_an_adapter_on_the_output_of_a_tied_model_is_an_error() -> None:
    tied, untied = look("Qwen/Qwen2.5-0.5B", NOWHERE), look("Qwen/Qwen2.5-7B", NOWHERE)
    assert [problem.severity for problem in check_targets(["q_proj", "lm_head"], tied, PLACE)] == ["error"]
    assert check_targets(["q_proj", "lm_head"], untied, PLACE) == []


def test_targets_of_an_unknown_model_are_not_judged() -> None:
    assert check_targets(["whatever"], ModelFacts("someone/something"), PLACE) == []


def test_an_additional_target_that_is_not_there_is_an_error(model: Path) -> None:
    facts = look("tiny", model.parent)
    assert check_additional_target(["embed_tokens", "lm_head"], facts, PLACE) == []
    assert "embed_tokens" in check_additional_target(["embed_token"], facts, PLACE)[0].fix


def test_a_template_that_is_not_the_models_is_a_warning() -> None:
    facts = look("Qwen/Qwen2.5-7B-Instruct", NOWHERE)
    assert check_template("qwen", facts, PLACE) == []
    problems = check_template("llama3", facts, PLACE)
    assert [(problem.severity, problem.fix) for problem in problems] == [("warning", "template: qwen")]


def test_a_template_whose_words_the_tokenizer_lacks_is_an_error(model: Path) -> None:
    facts = look("tiny", model.parent)
    assert check_template("qwen", facts, PLACE) == []
    problems = check_template("llama3", facts, PLACE)
    assert [problem.severity for problem in problems] == ["error"]
    assert "<|eot_id|>" in problems[0].what


def make_adapter(folder: Path, inputs: int = 64, rank: int = 8, base: str = "tiny") -> Path:
    folder.mkdir()
    config = {"base_model_name_or_path": base, "r": 8, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    names = [f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{half}.weight" for n in (0, 1) for half in "AB"]
    tensors = {name: (rank, inputs) if "_A" in name else (inputs, rank) for name in names}
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def test_an_adapter_that_fits_its_base_is_no_problem(model: Path, tmp_path: Path) -> None:
    facts = look("tiny", model.parent)
    assert check_adapter(make_adapter(tmp_path / "a"), facts, PLACE) == []
    assert check_adapter(make_adapter(tmp_path / "b", base=str(model.parent / "tiny@fp32")), facts, PLACE) == []


@pytest.mark.parametrize(
    ("made_with", "what", "severity"),
    [
        ({"inputs": 128}, "is 128 wide on 'q_proj'", "error"),
        ({"rank": 4}, "has rank 4 on 'q_proj'", "error"),
        ({"base": "org/other"}, "was trained on org/other", "warning"),
    ],
)
def test_an_adapter_of_another_base_is_told(
    model: Path, tmp_path: Path, made_with: dict[str, Any], what: str, severity: str
) -> None:
    problems = check_adapter(make_adapter(tmp_path / "a", **made_with), look("tiny", model.parent), PLACE)
    assert [problem.severity for problem in problems] == [severity]
    assert what in problems[0].what


def test_an_adapter_folder_without_an_adapter_is_told(model: Path, tmp_path: Path) -> None:
    facts = look("tiny", model.parent)

    def said(folder: Path) -> list[str]:
        return [problem.what.removeprefix(f"{folder}") for problem in check_adapter(folder, facts, PLACE)]

    empty = tmp_path / "empty"
    empty.mkdir()
    assert said(empty) == [" holds no adapter_config.json"]
    assert said(model) == [" is a whole model, not an adapter"]
    half = make_adapter(tmp_path / "half")
    (half / "adapter_model.safetensors").unlink()
    assert said(half) == ["/adapter_model.safetensors is missing"]
    short = make_adapter(tmp_path / "short")
    weights = short / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    assert said(short) == ["/adapter_model.safetensors is cut off"]


# adapters on adapters


def test_a_third_training_starts_from_both_adapters_below_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "0002-dpo")
    run.folder.mkdir()
    arguments = {"adapter_name_or_path": "runs/0001-sft/output", "create_new_adapter": True}
    run.decisions.write_text(json.dumps({"arguments": arguments}), encoding="utf-8")
    assert adapters_of(run) == (Path("runs/0001-sft/output"), run.output)
    run.decisions.write_text(json.dumps({"arguments": {**arguments, "create_new_adapter": False}}), encoding="utf-8")
    assert adapters_of(run) == (run.output,)


# precision views


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def test_a_view_names_the_dtype_links_the_rest_and_leaves_the_original_alone(model: Path) -> None:
    edit(model / "config.json", torch_dtype="bfloat16", text_config={"dtype": "bfloat16"})
    before = snapshot(model)
    view = precision_view(model, "fp32", model.parent)
    assert view == model.parent / "tiny@fp32" == view_path(model, "fp32", model.parent)
    config = json.loads((view / "config.json").read_bytes())
    assert (config["dtype"], config["text_config"]["dtype"], "torch_dtype" in config) == ("float32", "float32", False)
    assert (view / "model.safetensors").is_symlink()
    assert (view / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert snapshot(model) == before
    assert check_folder(view, PLACE) == []


def test_a_view_that_is_up_to_date_is_left_and_a_stale_one_made_anew(model: Path) -> None:
    view = precision_view(model, "bf16", model.parent)
    made = view.stat().st_ino
    assert precision_view(model, "bf16", model.parent).stat().st_ino == made

    edit(model / "config.json", rope_theta=5.0)
    assert precision_view(model, "bf16", model.parent).stat().st_ino != made
    assert json.loads((view / "config.json").read_bytes())["rope_theta"] == 5.0

    (model / "extra.txt").write_text("x", encoding="utf-8")
    precision_view(model, "bf16", model.parent)
    assert (view / "extra.txt").is_symlink()

    (view / "model.safetensors").unlink()
    precision_view(model, "bf16", model.parent)
    assert (view / "model.safetensors").is_file()
    assert sorted(path.name for path in model.parent.iterdir()) == [".tiny@bf16.lock", "tiny", "tiny@bf16"]


def test_folders_of_one_name_elsewhere_get_views_of_their_own(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "other"
    copy = Path(shutil.copytree(model, tmp_path / "copies" / "tiny"))
    views = {precision_view(folder, "fp32", root) for folder in (model, copy)}
    assert len(views) == 2
    assert all(view.parent == root and view.name.startswith("tiny-") for view in views)


def test_two_processes_make_one_view(model: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        views = pool.starmap(precision_view, [(model, "fp32", model.parent)] * 8)
    assert set(views) == {model.parent / "tiny@fp32"}
    assert check_folder(views[0], PLACE) == []
    assert not list(model.parent.glob(".tiny@fp32-*"))


def test_a_view_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProblemsFound) as found:
        precision_view(tmp_path / "gone", "fp32", tmp_path)
    assert isinstance(found.value.problems[0], Problem)


@pytest.mark.parametrize(
    ("saved", "precision", "needed"),
    [
        ("bfloat16", "fp32", True),
        ("bfloat16", "bf16", False),
        ("bfloat16", "as-saved", False),
        ("float32", "bf16", True),
        ("float16", "fp16", False),
        (None, "fp32", True),
    ],
)
def test_a_view_is_needed_when_the_saved_dtype_is_another(saved: str | None, precision: str, needed: bool) -> None:
    assert needs_view(ModelFacts("m", dtype=saved), precision) is needed
    assert not needs_view(ModelFacts("m", dtype=saved, quantization="gptq"), precision)


LOADED = """
import sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    print({str(parameter.dtype) for parameter in model.parameters()})
"""


def test_transformers_loads_the_dtype_of_the_view(model: Path) -> None:
    views = [str(precision_view(model, precision, model.parent)) for precision in ("fp32", "bf16", "fp16")]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *views],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines() == ["{'torch.float32'}", "{'torch.bfloat16'}", "{'torch.float16'}"]


# shrunken models


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["names"][0])
def test_a_shrunken_model_is_tiny_and_keeps_its_proportions(row: dict[str, Any]) -> None:
    whole, small = shapes_of(row["config"]), shapes_of(shrink(row["config"], vocabulary_size=500))
    assert whole is not None
    assert small is not None
    assert (small.layers, small.vocabulary_size, small.model_type) == (2, 500, whole.model_type)
    assert small.attention_heads % small.key_value_heads == 0
    assert (small.attention_heads == small.key_value_heads) == (whole.attention_heads == whole.key_value_heads)
    assert small.hidden_size % small.attention_heads == 0
    assert count_parameters(small) < 500_000  # type: ignore[operator]
    assert shrink(row["config"])["vocab_size"] == row["config"]["vocab_size"]


def test_shrinking_reaches_into_text_config_and_keeps_one_of_each_layer_type() -> None:
    text = {**ROWS[0]["config"], "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "num_experts": 64}
    small = shrink({"model_type": "wrapped", "text_config": text, "quantization_config": {"quant_method": "gptq"}})
    assert small["text_config"]["layer_types"] == ["sliding_attention", "full_attention"]
    assert small["text_config"]["num_experts"] == 4
    assert "quantization_config" not in small
