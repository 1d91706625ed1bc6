"""Plans compared with files: a reviewer sees in the diff what a change does to real arguments."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from iis_finetune import arguments, machine, models, plan, process, rules, runs
from iis_finetune import recipe as recipes
from iis_finetune.errors import Problem, errors_of
from iis_finetune.plan import Inputs, Plan
from iis_finetune.plan.fit import needed
from iis_finetune.runs import Run, Workspace

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
MACHINES = ("mi50x2", "rx7900xtx", "h200", "rtx4090", "v100", "mi100", "cpu")
CASES = [("qwen7b_lora", name) for name in MACHINES] + [("quickstart", "cpu"), ("llama8b_lora", "mi50x2")]


def make(recipe_name: str, machine_name: str, *overrides: str, text: str | None = None) -> Plan:
    nowhere = Workspace(ROOT, Path("/nowhere/models"), Path("/nowhere/runs"))
    if text is None:
        recipe, problems = recipes.read(recipe_name, overrides, ROOT / "recipes")
    else:
        path = Path(recipe_name)
        path.write_text(text)
        recipe, problems = recipes.read(str(path), overrides)
    assert problems == []
    base, _ = models.base_of(recipe, nowhere)
    facts = models.look(base.model if base else str(recipe.value("model_name_or_path", "")), nowhere.models)
    return plan.make(Inputs(recipe, machine.profile(machine_name), facts, nowhere, base))


@pytest.mark.parametrize(("recipe", "machine_name"), CASES, ids=str)
def test_plans_are_as_they_were_reviewed(recipe: str, machine_name: str, request: pytest.FixtureRequest) -> None:
    made = make(recipe, machine_name)
    text = json.dumps(made.as_json(), indent=2, ensure_ascii=False).replace(str(ROOT), "{root}") + "\n"
    file = GOLDEN / f"{recipe}@{machine_name}.json"
    if request.config.getoption("--rewrite-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "pytest --rewrite-golden tests/test_plan.py, then read the diff"


def test_the_house_recipe_on_the_machine_it_began_on() -> None:
    made = make("qwen7b_lora", "mi50x2")
    wanted = {
        "lora_rank": 64,
        "lora_alpha": 128,
        "lora_dropout": 0.05,
        "lora_target": "all",
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.5,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 32,
        "fp16": False,
        "bf16": False,
        "flash_attn": "disabled",
        "disable_gradient_checkpointing": False,
        "model_name_or_path": "{models}/Qwen--Qwen2.5-7B-Instruct@fp32",
    }
    assert {key: made.arguments.get(key) for key in wanted} == wanted
    assert made.processes == 2 and made.precision == "fp32"
    assert made.memory.per_device_gib is not None and made.memory.per_device_gib <= 31.98
    assert made.environment["OPTIM_TORCH"] == "0"
    dead = {"HSA_OVERRIDE_GFX_VERSION", "NCCL_ASYNC_ERROR_HANDLING", "PL_TORCH_DISTRIBUTED_BACKEND", "MIOPEN_FIND_MODE"}
    assert not dead & set(made.environment)
    assert "DISABLE_VERSION_CHECK" not in made.environment
    assert errors_of(made.problems) == []


EXPECTED = {
    "h200": ("bf16", "sdpa"),
    "rx7900xtx": ("bf16", "sdpa"),
    "rtx4090": ("bf16", "sdpa"),
    "v100": ("fp16", "sdpa"),
    "mi100": ("bf16", "sdpa"),
    "cpu": ("fp32", "sdpa"),
    "mi50x2": ("fp32", "disabled"),
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_the_machine_decides_precision_and_attention(name: str, expected: tuple[str, str]) -> None:
    made = make("qwen7b_lora", name)
    assert (made.precision, made.arguments["flash_attn"]) == expected
    assert (made.arguments["bf16"], made.arguments["fp16"]) == (expected[0] == "bf16", expected[0] == "fp16")


def test_every_decision_has_a_reason_and_one_name() -> None:
    for name in MACHINES:
        decisions = make("qwen7b_lora", name).decisions
        assert all(decision.reason.strip() for decision in decisions)
        assert len({decision.name for decision in decisions}) == len(decisions)


def test_the_same_inputs_give_the_same_plan() -> None:
    assert make("qwen7b_lora", "h200") == make("qwen7b_lora", "h200")


SMALL = "model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct\ntemplate: qwen\nstage: sft\ndo_train: true\ndataset: d\n"
STATED = {
    "bf16: true": ("bf16", "sdpa"),
    "fp16: false\nbf16: false": ("fp32", "sdpa"),
    "flash_attn: disabled": ("bf16", "disabled"),
    "kit: {precision: fp32}": ("fp32", "sdpa"),
    "kit: {precision: as-saved}": ("as-saved", "sdpa"),
    "kit: {attention: disabled}": ("bf16", "disabled"),
}


@pytest.mark.parametrize(("lines", "expected"), STATED.items())
def test_what_the_recipe_states_wins_over_auto(lines: str, expected: tuple[str, str], tmp_path: Path) -> None:
    made = make(str(tmp_path / "r.yaml"), "h200", text=SMALL + lines + "\n")
    assert (made.precision, made.arguments["flash_attn"]) == expected
    name = "attention" if "att" in lines else "precision"
    assert next(each for each in made.decisions if each.name == name).source == "recipe"


def only(problems: tuple[Problem, ...]) -> Problem:
    found = errors_of(problems)
    assert len(found) == 1, found
    return found[0]


CONFLICTS = {
    "kit: {precision: fp32}\nbf16: true": ("'bf16' and 'kit.precision'", "r.yaml:7"),
    "kit: {attention: sdpa}\nflash_attn: fa2": ("'flash_attn' and 'kit.attention'", "r.yaml:7"),
    "kit: {launcher: zero2}\ndeepspeed: x.json": ("'deepspeed' and 'kit.launcher'", "r.yaml:7"),
    "kit: {global_batch_size: 8}\ngradient_accumulation_steps: 4": ("makes a batch of 4", "r.yaml:7"),
}


@pytest.mark.parametrize(("lines", "expected"), CONFLICTS.items())
def test_a_key_against_a_kit_key_is_an_error_that_names_both_lines(
    lines: str, expected: tuple[str, str], tmp_path: Path
) -> None:
    problem = only(make(str(tmp_path / "r.yaml"), "h200", text=SMALL + lines + "\n").problems)
    assert expected[0] in problem.what and str(problem.where).startswith(str(tmp_path / expected[1]))
    assert "r.yaml:6" in problem.what + problem.fix


def test_a_global_batch_that_does_not_divide_names_the_two_nearest_sizes(tmp_path: Path) -> None:
    text = SMALL + "kit: {global_batch_size: 65}\nper_device_train_batch_size: 4\n"
    problem = only(make(str(tmp_path / "r.yaml"), "h200x2", text=text).problems)
    assert "64 or 72" in problem.fix


def test_a_foreign_output_folder_is_replaced_and_said(tmp_path: Path) -> None:
    text = SMALL + "output_dir: saves/x\noverwrite_output_dir: true\n"
    made = make(str(tmp_path / "r.yaml"), "cpu", text=text)
    assert made.arguments["output_dir"] == "{run}/output"
    reasons = {each.name: each.reason for each in made.decisions}
    assert "saves/x" in reasons["output_dir"] and "True" in reasons["overwrite_output_dir"]


def test_overrides_are_told_from_the_recipe(tmp_path: Path) -> None:
    made = make(str(tmp_path / "r.yaml"), "h200", "kit.precision=fp32", text=SMALL)
    decision = next(each for each in made.decisions if each.name == "precision")
    assert (decision.value, decision.source) == ("fp32", "override")


@pytest.mark.parametrize("where", ["recipe", "override"])
def test_what_auto_decided_carries_the_source_of_the_answer(where: str, tmp_path: Path) -> None:
    asked = {"kit.precision": "auto", "kit.attention": "auto", "flash_attn": "sdpa"}
    for stated, source in ((("kit.precision", "kit.attention"), "machine table"), (("flash_attn",), where)):
        lines = [f"{key}={asked[key]}" for key in stated]
        kit = "".join(f"  {key[4:]}: {asked[key]}\n" for key in stated if key.startswith("kit."))
        flat = "".join(f"{key}: {asked[key]}\n" for key in stated if not key.startswith("kit."))
        text = SMALL + (f"kit:\n{kit}" if kit else "") + flat if where == "recipe" else SMALL
        made = make(str(tmp_path / "r.yaml"), "mi50", *(lines if where == "override" else ()), text=text)
        sources = {each.name: each.source for each in made.decisions}
        assert (sources["precision"], sources["attention"]) == ("machine table", source)


def test_several_processes_on_cpu_are_asked_for_by_devices(tmp_path: Path) -> None:
    made = make(str(tmp_path / "r.yaml"), "cpu", "kit.devices=2", text=SMALL)
    assert made.processes == 2
    assert made.environment["NPROC_PER_NODE"] == "2" and made.environment["FORCE_TORCHRUN"] == "1"
    assert made.arguments["ddp_timeout"] > 86_400
    assert made.environment["ACCELERATE_TORCH_DEVICE"] == "cpu"


@pytest.mark.parametrize(
    ("overrides", "machine_name", "fix"),
    [
        (("kit.precision=fp32",), "rtx4090", "kit.precision: bf16 ("),
        (("finetuning_type=full",), "rx7900xtx", "finetuning_type: lora ("),
        (("kit.launcher=ddp",), "mi50x2", "kit.launcher: zero3 ("),
        (("per_device_train_batch_size=64",), "rtx4090", "per_device_train_batch_size: 1 ("),
        (
            ("per_device_train_batch_size=64",),
            "rx6800xt",
            "a smaller model or more devices; no single change is enough",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_the_changes_that_were_computed_to_fit(
    overrides: tuple[str, ...], machine_name: str, fix: str
) -> None:
    made = make("qwen7b_lora", machine_name, *overrides, "kit.global_batch_size=64")
    found = [problem for problem in made.problems if "GiB a device are needed" in problem.what]
    assert len(found) == 1 and fix in found[0].fix, found
    for told in found[0].fix.split(" or ") if found[0].fix.endswith(" GiB)") else ():
        words, _, gib = told.partition(" (")
        remedy = words.replace(": ", "=")
        kept = [each for each in overrides if each.partition("=")[0] != remedy.partition("=")[0]]
        again = make("qwen7b_lora", machine_name, *kept, "kit.global_batch_size=64", remedy)
        assert again.memory.per_device_gib == pytest.approx(float(gib.split()[0]), abs=0.06), remedy
        assert not [problem for problem in again.problems if "GiB a device are needed" in problem.what], remedy


def test_one_mi50_is_offered_what_may_work_and_nothing_that_the_next_check_takes_back() -> None:
    fix = only(make("qwen7b_lora", "mi50").problems).fix
    order = ["a smaller model", "kit.precision: fp16 and kit.attention: sdpa", "not proven", "quantization_bit: 4"]
    assert sorted(order, key=fix.index) == order and "bf16" not in fix
    assert "no ready-made build" in fix.partition("quantization")[2]
    mended = make("qwen7b_lora", "mi50", "kit.precision=fp16", "kit.attention=sdpa")
    [doubt] = mended.problems
    assert mended.memory.ready and doubt.severity == "warning"
    assert doubt.fix.startswith("keep attention sdpa, and let the watcher look for NaN")


DOUBTS = ("keep attention sdpa", "build its main branch")  # said of what may work, not against it
TOO_LARGE = {
    "in fp32": ("kit.precision=fp32",),
    "in fp32, by both switches": ("bf16=false", "fp16=false"),
    "with plain attention": ("kit.precision=fp32", "flash_attn=disabled"),
    "with many rows": ("per_device_train_batch_size=64",),
    "whole": ("finetuning_type=full",),
}


@pytest.mark.parametrize("name", ["mi50", "mi50x2", "rx6800xt", "rtx4090", "v100", "rtx5090", "t4", "cpu", "rx7600"])
@pytest.mark.parametrize("overrides", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_each_remedy_is_followed_and_the_next_check_has_nothing_against_it(
    name: str, overrides: tuple[str, ...]
) -> None:
    made = make("qwen7b_lora", name, *overrides, "kit.global_batch_size=64")
    for problem in made.problems:
        if "GiB a device are needed" not in problem.what or "no single change" in problem.fix:
            continue
        for told in re.split(r" or (?=kit|[a-z_\d]+: )", problem.fix.removeprefix("try it, or ")):
            lines = re.findall(r"(?:^| and )([\w.]+): (\w+)(?= and | \()", told)
            kept = [each for each in overrides if each.partition("=")[0] not in dict(lines)]
            wanted = [f"{key}={value}" for key, value in lines]
            again = make("qwen7b_lora", name, *kept, "kit.global_batch_size=64", *wanted) if lines else made
            new = [each for each in again.problems if each.what not in {other.what for other in made.problems}]
            assert all(each.fix.startswith(DOUBTS) for each in new), (told, new)
            assert again.memory.ready or not lines, told


def test_between_what_fits_and_what_does_not_there_is_a_warning(tmp_path: Path) -> None:
    lines = UNSTATED + "per_device_train_batch_size: 1\n"
    told = {}
    for length in (1024, 3072, 6144):
        made = make(str(tmp_path / "r.yaml"), "rtx4090", text=f"{lines}cutoff_len: {length}\n")
        told[length] = [each.severity for each in made.problems]
        need, limit = made.memory.per_device_gib, made.memory.limit_gib
        assert need and limit and (need > limit) == ("error" in told[length])
    assert told == {1024: [], 3072: ["warning"], 6144: ["error"]}


EIGHT_BILLION = """model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
template: llama3
stage: sft
do_train: true
dataset: d
finetuning_type: full
per_device_train_batch_size: 1
cutoff_len: 2048
bf16: true
"""


def test_a_stated_deepspeed_file_shares_the_model_as_it_says(tmp_path: Path) -> None:
    stages = {}
    for name, zero in (
        ("z3", {"stage": 3, "reduce_bucket_size": "auto"}),
        ("z0", {"stage": 0}),
        ("z3o", {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"zero_optimization": zero}))
        text = EIGHT_BILLION + f"deepspeed: {tmp_path}/{name}.json\n"
        stages[name] = make(str(tmp_path / "r.yaml"), "h100x8", text=text)
    assert errors_of(stages["z3"].problems) == []
    assert "GiB a device are needed" in only(stages["z0"].problems).what
    gib = {name: made.memory.per_device_gib or 0 for name, made in stages.items()}
    assert gib["z3o"] < gib["z3"] < 60
    alone = make(str(tmp_path / "r.yaml"), "h100", text=EIGHT_BILLION + f"deepspeed: {tmp_path}/z3.json\n")
    assert "GiB a device are needed" in only(alone.problems).what
    unread = make(str(tmp_path / "r.yaml"), "h100x8", text=EIGHT_BILLION + "deepspeed: not_there.json\n")
    assert unread.memory.per_device_gib is None and "cannot be read" in unread.memory.not_counted[0]


WITH_OFFLOAD = {
    "automatic": ("", "zero3", []),
    "ZeRO-2": ("kit: {launcher: zero2_offload}\n", "zero2_offload", ["119.7"]),
    "ZeRO-3": ("kit: {launcher: zero3_offload}\n", "zero3_offload", ["134.6"]),
    "FSDP by true": ("fsdp: true\n", "fsdp", []),
    "FSDP": ("fsdp: full_shard offload\n", "fsdp", ["104.7"]),
    "a file": ("deepspeed: FILE\n", "deepspeed", ["134.6"]),
}


@pytest.mark.parametrize(("lines", "launcher", "needs"), WITH_OFFLOAD.values(), ids=WITH_OFFLOAD.keys())
def test_what_is_kept_in_the_computers_memory_has_to_fit_there(
    lines: str, launcher: str, needs: list[str], tmp_path: Path
) -> None:
    """8.03 billion parameters: 119.7 GiB of states and masters (without masters 89.7), 15.0 of weights."""
    elsewhere = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    (tmp_path / "z.json").write_text(json.dumps({"zero_optimization": elsewhere}))
    (tmp_path / "r.yaml").write_text(EIGHT_BILLION + lines.replace("FILE", str(tmp_path / "z.json")))
    recipe, _ = recipes.read(str(tmp_path / "r.yaml"))
    facts = models.look("meta-llama/Llama-3.1-8B-Instruct", Path("/nowhere/models"))
    told = {}
    for memory_gib in (None, 64.0, 512.0):
        host = dataclasses.replace(machine.profile("r9700x4"), memory_gib=memory_gib)
        made = plan.make(Inputs(recipe, host, facts, Workspace(ROOT, Path("/nowhere/models"), Path("/nowhere/runs"))))
        told[memory_gib] = [each.what for each in made.problems if "the computer's own memory" in each.what]
        assert "zero3_offload" not in "".join(each.fix for each in made.problems) or memory_gib != 64.0
        assert all(f"at least {made.memory.host_gib:.1f} GiB" in each for each in told[memory_gib])
        if memory_gib == 64.0:
            assert made.launcher == launcher
    assert told[512.0] == [] and len(told[None]) == 1  # the memory around a named card is not known
    assert [re.findall(r"at least ([\d.]+) GiB", each)[0] for each in told[64.0]] == needs


@pytest.mark.parametrize(("words", "shared"), [("full_shard auto_wrap", 3), ("shard_grad_op", 2), ("no_shard", 0)])
def test_fsdp_shares_what_its_words_say(words: str, shared: int, tmp_path: Path) -> None:
    items = make(str(tmp_path / "r.yaml"), "h100x8", text=f"{EIGHT_BILLION}fsdp: {words}\n").memory.items
    assert (items["trained weights"] < 8) == (shared == 3) and (items["optimizer states"] < 10) == (shared > 0)


SFT = Path("/runs/0001-sft/output")
STACKED = {"adapter_name_or_path": str(SFT), "create_new_adapter": True}
# stage and overrides -> what the plan makes of an SFT adapter that kit.base names
AFTER_SFT = [
    ("dpo", (), STACKED),
    ("kto", (), STACKED),
    ("dpo", ("pref_loss=orpo",), {"adapter_name_or_path": str(SFT)}),
    ("reward", (), {"adapter_name_or_path": str(SFT)}),
    ("qwen0_5b_lora", (), {"adapter_name_or_path": str(SFT)}),
    ("dpo", ("create_new_adapter=false",), {"adapter_name_or_path": str(SFT), "create_new_adapter": False}),
    (
        "dpo",
        ("quantization_bit=4",),
        {
            "adapter_name_or_path": str(SFT),
            "ref_model": "{models}/Qwen--Qwen2.5-0.5B-Instruct@fp32",
            "ref_model_adapters": str(SFT),
            "ref_model_quantization_bit": 4,
        },
    ),
]


@pytest.mark.parametrize(("name", "overrides", "expected"), AFTER_SFT)
def test_what_comes_after_sft_is_compared_with_the_sft_model(
    name: str, overrides: tuple[str, ...], expected: dict[str, object]
) -> None:
    nowhere = Workspace(ROOT, Path("/nowhere/models"), Path("/nowhere/runs"))
    recipe, _ = recipes.read(name, overrides, ROOT / "recipes")
    sft, _ = recipes.read("qwen0_5b_lora", (), ROOT / "recipes")
    model = str(sft.value("model_name_or_path"))
    base = models.Base(sft, model, (SFT,), ready=True)
    facts = models.look(model, nowhere.models)
    made = plan.make(Inputs(recipe, machine.profile("mi50"), facts, nowhere, base))
    keys = {
        "adapter_name_or_path",
        "create_new_adapter",
        "ref_model",
        "ref_model_adapters",
        "ref_model_quantization_bit",
    }
    assert {key: value for key, value in made.arguments.items() if key in keys} == expected
    told = {each.name: each for each in made.decisions}
    assert told["adapter_name_or_path"].value == str(SFT)
    assert ("on top" in told["adapter_name_or_path"].reason) == (expected == STACKED)


def test_a_pair_takes_the_memory_of_two_rows_and_a_whole_training_that_of_its_reference() -> None:
    pairs, single = make("dpo", "rtx4090").memory.items, make("qwen0_5b_lora", "rtx4090", "lora_dropout=0").memory.items
    alone = make("dpo", "rtx4090", "pref_loss=orpo").memory.items
    assert alone["logits"] == 2 * single["logits"] < pairs["logits"]  # the reference's logits come beside its own
    whole = make("kto", "rtx4090", "finetuning_type=full", "lora_rank=null")
    assert whole.memory.items["reference model"] > 0.9 and "reference model" not in pairs


def test_pissa_starts_from_what_can_be_made_again() -> None:
    assert make("qwen0_5b_lora", "cpu", "pissa_init=true").arguments["pissa_iter"] == -1
    assert "pissa_iter" not in make("qwen0_5b_lora", "cpu", "pissa_init=true", "pissa_convert=true").arguments


def test_a_pair_cannot_be_halved() -> None:
    made = make("dpo", "rtx4090", "model_name_or_path=Qwen/Qwen2.5-7B-Instruct", "cutoff_len=2048")
    told = [problem.fix for problem in made.problems if "GiB a device are needed" in problem.what]
    assert told and "per_device_train_batch_size" not in told[0]


def test_a_run_that_goes_on_stands_on_the_base_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("model_name_or_path: owner/model\n")
    (tmp_path / "dpo.yaml").write_text(f"kit: {{base: {tmp_path / 'sft.yaml'}}}\nstage: dpo\n")
    workspace = Workspace(tmp_path, tmp_path / "models", tmp_path / "runs")
    done = {"global_step": 4, "max_steps": 4}
    for number in (1, 3):
        run = Run(workspace.runs / f"{number:04d}-sft")
        run.output.mkdir(parents=True)
        (run.output / "adapter_model.safetensors").write_bytes(b"")
        (run.output / "trainer_state.json").write_text(json.dumps(done))
        runs.record(run, runs.Attempt(1, 0.0, process.Identity(1, 1, "another boot"), returncode=0))
    recipe, _ = recipes.read(str(tmp_path / "dpo.yaml"))
    for before, adapter in ((None, "0003-sft"), (2, "0001-sft")):
        base, problems = models.base_of(recipe, replace(workspace, before=before))
        assert not problems and base and [path.parent.name for path in base.adapters] == [adapter]


UNSTATED = """model_name_or_path: Qwen/Qwen2.5-7B-Instruct
template: qwen
stage: sft
do_train: true
dataset: d
finetuning_type: lora
"""


def test_an_unstated_micro_batch_is_the_eight_rows_that_transformers_takes(tmp_path: Path) -> None:
    made = make(str(tmp_path / "r.yaml"), "rtx4090", text=UNSTATED)
    problem = only(made.problems)
    assert made.memory.per_device_gib == pytest.approx(49.95, abs=0.01)
    assert "50.0 GiB a device are needed, 23.6 are there" in problem.what
    assert "per_device_train_batch_size: 1 (21.0 GiB)" in problem.fix
    mended = make(str(tmp_path / "r.yaml"), "rtx4090", text=UNSTATED + "per_device_train_batch_size: 1\n")
    assert mended.problems == () and mended.memory.per_device_gib == pytest.approx(20.95, abs=0.01)


class Recording(arguments.Settings, frozen=True):
    """Settings that remember which arguments were asked for."""

    asked: set[str] = msgspec.field(default_factory=set)

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)


# Lines that lead the plan and the estimate down their different ways, and the machine they are planned for.
WAYS = {
    "lora": ("", "rtx4090"),
    "oft": ("finetuning_type: oft\n", "cpu"),
    "freeze": ("finetuning_type: freeze\n", "h200"),
    "full, shared": ("finetuning_type: full\n", "rx7900xtxx2"),
    "quantised": ("finetuning_type: lora\nquantization_bit: 4\n", "a100"),
    "pairs": ("stage: dpo\n", "mi50x2"),
    "pissa": ("pissa_init: true\n", "v100"),
    "a global batch": ("kit: {global_batch_size: 8}\n", "mi100"),
}


def recorded(recipe: recipes.Recipe, machine_name: str, workspace: Workspace) -> tuple[Plan, set[str], int | None]:
    """The plan, the arguments that were asked for on the way to it and to the disk's need, and that need."""
    asked: set[str] = set()
    made, _ = arguments.settings_of(recipe)
    facts = models.look(str(recipe.value("model_name_or_path")), workspace.models)
    host = machine.profile(machine_name)
    draft = Plan(Inputs(recipe, host, facts, workspace), Recording(made.table, made.stated, asked=asked))
    for step in plan.STEPS:
        draft = step(draft)
    needed(draft, draft.launch)
    planned = plan.make(draft.inputs)
    assert draft.settings.decided == planned.settings.decided
    case = rules.Case(recipe, draft.settings, host, facts, draft.processes, draft.launcher, rows=1000)
    return planned, asked, rules.disk_bytes(case)


@pytest.mark.parametrize(("lines", "machine_name"), WAYS.values(), ids=WAYS.keys())
def test_leaving_an_argument_out_is_stating_its_default(lines: str, machine_name: str, tmp_path: Path) -> None:
    workspace = Workspace(ROOT, Path("/nowhere/models"), Path("/nowhere/runs"))
    stated = "".join(line for line in SMALL.splitlines(True) if line.partition(":")[0] not in lines)
    file = tmp_path / "r.yaml"
    file.write_text(stated + lines)
    left_out, asked, disk = recorded(recipes.read(str(file))[0], machine_name, workspace)
    default = {name: left_out.settings.table[name].default for name in asked if not left_out.settings.states(name)}
    chosen = {name for name, value in left_out.settings.decided.items() if value != default.get(name)}
    compared = {name: value for name, value in default.items() if value is not None and name not in chosen}
    assert {"finetuning_type", "per_device_train_batch_size", "cutoff_len", "optim"} <= asked and len(compared) > 5
    for name, value in compared.items():
        file.write_text(f"{stated}{lines}{name}: {json.dumps(value)}\n")
        said, _, disk_said = recorded(recipes.read(str(file))[0], machine_name, workspace)
        assert (said.memory, disk_said) == (left_out.memory, disk), name
        assert [(each.what, each.fix) for each in said.problems] == [
            (each.what, each.fix) for each in left_out.problems
        ], name
        beside = {key: given for key, given in said.arguments.items() if key != name}
        assert beside == {key: given for key, given in left_out.arguments.items() if key != name}, name
