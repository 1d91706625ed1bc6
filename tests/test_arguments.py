"""The argument table, and what is said about each kind of mistake."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iis_finetune.arguments import (
    LLAMAFACTORY,
    WHOLE,
    Settings,
    check,
    find_model,
    find_template,
    for_verb,
    frozen,
    frozen_table,
    schema,
    settings_of,
    table,
    trained_with,
    version_of,
)
from iis_finetune.errors import COMMAND_LINE, Place, Problem
from iis_finetune.recipe import KIT_KEYS, Entry, Kit, kit_schema, read
from iis_finetune.tables import TABLES
from iis_finetune.tables import read as read_table
from iis_finetune.wheels import PLACEHOLDER

ROOT = Path(__file__).parent.parent
TABLE = frozen_table()
KIT_SCHEMA = kit_schema()
INSTALLED = {
    name: next(iter(spec.submodule_search_locations or ()))
    for name in ("llamafactory", "transformers")
    if (spec := importlib.util.find_spec(name))
}
needs_llamafactory = pytest.mark.skipif(len(INSTALLED) < 2, reason="LLaMA-Factory is not installed")


def one(key: str, value: Any, **more: Any) -> tuple[Any, list[Problem]]:
    """What becomes of a recipe with this one line that is read: the value (or NOTHING) and the problems."""
    name, *values = (TABLE[key].read_with if key in TABLE else ()) or ("stage", "sft")
    reads = [] if name == key else [Entry(name, values[0] if values else 4, Place("r.yaml", 1, name))]
    arguments, problems = check([*reads, Entry(key, value, Place("r.yaml", 7, key), **more)], TABLE)
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
    ("include_num_input_tokens_seen", False, False),
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
    ("bf16", "auto", "cannot be 'auto'", "kit.precision: auto"),
    ("output_dir", True, "a text", "quotes"),
    ("output_dir", {"a": 1}, "a text", "default"),
    ("output_dir", "${oc.env:HOME}/out", "does not fill in", "write the value itself"),
    ("deepspeed", {"a": {"b": ["???"]}}, "does not fill in", "write the value itself"),
    ("dataset", "a,", "empty name", "comma"),
    ("dataset", [], "empty name", "comma"),
    ("dataset", ["a", None], "names", "commas"),
    ("stage", "sftt", "cannot be 'sftt'", "did you mean 'sft'?"),
    ("stage", "orpo", "cannot be", "'stage: dpo' and 'pref_loss: orpo'"),
    ("finetuning_type", "LoRA", "cannot be", "did you mean 'lora'?"),
    ("finetuning_type", "qlora", "cannot be", "'finetuning_type: lora' and 'quantization_bit: 4'"),
    ("quantization_method", "bitsandbytes", "cannot be", "quantization_method: bnb"),
    ("quantization_bit", 7, "cannot be 7", "8"),
    ("quantization_bit", 4.5, "a whole number", "write 4 or 5"),
    ("flash_attn", "eager", "cannot be", "flash_attn: disabled"),
    ("flash_attn", "flash_attention_2", "cannot be", "flash_attn: fa2"),
    ("flash_attn", True, "cannot be true", "flash_attn: auto"),
    ("flash_attn", False, "cannot be false", "flash_attn: disabled"),
    ("optim", "adamw_hf", "cannot be", "optim: adamw_torch"),
    ("optim", "adamw_trch", "cannot be", "did you mean 'adamw_torch'?"),
    ("infer_dtype", "fp16", "cannot be", "infer_dtype: float16"),
    ("infer_backend", "hf", "cannot be", "infer_backend: huggingface"),
    ("export_device", "cuda", "cannot be", "export_device: auto"),
    ("lr_scheduler_type", "cosin", "cannot be", "did you mean 'cosine'?"),
    ("save_strategy", "step", "cannot be", "did you mean 'steps'?"),
    ("template", "qwen2.5", "cannot be", "template: qwen"),
    ("template", "lama3", "cannot be", "did you mean 'llama3'?"),
    ("report_to", "wandbb", "cannot be", "did you mean 'wandb'?"),
    ("tool_format", "qwn", "cannot be", "did you mean 'qwen'?"),
    ("fsdp", "full_shard autowrap", "cannot be 'autowrap'", "did you mean 'auto_wrap'?"),
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
    ("mixed_precision", "other tools", "write 'kit: {precision: ...}'"),
    ("load_in_4bit", "Axolotl", "quantization_bit: 4"),
    ("dpo_beta", "after version 0.7", "write 'pref_beta'"),
    ("new_special_tokens", "after version 0.9.2", "write 'add_special_tokens'"),
    ("evaluation_strategy", "transformers 5 removed", "write 'eval_strategy'"),
    ("group_by_length", "transformers 5 removed", "train_sampling_strategy: group_by_length"),
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


BY_VALUE = [
    ("load_in_4bit", True, "write 'quantization_bit: 4' in its place"),
    ("load_in_4bit", False, "remove the line"),
    ("load_in_8bit", False, "remove the line"),
    ("load_in_8bit", 1, "write 'quantization_bit: 8' in its place"),
    ("wandb_project", None, "remove the line: it says nothing here"),
    ("lora_model_dir", None, "remove the line: it says nothing here"),
    ("clip_grad_norm", None, "remove the line: it says nothing here"),
    ("adapter", "lora", "write 'finetuning_type: lora' in its place"),
    ("adapter", None, "write 'finetuning_type: full' in its place"),
    ("lora_target_linear", False, "remove the line"),
    ("flash_attention", True, "write 'kit.attention: fa2' in its place"),
    ("dataset_prepared_path", "prepared", "remove the line"),
    ("max_steps_per_epoch", 10, "write 'max_steps', which counts the steps of all epochs together"),
    ("torch_dtype", "bfloat16", "write 'kit.precision: bf16' in its place"),
    ("dtype", "fp32", "write 'kit.precision: fp32' in its place"),
    ("target_modules", "all-linear", "write 'lora_target: all' in its place"),
    ("target_modules", ["q_proj", "v_proj"], "write 'lora_target: [q_proj,v_proj]' in its place"),
]


@pytest.mark.parametrize(("key", "value", "fix"), BY_VALUE)
def test_a_name_of_another_tool_is_answered_by_its_value(key: str, value: Any, fix: str) -> None:
    (problem,) = check([Entry(key, value, Place("r.yaml", 7, key))], TABLE)[1]
    assert problem.fix.startswith(fix)


BLOCKS = [
    (
        "optimizer",
        {"_component_": "torch.optim.SGD", "fused": True, "lr": 2e-3},
        "'optim: sgd' and 'learning_rate: 0.002'",
    ),
    ("model", {"lora_rank": 64, "apply_lora_to_mlp": True}, "'lora_rank: 64' and 'lora_target: all'"),
    ("model", {"lora_attn_modules": ["q_proj", "k_proj"], "quantize_base": False}, "'lora_target: [q_proj,k_proj]'"),
    ("tokenizer", {"path": "vocab.json", "max_seq_len": 512}, "'cutoff_len: 512'"),
    ("checkpointer", {"checkpoint_dir": "models/a", "output_dir": "out"}, "'model_name_or_path: models/a'"),
    ("dataset", {"_component_": "torchtune.datasets.alpaca_dataset"}, "'dataset: NAME'"),
    ("datasets", [{"path": "a/b", "type": "alpaca"}, {"path": "c.jsonl"}], "'dataset: a/b,c.jsonl'"),
    ("trainer", {"learning_rate": 1e-4, "what": 1}, "'learning_rate: 0.0001'"),
]


@pytest.mark.parametrize(("key", "value", "lines"), BLOCKS)
def test_a_block_of_another_tool_is_answered_with_our_lines(key: str, value: Any, lines: str) -> None:
    (problem,) = check([Entry(key, value, Place("r.yaml", 7, key))], TABLE)[1]
    assert (problem.where.line, problem.fix) == (7, f"write {lines} in its place")


def test_a_block_without_a_name_of_ours_is_to_be_removed_and_our_own_blocks_stay() -> None:
    (problem,) = check([Entry("loss", {"_component_": "x"}, Place("r.yaml", 7, "loss"))], TABLE)[1]
    assert problem.fix == "remove the line: it says nothing here"
    assert check([Entry("lr_scheduler_kwargs", {"power": 2}, Place("r.yaml", 1))], TABLE)[1] == []


def test_an_argument_that_the_installed_version_lacks_is_told_so() -> None:
    older = {name: argument for name, argument in TABLE.items() if name != "use_dft_loss"}
    entry = Entry("use_dft_loss", True, Place("r.yaml", 1))
    (problem,) = check([entry], older)[1]
    assert problem.what == f"the installed LLaMA-Factory is not {LLAMAFACTORY} and has no argument 'use_dft_loss'"
    (problem,) = check([entry, Entry("stage", "ppo", Place("r.yaml", 2))], frozen_table("ppo"))[1]
    assert problem.what == f"stage ppo runs in LLaMA-Factory {version_of('ppo')}, which has no argument 'use_dft_loss'"


def answers() -> list[tuple[str, str]]:
    removed = tomllib.loads((TABLES / "removed.toml").read_text("utf-8"))
    aliases = tomllib.loads((TABLES / "aliases.toml").read_text("utf-8"))
    blocks = [*removed["llamafactory"].values(), *removed["transformers"].values()]
    blocks += [tool["names"] for tool in aliases["tool"]]
    rows = [(name, answer) for block in blocks for name, answer in block.items()]
    of_values = [(name, key) for name, row in rows if isinstance(row, dict) for key in _named(row)]
    return sorted({pair for pair in rows if isinstance(pair[1], str)} | set(of_values))


def _named(row: dict[str, Any]) -> list[str]:
    """The arguments that an answer names which depends on the value."""
    return [row["pixels"]] if "pixels" in row else [key for each in row.values() for key in _keys(each)]


def _keys(lines: str | dict[str, Any]) -> list[str]:
    return [lines] if isinstance(lines, str) else list(lines)


@pytest.mark.parametrize(("name", "answer"), answers())
def test_foreign_names_are_no_argument_here_and_their_answers_are(name: str, answer: str) -> None:
    assert name not in TABLE
    if " " in answer:
        assert answer.startswith(("write ", "remove "))
    else:
        assert answer in TABLE or answer.removeprefix("kit.") in KIT_KEYS


def test_every_former_value_leads_to_one_that_is_accepted() -> None:
    for argument in TABLE.values():
        for old, new in (argument.former or {}).items():
            lines = {argument.name: new} if isinstance(new, str) else dict(new)
            assert old not in (argument.choices or ()), (argument.name, old)
            for key, value in lines.items():
                if key.startswith("kit."):
                    msgspec.convert({key.removeprefix("kit."): value}, Kit)
                else:
                    assert one(key, value) == (value, []), (argument.name, old)


def test_the_hand_written_tables_name_only_real_arguments() -> None:
    tables = json.loads((TABLES / "values.json").read_text("utf-8"))
    values, read_with = tables["arguments"], tables["read_with"]
    owners = {argument.owner for argument in TABLE.values()}
    assert read_with.keys() <= owners and {name for name, *_ in read_with.values()} <= TABLE.keys()
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


def keys_for(verb: str) -> set[str]:
    """Every key that the verb's LLaMA-Factory command accepts."""
    rows = read_table("verbs.json")["verbs"]
    groups = rows[rows[verb].get("same_as", verb)]["groups"]
    return {name for name, argument in TABLE.items() if argument.group in groups}


@pytest.mark.parametrize(("verb", "expected"), GIVEN_TO)
def test_each_verb_gets_the_arguments_that_it_reads(verb: Any, expected: set[str]) -> None:
    assert for_verb(TRAINING, verb, TABLE).keys() == expected
    assert expected <= keys_for(verb)


def test_a_reward_model_stays_one_when_it_is_exported() -> None:
    assert for_verb({"stage": "rm"}, "export", TABLE) == {"stage": "rm"}
    assert for_verb({"stage": "rm"}, "serve", TABLE) == {"stage": "rm"}


def test_the_key_sets_have_the_sizes_of_llamafactorys_parsers() -> None:
    assert len(keys_for("train")) == len(keys_for("predict")) == 343
    assert len(keys_for("export")) == len(keys_for("chat")) == len(keys_for("serve")) == 211


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
    heavy = ["torch", "transformers", "llamafactory", "tomllib"]
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


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages are found before the installed ones, and a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in {"llamafactory", "transformers"}]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_the_frozen_version_is_recognised_without_importing_it(packages: Path) -> None:
    for name, version in frozen("arguments")["versions"].items():
        fake_package(packages, name, version)
    assert table() is TABLE
    assert settings_of(read("qwen0_5b_lora")[0])[1] == []


def test_another_version_that_cannot_be_imported_falls_back_on_the_frozen_table_with_a_warning(packages: Path) -> None:
    fake_package(packages, "llamafactory", "0.9.9")
    fake_package(packages, "transformers", "5.6.0")
    assert table() is TABLE
    (problem,) = settings_of(read("qwen0_5b_lora")[0])[1]
    assert problem.severity == "warning"
    assert str(packages) in problem.what and LLAMAFACTORY in problem.what and LLAMAFACTORY in problem.fix
    assert not (packages / "home").exists(), "a failure is not kept"


@needs_llamafactory
def test_another_version_is_asked_once_and_its_answer_kept(packages: Path) -> None:
    for name, place in INSTALLED.items():
        (packages / name).symlink_to(place)  # the real packages, without the folders that say their version
    assert table() == TABLE
    (kept,) = (packages / "home").rglob("arguments-*.json")
    kept.write_text(kept.read_text().replace("lora_rank", "lora_rang"))
    in_a_new_process = "from iis_finetune.arguments import table; print('lora_rang' in table())"
    done = subprocess.run(
        [sys.executable, "-c", in_a_new_process],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


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
PARSE = """
import dataclasses, json, sys
from llamafactory.hparams import parser as p
from transformers import HfArgumentParser

messy, infer = json.loads(sys.argv[1])
(*_, data, training, finetuning, _) = HfArgumentParser(p._TRAIN_ARGS).parse_dict(messy)
HfArgumentParser(p._INFER_ARGS).parse_dict(infer)
names = sorted({each.name for kind in p._INFER_ARGS for each in dataclasses.fields(kind) if each.init})
parsed = [data.dataset, finetuning.lora_rank, training.learning_rate, training.save_strategy, training.report_to]
print("\\n" + json.dumps({"infer": names, "parsed": parsed}))
"""


@needs_llamafactory
def test_what_the_check_makes_of_a_messy_recipe_is_what_the_real_parser_needs() -> None:
    place = Place("r.yaml", 1)
    messy, _ = check([Entry(key, value, place, quoted=True) for key, value in MESSY.items()], TABLE)
    sent = json.dumps([messy, for_verb({**TRAINING, "stage": "dpo"}, "chat", TABLE)])
    around = {**os.environ, "PYTHONPATH": str(PLACEHOLDER)}
    done = subprocess.run(
        [sys.executable, "-c", PARSE, sent], env=around, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    real = json.loads(done.stdout.splitlines()[-1])
    assert real["parsed"] == [["a", "b"], 16, 1e-4, "no", []]
    assert real["infer"] == sorted(keys_for("export"))


# --- which version ------------------------------------------------------------------------------------------------


def test_the_current_version_is_the_one_that_set_up_installs() -> None:
    for file, stage in (("constraints.txt", "sft"), ("constraints-ppo.txt", "ppo"), ("pyproject.toml", "sft")):
        pins = re.findall(r"llamafactory==([\d.]+)", (ROOT / file).read_text("utf-8"))
        assert set(pins) == {version_of(stage)}, file


def test_every_version_frozen_here_is_one_that_a_stage_runs_in() -> None:
    folders = {folder.name for folder in (TABLES / "llamafactory").iterdir()}
    assert folders == {version_of("sft"), version_of("ppo")}


def test_the_version_is_written_in_one_module() -> None:
    words = re.compile(rf"{re.escape(LLAMAFACTORY)}|LLaMA-Factory {re.escape(version_of('ppo'))}")
    files = [file for file in (ROOT / "iis_finetune").rglob("*.py") if "hook" not in file.parts]  # one hook is ppo's
    assert {file.name for file in files if words.search(file.read_text("utf-8"))} == {"llamafactory.py"}


def test_the_methods_that_train_whole_weights_are_of_the_table() -> None:
    assert {*WHOLE, "lora", "oft"} == set(TABLE["finetuning_type"].choices or ())


# --- what an argument will be -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TABLE))
def test_leaving_an_argument_out_and_stating_its_default_give_the_same_value(name: str) -> None:
    default = TABLE[name].default
    stated, problems = check([Entry(name, default, Place("r.yaml", 1, name), source="override")], TABLE)
    assert problems == [] or default == []  # an empty list is what some take, and nobody writes
    assert Settings(TABLE, stated)[name] == Settings(TABLE)[name] == default


def test_what_is_stated_wins_over_what_is_decided_and_that_over_the_default() -> None:
    known = Settings(TABLE, {"lora_rank": 16, "lora_alpha": None}).decide(lora_rank=4, cutoff_len=512)
    assert [known[name] for name in ("lora_rank", "cutoff_len", "per_device_train_batch_size")] == [16, 512, 8]
    assert known.states("lora_alpha", "lora_rank") and not known.states("lora_alpha")
    assert known.decide(template="qwen").decided == {"lora_rank": 4, "cutoff_len": 512, "template": "qwen"}


def test_an_argument_of_another_version_is_not_set_and_a_wrong_name_is_an_error() -> None:
    assert "use_dft_loss" not in frozen_table("ppo")
    assert Settings(frozen_table("ppo"))["use_dft_loss"] is None
    with pytest.raises(KeyError):
        Settings(TABLE)["lora_rnak"]


@pytest.mark.parametrize("value", ["a, b", ["a", "b"], "a,b,", ["a", " b "]])
def test_names_are_read_from_a_list_and_from_a_text_with_commas(value: Any) -> None:
    assert Settings(TABLE, {"dataset": value}).names("dataset") == ["a", "b"]
    assert Settings(TABLE).names("dataset") == []


def test_a_training_is_read_with_the_table_of_its_stage() -> None:
    assert trained_with({"stage": "ppo"}).table is frozen_table("ppo")
    assert trained_with({"lora_rank": 4})["lora_rank"] == 4


ANSWERED = {
    "a rename whose new name is there": ({"evaluation_strategy": "no", "eval_strategy": "no"}, "remove the line"),
    "a typing error beside the right name": ({"lora_rnak": 8, "lora_rank": 8}, "remove the line"),
    "false was the default": ({"train_mm_proj_only": False}, "remove the line"),
    "true is three lines": ({"train_mm_proj_only": True}, "'freeze_vision_tower: true' and 'freeze_language_model"),
    "without those already there": (
        {"train_mm_proj_only": True, "freeze_vision_tower": True},
        "write 'freeze_language_model: true' and 'freeze_multi_modal_projector: false' in its place",
    ),
    "pixels stay pixels": ({"image_resolution": 262144}, "image_max_pixels: 262144"),
    "a side is squared": ({"image_resolution": 512}, "image_max_pixels: 262144"),
    "no far guess": ({"lvm_gamma": 1}, "remove the line; "),
    "none of a data set's keys": ({"user_tag": "x"}, "remove the line; "),
    "an optimizer that LoRA excludes": ({"optim": "galore"}, "'finetuning_type: full'"),
}


@pytest.mark.parametrize(("lines", "fix"), ANSWERED.values(), ids=ANSWERED.keys())
def test_the_answer_to_a_key_fits_its_value_and_the_lines_beside_it(lines: dict[str, Any], fix: str) -> None:
    entries = [Entry(key, value, Place("r.yaml", number, key)) for number, (key, value) in enumerate(lines.items(), 1)]
    (problem,) = check(entries, TABLE)[1]
    assert fix in problem.fix


def test_a_value_is_not_refused_where_nothing_reads_it() -> None:
    lines = {"finetuning_type": "full", "lora_rank": 0, "do_train": False, "learning_rate": 0.0}
    entries = [Entry(key, value, Place("r.yaml", number, key)) for number, (key, value) in enumerate(lines.items(), 1)]
    assert [(each.severity, each.where.key) for each in check(entries, TABLE)[1]] == [("warning", "lora_rank")]
