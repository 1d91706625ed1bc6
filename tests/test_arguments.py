"""The argument table, and what is said about each kind of mistake."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iis_finetune.arguments import (
    Table,
    check,
    find_model,
    find_template,
    for_verb,
    frozen_table,
    installed_table,
    keys_for,
    schema,
    table,
)
from iis_finetune.arguments.table import TABLES
from iis_finetune.errors import COMMAND_LINE, Place, Problem
from iis_finetune.recipe import Entry, Kit, read

ROOT = Path(__file__).parent.parent
TABLE = frozen_table()
KIT_SCHEMA = Kit.model_json_schema()
needs_llamafactory = pytest.mark.skipif(
    importlib.util.find_spec("llamafactory") is None, reason="LLaMA-Factory is not installed"
)


def one(key: str, value: Any, **more: Any) -> tuple[Any, list[Problem]]:
    """What becomes of a recipe with this one line: the value (or NOTHING) and the problems."""
    arguments, problems = check([Entry(key, value, Place("r.yaml", 7, key), **more)], TABLE)
    return arguments.get(key, NOTHING), problems


NOTHING = "nothing"

TAKEN = [
    ("learning_rate", 2e-4, 2e-4),
    ("learning_rate", "2e-4", 2e-4),
    ("lora_rank", 8, 8),
    ("lora_rank", 8.0, 8),
    ("max_samples", 1e5, 100_000),
    ("num_train_epochs", 3, 3),
    ("val_size", 1, 1),
    ("do_train", True, True),
    ("do_train", 1, True),
    ("save_strategy", False, "no"),
    ("eval_strategy", False, "no"),
    ("output_dir", 2024, "2024"),
    ("resume_from_checkpoint", None, None),
    ("resume_from_checkpoint", True, True),
    ("resume_from_checkpoint", "runs/0001/output/checkpoint-5", "runs/0001/output/checkpoint-5"),
    ("adapter_name_or_path", ["a", "b"], "a,b"),
    ("adapter_name_or_path", "a,b", "a,b"),
    ("dataset", ["a", "b"], "a,b"),
    ("dataset", "a, b", "a,b"),
    ("interleave_probs", [0.3, 0.7], "0.3,0.7"),
    ("interleave_probs", 0.5, "0.5"),
    ("lora_target", "all", "all"),
    ("report_to", "none", "none"),
    ("report_to", ["wandb", "tensorboard"], ["wandb", "tensorboard"]),
    ("fsdp", "full_shard auto_wrap", "full_shard auto_wrap"),
    ("fsdp", ["full_shard", "auto_wrap"], ["full_shard", "auto_wrap"]),
    ("fsdp", True, True),
    ("fsdp", "", ""),
    ("debug", "", ""),
    ("deepspeed", {"zero_optimization": {"stage": 2}}, {"zero_optimization": {"stage": 2}}),
    ("deepspeed", "ds.json", "ds.json"),
    ("liger_kernel_config", '{"rope": true}', {"rope": True}),
    ("include_num_input_tokens_seen", True, True),
    ("include_num_input_tokens_seen", "non_padding", "non_padding"),
    ("max_grad_norm", float("inf"), float("inf")),
    ("max_steps", -1, -1),
    ("quantization_bit", 4, 4),
    ("enable_thinking", None, None),
    ("trackio_static_space_id", False, False),
    ("default_system", "Say no.", "Say no."),
]


@pytest.mark.parametrize(("key", "value", "expected"), TAKEN)
def test_a_value_is_taken_for_what_it_means_without_a_word(key: str, value: Any, expected: Any) -> None:
    taken, problems = one(key, value)
    assert (taken, type(taken), problems) == (expected, type(expected), [])


def test_text_is_what_was_written_not_what_yaml_made_of_it() -> None:
    assert one("model_revision", 1.1, text="1.10") == ("1.10", [])


WARNED = [
    ("lora_rank", "8", True, 8, "quotes"),
    ("learning_rate", "1e-4", True, 1e-4, "quotes"),
    ("fp16", "False", True, False, "quotes"),
    ("resume_from_checkpoint", "true", True, True, "quotes"),
    ("quantization_bit", "4", True, 4, "quotes"),
    ("quantization_bit", "None", False, None, "null"),
    ("tokenized_path", "None", False, None, "null"),
    ("deepspeed", False, False, None, "false"),
    ("template", False, False, None, "false"),
    ("report_to", None, False, NOTHING, "null"),
    ("lora_rank", None, False, NOTHING, "default"),
    ("report_to", "wandb,tensorboard", False, ["wandb", "tensorboard"], "one name"),
]


@pytest.mark.parametrize(("key", "value", "quoted", "expected", "said"), WARNED)
def test_a_value_that_is_not_what_it_seems_is_taken_with_a_warning(
    key: str, value: Any, quoted: bool, expected: Any, said: str
) -> None:
    taken, problems = one(key, value, quoted=quoted)
    assert taken == expected
    assert [problem.severity for problem in problems] == ["warning"]
    assert said in problems[0].what


def test_null_on_the_command_line_unsets_without_a_word() -> None:
    place = Place(COMMAND_LINE, key="lora_rank")
    assert check([Entry("lora_rank", None, place, source="override")], TABLE) == ({}, [])


REFUSED = [
    ("lora_rank", 8.5, "a whole number", "write 8 or 9"),
    ("lora_rank", True, "a whole number", "default is 8"),
    ("lora_rank", "eight", "a whole number", "default is 8"),
    ("lora_rank", [8], "a whole number", "default is 8"),
    ("lora_rank", float("nan"), "a whole number", "default is 8"),
    ("learning_rate", float("inf"), "inf", "number"),
    ("learning_rate", {"value": 1}, "a number", "default"),
    ("do_train", "maybe", "true or false", "default is false"),
    ("bf16", "auto", "no value 'auto'", "kit.precision: auto"),
    ("output_dir", True, "a text", "quotes"),
    ("output_dir", {"a": 1}, "a text", "default"),
    ("output_dir", "${oc.env:HOME}/out", "does not fill in", "write the value itself"),
    ("deepspeed", {"a": {"b": ["???"]}}, "does not fill in", "write the value itself"),
    ("dataset", "a,", "empty name", "comma"),
    ("dataset", [], "empty name", "comma"),
    ("dataset", ["a", None], "names", "commas"),
    ("stage", "sftt", "no value 'sftt'", "did you mean 'sft'?"),
    ("stage", "orpo", "no value", "'stage: dpo' and 'pref_loss: orpo'"),
    ("finetuning_type", "LoRA", "no value", "did you mean 'lora'?"),
    ("finetuning_type", "qlora", "no value", "'finetuning_type: lora' and 'quantization_bit: 4'"),
    ("quantization_method", "bitsandbytes", "no value", "quantization_method: bnb"),
    ("quantization_bit", 7, "no value 7", "8"),
    ("quantization_bit", 4.5, "a whole number", "write 4 or 5"),
    ("flash_attn", "eager", "no value", "flash_attn: disabled"),
    ("flash_attn", "flash_attention_2", "no value", "flash_attn: fa2"),
    ("flash_attn", True, "no value true", "flash_attn: auto"),
    ("flash_attn", False, "no value false", "flash_attn: disabled"),
    ("optim", "adamw_hf", "no value", "optim: adamw_torch"),
    ("optim", "adamw_trch", "no value", "did you mean 'adamw_torch'?"),
    ("infer_dtype", "fp16", "no value", "infer_dtype: float16"),
    ("infer_backend", "hf", "no value", "infer_backend: huggingface"),
    ("export_device", "cuda", "no value", "export_device: auto"),
    ("lr_scheduler_type", "cosin", "no value", "did you mean 'cosine'?"),
    ("save_strategy", "step", "no value", "did you mean 'steps'?"),
    ("template", "qwen2.5", "no value", "template: qwen"),
    ("template", "lama3", "no value", "did you mean 'llama3'?"),
    ("report_to", "wandbb", "no value", "did you mean 'wandb'?"),
    ("tool_format", "qwn", "no value", "did you mean 'qwen'?"),
    ("fsdp", "full_shard autowrap", "no value 'autowrap'", "did you mean 'auto_wrap'?"),
    ("parallelism_config", {"tp": 2}, "cannot be given", "remove the line"),
]


@pytest.mark.parametrize(("key", "value", "what", "fix"), REFUSED)
def test_a_value_that_cannot_work_is_refused_with_the_fix(key: str, value: Any, what: str, fix: str) -> None:
    taken, problems = one(key, value)
    assert taken is NOTHING
    assert [(problem.severity, problem.where) for problem in problems] == [("error", Place("r.yaml", 7, key))]
    assert what in problems[0].what
    assert key in problems[0].what
    assert fix in problems[0].fix


LIMITED = [
    ("lora_rank", 0, "error"),
    ("lora_alpha", 0, "warning"),
    ("lora_dropout", 1.0, "error"),
    ("lora_dropout", -0.1, "error"),
    ("learning_rate", 0, "error"),
    ("learning_rate", -1e-4, "error"),
    ("learning_rate", 100.0, "warning"),
    ("cutoff_len", 0, "error"),
    ("per_device_train_batch_size", 0, "error"),
    ("per_device_eval_batch_size", 0, "error"),
    ("gradient_accumulation_steps", 0, "error"),
    ("num_train_epochs", 0, "error"),
    ("num_train_epochs", -1, "error"),
    ("max_steps", 0, "warning"),
    ("max_samples", 0, "error"),
    ("val_size", -0.1, "error"),
    ("warmup_steps", -1, "error"),
    ("warmup_ratio", 5, "warning"),
    ("logging_steps", 0, "error"),
    ("logging_steps", 2.5, "error"),
    ("save_steps", 2.5, "error"),
    ("freeze_trainable_layers", 0, "error"),
    ("pref_beta", -0.1, "warning"),
    ("top_p", 1.5, "error"),
    ("seed", -1, "error"),
    ("vllm_gpu_util", 1.5, "error"),
]


@pytest.mark.parametrize(("key", "value", "severity"), LIMITED)
def test_a_number_out_of_range_is_named_with_the_reason(key: str, value: float, severity: str) -> None:
    taken, problems = one(key, value)
    assert taken == value
    assert [problem.severity for problem in problems] == [severity]
    assert problems[0].what.startswith(f"'{key}' is {value}: ")


def test_a_limit_yields_to_the_argument_that_outweighs_it() -> None:
    place = Place("r.yaml", 1)
    entries = [Entry("num_train_epochs", 0, place), Entry("max_steps", 10, place)]
    assert check(entries, TABLE)[1] == []
    assert check([Entry("logging_steps", 0, place), Entry("logging_strategy", "epoch", place)], TABLE)[1] == []
    assert check([Entry("logging_steps", 0, place), Entry("logging_strategy", "steps", place)], TABLE)[1] != []


@pytest.mark.parametrize("name", sorted(name for name in TABLE if TABLE[name].default not in (None, [])))
def test_every_default_passes_its_own_check(name: str) -> None:
    default = TABLE[name].default
    assert one(name, default) == (default, [])


UNKNOWN = [
    ("lora_rnak", "unknown argument 'lora_rnak'", "did you mean 'lora_rank'?"),
    ("LoRA-Rank", "unknown argument 'LoRA-Rank'", "did you mean 'lora_rank'?"),
    ("--lora_rank", "unknown argument", "did you mean 'lora_rank'?"),
    ("precision", "kit block", "kit: {precision: ...}"),
    ("global_batch_size", "kit block", "kit: {global_batch_size: ...}"),
    ("lora_r", "PEFT and Axolotl and TRL", "write 'lora_rank'"),
    ("r", "PEFT and Unsloth", "write 'lora_rank'"),
    ("micro_batch_size", "Axolotl", "write 'per_device_train_batch_size'"),
    ("sequence_len", "Axolotl", "write 'cutoff_len'"),
    ("base_model", "Axolotl", "write 'model_name_or_path'"),
    ("train_type", "ms-swift", "write 'finetuning_type'"),
    ("max_seq_length", "Unsloth", "write 'cutoff_len'"),
    ("lr", "torchtune", "write 'learning_rate'"),
    ("epochs", "torchtune", "write 'num_train_epochs'"),
    ("batch_size", "torchtune", "write 'per_device_train_batch_size'"),
    ("torch_dtype", "ms-swift", "write 'kit: {precision: ...}'"),
    ("load_in_4bit", "Axolotl", "quantization_bit: 4"),
    ("dpo_beta", "LLaMA-Factory 0.7 was the last", "write 'pref_beta'"),
    ("new_special_tokens", "LLaMA-Factory 0.9.2 was the last", "write 'add_special_tokens'"),
    ("evaluation_strategy", "transformers 5 no longer", "write 'eval_strategy'"),
    ("group_by_length", "transformers 5 no longer", "train_sampling_strategy: group_by_length"),
    ("sequence_parallel_size", "never had", "remove the line"),
    ("use_megatron_bridge", "does not have", "remove the line"),
    ("n_shot", "llamafactory-cli eval", "remove the line"),
    ("完全不同", "unknown argument", "remove the line"),
    ("x" * 10_000, "unknown argument", "remove the line"),
]


@pytest.mark.parametrize(("key", "what", "fix"), UNKNOWN)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(key: str, what: str, fix: str) -> None:
    arguments, problems = check([Entry(key, 1, Place("r.yaml", 7, key))], TABLE)
    assert arguments == {}
    assert len(problems) == 1
    assert problems[0].severity == "error"
    assert what in problems[0].what
    assert fix in problems[0].fix


def answers() -> list[tuple[str, str]]:
    removed = tomllib.loads((TABLES / "removed.toml").read_text("utf-8"))
    aliases = tomllib.loads((TABLES / "aliases.toml").read_text("utf-8"))
    blocks = [*removed["llamafactory"].values(), *removed["transformers"].values()]
    blocks += [tool["names"] for tool in aliases["tool"]]
    return sorted({pair for block in blocks for pair in block.items()})


@pytest.mark.parametrize(("name", "answer"), answers())
def test_foreign_names_are_no_argument_here_and_their_answers_are(name: str, answer: str) -> None:
    assert name not in TABLE
    if " " in answer:
        assert answer.startswith(("write ", "remove "))
    else:
        assert answer in TABLE or answer.removeprefix("kit.") in Kit.model_fields


def test_every_former_value_leads_to_one_that_is_accepted() -> None:
    for argument in TABLE.values():
        for old, new in (argument.former or {}).items():
            lines = {argument.name: new} if isinstance(new, str) else dict(new)
            lines.pop("because", None)
            assert old not in (argument.choices or ()), (argument.name, old)
            for key, value in lines.items():
                if key.startswith("kit."):
                    Kit.model_validate({key.removeprefix("kit."): value})
                else:
                    assert one(key, value) == (value, []), (argument.name, old)


def test_the_hand_written_tables_name_only_real_arguments() -> None:
    values = json.loads((TABLES / "values.json").read_text("utf-8"))["arguments"]
    owners = {argument.owner for argument in TABLE.values()}
    verbs = json.loads((TABLES / "verbs.json").read_text("utf-8"))["verbs"]
    named = {name for row in verbs.values() for part in ("only", "without") for name in row.get(part, [])}
    assert values.keys() <= TABLE.keys()
    assert named <= TABLE.keys() | owners


def test_ten_problems_are_found_together_in_the_order_of_the_file() -> None:
    wrong = {"lora_rnak": 1, "stage": "x", "lora_rank": 0, "lr": 1, "optim": "adamw_hf"}
    wrong |= {"fp16": "auto", "dataset": "a,", "cutoff_len": "x", "epochs": 3, "output_dir": "${x}"}
    entries = [Entry(key, value, Place("r.yaml", line, key)) for line, (key, value) in enumerate(wrong.items(), 1)]
    lines = {problem.where.line for problem in check(entries, TABLE)[1]}
    assert lines == set(range(1, 11))


def test_keys_of_the_kit_block_are_somebody_elses() -> None:
    assert check([Entry("kit.nonsense", 1, Place("r.yaml", 1))], TABLE) == ({}, [])


TRAINING = {
    "model_name_or_path": "m",
    "template": "qwen",
    "stage": "dpo",
    "do_train": True,
    "dataset": "d",
    "val_size": 0.1,
    "finetuning_type": "oft",
    "learning_rate": 1e-5,
    "load_best_model_at_end": True,
    "eval_strategy": "steps",
    "neat_packing": True,
    "use_dora": True,
    "export_dir": "out",
    "infer_backend": "vllm",
    "adapter_name_or_path": "a",
    "quantization_bit": 4,
    "resume_from_checkpoint": True,
    "bf16": True,
    "max_new_tokens": 64,
}
GIVEN_TO = [
    ("train", TRAINING.keys() - {"export_dir", "infer_backend"}),
    (
        "predict",
        {
            "model_name_or_path",
            "template",
            "stage",
            "adapter_name_or_path",
            "quantization_bit",
            "bf16",
            "max_new_tokens",
        },
    ),
    (
        "export",
        {"model_name_or_path", "template", "export_dir", "adapter_name_or_path", "max_new_tokens"},
    ),
    (
        "chat",
        {
            "model_name_or_path",
            "template",
            "infer_backend",
            "adapter_name_or_path",
            "quantization_bit",
            "max_new_tokens",
        },
    ),
]


@pytest.mark.parametrize(("verb", "expected"), GIVEN_TO)
def test_each_verb_gets_the_arguments_that_it_reads(verb: Any, expected: set[str]) -> None:
    assert for_verb(TRAINING, verb, TABLE).keys() == expected
    assert expected <= keys_for(verb, TABLE)


def test_a_reward_model_stays_one_when_it_is_exported() -> None:
    assert for_verb({"stage": "rm"}, "export", TABLE) == {"stage": "rm"}
    assert for_verb({"stage": "rm"}, "serve", TABLE) == {"stage": "rm"}


def test_the_key_sets_have_the_sizes_of_llamafactorys_parsers() -> None:
    assert len(keys_for("train", TABLE)) == len(keys_for("predict", TABLE)) == 346
    assert len(keys_for("export", TABLE)) == len(keys_for("chat", TABLE)) == len(keys_for("serve", TABLE)) == 211


MODELS = [
    ("Qwen/Qwen2.5-7B-Instruct", "qwen"),
    ("qwen/qwen2.5-7b-instruct", "qwen"),
    ("Qwen2.5-7B-Instruct", "qwen"),
    ("Qwen/Qwen2.5-7B", None),
    ("Qwen/Qwen3-8B", "qwen3"),
    ("Qwen/Qwen3-4B-Instruct-2507", "qwen3_nothink"),
    ("LLM-Research/Meta-Llama-3-8B-Instruct", "llama3"),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseekr1"),
]


@pytest.mark.parametrize(("hub_id", "template"), MODELS)
def test_a_model_is_found_by_any_of_its_ids(hub_id: str, template: str | None) -> None:
    model = find_model(hub_id)
    assert model is not None
    assert model.template == template


def test_a_template_says_what_the_tokenizer_must_know() -> None:
    qwen, glm4 = find_template("qwen"), find_template("glm4")
    assert qwen is not None and glm4 is not None
    assert (qwen.stop_words, qwen.tokens, qwen.reasoning, qwen.multimodal) == (
        ("<|im_end|>",),
        ("<|im_end|>",),
        False,
        False,
    )
    assert glm4.efficient_eos
    assert find_template("nobody") is None
    assert find_model("nobody/nothing") is None


# --- the schema ---------------------------------------------------------------------------------------------------


def as_document(path: Path) -> dict[str, Any]:
    recipe, _ = read(str(path))
    document = {key: entry.value for key, entry in recipe.entries.items()}
    kit = {key.removeprefix("kit."): entry.value for key, entry in recipe.kit_entries.items()}
    return {**document, **({"kit": kit} if kit else {})}


def is_valid(document: Any) -> bool:
    validator = jsonschema.Draft7Validator(schema(KIT_SCHEMA, TABLE))
    return not list(validator.iter_errors(document))


def test_the_schema_is_a_schema_and_complete() -> None:
    document = schema(KIT_SCHEMA, TABLE)
    jsonschema.Draft7Validator.check_schema(document)
    assert document["properties"].keys() == {"kit", *TABLE}
    assert document["additionalProperties"] is False
    undescribed = [name for name in TABLE if not document["properties"][name]["description"]]
    assert undescribed == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_the_schema(path: Path) -> None:
    validator = jsonschema.Draft7Validator(schema(KIT_SCHEMA, TABLE))
    assert [error.message for error in validator.iter_errors(as_document(path))] == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_passes_the_check_without_a_word(path: Path) -> None:
    recipe, problems = read(str(path))
    assert problems + check(recipe.entries.values(), TABLE)[1] == []


GOOD = [
    {},
    {"dataset": ["a", "b"], "lora_target": "all"},
    {"save_strategy": False},
    {"deepspeed": {"stage": 2}},
    {"kit": {"precision": "fp32"}},
    {"resume_from_checkpoint": None},
]
BROKEN: list[Any] = [
    [],
    {"lora_rnak": 8},
    {"lora_rank": 8.5},
    {"lora_rank": "8"},
    {"lora_rank": 0},
    {"stage": "sftt"},
    {"learning_rate": "fast"},
    {"do_train": "yes"},
    {"template": "qwen2.5"},
    {"dataset": []},
    {"kit": {"precision": "fp8"}},
    {"kit": {"nonsense": 1}},
    {"quantization_bit": 7},
    {"lora_dropout": 1.0},
]


@pytest.mark.parametrize("document", GOOD)
def test_the_schema_accepts_what_the_check_accepts(document: Any) -> None:
    assert is_valid(document)


@pytest.mark.parametrize("document", BROKEN)
def test_the_schema_refuses_broken_recipes(document: Any) -> None:
    assert not is_valid(document)


# --- nothing ends in a trace --------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(TABLE)) | st.text(), VALUES, st.booleans(), st.none() | st.text())
def test_no_value_whatever_makes_the_check_fail(key: str, value: Any, quoted: bool, text: str | None) -> None:
    arguments, problems = check([Entry(key, value, Place("r.yaml", 1, key), quoted=quoted, text=text)], TABLE)
    assert all(problem.what and problem.fix for problem in problems)
    assert key in arguments or problems or key.startswith("kit.") or value is None


def test_a_list_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert one("dataset", loop)[1]
    assert one("deepspeed", {"a": loop})[1] == []


# --- the table against LLaMA-Factory ------------------------------------------------------------------------------


@needs_llamafactory
def test_the_table_read_by_ast_is_the_frozen_one() -> None:
    assert installed_table() == TABLE


@needs_llamafactory
def test_the_frozen_files_are_what_the_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/freeze_arguments.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_reading_the_table_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "llamafactory", "iis_finetune.arguments.read_classes", "tomllib"]
    code = (
        "import sys; from iis_finetune.arguments import check, table; check([], table());"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def fake_package(folder: Path, name: str, version: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / f"{name}-{version}.dist-info").mkdir()


@pytest.mark.parametrize("version", ["0.9.5", "0.9.9"])
def test_a_foreign_or_unreadable_installation_falls_back_on_the_frozen_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake_package(tmp_path, "llamafactory", version)
    fake_package(tmp_path, "transformers", "5.6.0")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in {"llamafactory", "transformers"}]:
        monkeypatch.delitem(sys.modules, name)
    assert installed_table() is None
    assert table() == TABLE


MESSY = {
    "model_name_or_path": "m",
    "output_dir": 2024,
    "dataset": ["a", "b"],
    "adapter_name_or_path": ["a", "b"],
    "interleave_probs": [0.5, 0.5],
    "mix_strategy": "interleave_under",
    "lora_rank": "16",
    "learning_rate": "1e-4",
    "save_strategy": False,
    "eval_strategy": False,
    "seed": "42",
    "save_steps": "100",
    "val_size": None,
    "report_to": None,
    "num_train_epochs": 2,
    "do_train": "True",
}
INSIDE = """
import dataclasses, enum, json, sys, types, typing
from transformers import HfArgumentParser
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
try:
    import torchaudio
except (ImportError, OSError):
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
from llamafactory.hparams import parser as p
from llamafactory.data.template import TEMPLATES, ReasoningTemplate
from llamafactory.data.tool_utils import TOOLS
from llamafactory.extras.constants import DEFAULT_TEMPLATE, MULTIMODAL_SUPPORTED_MODELS, SUPPORTED_MODELS

def describe(hint):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return set(), [], True
    if origin in (typing.Union, types.UnionType):
        parts = [describe(arg) for arg in args]
        kinds, choices, null = zip(*parts)
        return set().union(*kinds), sum(choices, []), any(null)
    if origin is typing.Literal:
        return {type(arg).__name__ for arg in args}, [arg for arg in args if isinstance(arg, str)], False
    if origin in (list, dict):
        return {origin.__name__}, describe(args[0])[1] if origin is list else [], False
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"str"}, [member.value for member in hint], False
    name = {"Path": "str"}.get(hint.__name__, hint.__name__)
    return ({name} if name in ("bool", "int", "float", "str", "list", "dict") else set()), [], False

def fields(classes):
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.init:
                kinds, choices, nullable = describe(hints[field.name])
                default = [] if field.default is dataclasses.MISSING else field.default
                default = default.value if isinstance(default, enum.Enum) else default
                text = field.metadata.get("help", "").replace("%%", "%")
                yield field.name, [sorted(kinds), choices, nullable, default, text]

def slot(value):
    return {"special": next(iter(value))} if isinstance(value, set) else value

roles = ("user", "assistant", "system", "function", "observation", "prefix")
messy, infer = json.loads(sys.argv[1])
(*_, data, training, finetuning, _) = HfArgumentParser(p._TRAIN_ARGS).parse_dict(messy)
HfArgumentParser(p._INFER_ARGS).parse_dict(infer)
found = {
    "train": dict(fields(p._TRAIN_ARGS)),
    "infer": sorted(dict(fields(p._INFER_ARGS))),
    "tools": sorted(TOOLS),
    "trackers": sorted(INTEGRATION_TO_CALLBACK),
    "templates": {
        name: {
            "slots": {role: [slot(s) for s in getattr(t, "format_" + role).slots or []] for role in roles},
            "reasoning": isinstance(t, ReasoningTemplate),
            "multimodal": type(t.mm_plugin).__name__ != "BasePlugin",
            "tool_format": t.format_tools.tool_format,
            "stop_words": t.stop_words, "thought_words": list(t.thought_words),
            "tool_call_words": list(t.tool_call_words), "default_system": t.default_system,
            "efficient_eos": t.efficient_eos, "replace_eos": t.replace_eos,
            "replace_jinja_template": t.replace_jinja_template,
        }
        for name, t in TEMPLATES.items()
    },
    "models": {
        name: {
            "huggingface": ids.get("hf"), "modelscope": ids.get("ms"), "openmind": ids.get("om"),
            "template": DEFAULT_TEMPLATE.get(name), "multimodal": name in MULTIMODAL_SUPPORTED_MODELS,
        }
        for name, ids in SUPPORTED_MODELS.items()
    },
    "parsed": [data.dataset, finetuning.lora_rank, training.learning_rate, training.save_strategy, training.report_to],
}
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def real() -> Mapping[str, Any]:
    """What LLaMA-Factory's own classes say, from one child process that imports them (about 6 s)."""
    place = Place("r.yaml", 1)
    messy, _ = check([Entry(key, value, place, quoted=True) for key, value in MESSY.items()], TABLE)
    sent = json.dumps([messy, for_verb({**TRAINING, "stage": "dpo"}, "chat", TABLE)])
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, sent], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def without_hand_written_facts() -> Table:
    installed: Table = json.loads((TABLES / "arguments-0.9.5.json").read_text("utf-8"))["arguments"]
    return installed


@needs_llamafactory
def test_names_types_choices_defaults_and_helps_are_those_of_the_real_parser(real: Mapping[str, Any]) -> None:
    rows: Mapping[str, Any] = without_hand_written_facts()
    from_elsewhere = {"template", "tool_format", "report_to", "ddp_backend", "train_sampling_strategy"}
    ours = {
        name: [
            sorted(row["kinds"]),
            [] if name in from_elsewhere else row["choices"] or [],
            row["nullable"],
            row["default"],
            row["help"],
        ]
        for name, row in rows.items()
    }
    # transformers picks the default optimizer by the version of torch.
    ours["optim"][3] = real["train"]["optim"][3]
    assert ours == real["train"]
    assert sorted(keys_for("export", TABLE)) == real["infer"]


@needs_llamafactory
def test_templates_models_tools_and_trackers_are_those_of_the_real_registers(real: Mapping[str, Any]) -> None:
    assert json.loads((TABLES / "templates-0.9.5.json").read_text("utf-8"))["templates"] == real["templates"]
    assert json.loads((TABLES / "models-0.9.5.json").read_text("utf-8"))["models"] == real["models"]
    assert sorted(TABLE["template"].choices or ()) == sorted(real["templates"])
    assert sorted(TABLE["tool_format"].choices or ()) == real["tools"]
    assert sorted({*(TABLE["report_to"].choices or ())} - {"all", "none"}) == real["trackers"]


@needs_llamafactory
def test_what_the_check_makes_of_a_messy_recipe_is_what_the_real_parser_needs(real: Mapping[str, Any]) -> None:
    assert real["parsed"] == [["a", "b"], 16, 1e-4, "no", []]
