"""Arguments that do not go together: what is said, where, and that mending the recipe as told silences it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import TINY
from fixing import ways
from msgspec.structs import replace
from rule_cases import ELSEWHERE, FAULTS, TRAIN, Fault

from iis_finetune import launch, machine, models, preflight, rules
from iis_finetune.arguments import Settings, check, frozen_table
from iis_finetune.errors import Place, Problem
from iis_finetune.preflight import here
from iis_finetune.recipe import KIT_KEYS, Entry, Kit, Recipe
from iis_finetune.rules import RULES, conditions
from iis_finetune.rules.rule import OWN
from iis_finetune.runs import Workspace

TABLE = frozen_table()
TINY_SPEC: dict[str, Any] = {"config": TINY, "seed": 1}


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def write_header(file: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of zeros with these tensors."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


def make_adapter(folder: Path, width: int) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "models/tiny"}))
    prefix = "base_model.model.model.layers"
    halves = [("lora_A", [8, width]), ("lora_B", [width, 8])]
    shapes = {f"{prefix}.{n}.self_attn.q_proj.{half}.weight": shape for n in (0, 1) for half, shape in halves}
    write_header(folder / "adapter_model.safetensors", shapes)


def make_world(folder: Path, tiny: Path) -> Path:
    """The models and data sets that the cases name."""
    (folder / "models").mkdir(parents=True)
    for name in ("tiny", "llama", "gpt2", "gptq", "bf16", "cut", "weightless", "wordless", "padded", "delta"):
        shutil.copytree(tiny, folder / "models" / name)
    change_config(folder / "models/llama", model_type="llama", architectures=["LlamaForCausalLM"])
    change_config(folder / "models/gpt2", model_type="stablelm", architectures=["StableLmForCausalLM"])
    change_config(folder / "models/gptq", quantization_config={"quant_method": "gptq", "bits": 4})
    change_config(folder / "models/bf16", dtype="bfloat16")
    change_config(folder / "models/padded", vocab_size=512)
    change_config(folder / "models/delta", model_type="qwen3_5")
    weights = folder / "models/cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "models/weightless/model.safetensors").unlink()
    for file in (folder / "models/wordless").glob("*token*"):
        file.unlink()
    make_adapter(folder / "models/adapter", 64)
    make_adapter(folder / "models/wide-adapter", 96)
    make_data(folder / "data")
    (folder / "tokenized").mkdir()
    (folder / "tokenized/dataset_dict.json").write_text('{"splits": ["train"]}')
    return folder


def make_data(folder: Path) -> None:
    folder.mkdir()
    answers = [{"instruction": f"say {n}", "input": "", "output": f"it is {n * 7}"} for n in range(32)]
    pairs = [{"instruction": f"say {n}", "input": "", "chosen": f"it is {n}", "rejected": "no"} for n in range(32)]
    texts = [{"text": f"a few plain words, and the number {n} " * 8} for n in range(32)]
    columns = {"prompt": "instruction", "query": "input"}
    ranked = {**columns, "chosen": "chosen", "rejected": "rejected"}
    registry: dict[str, Any] = {
        "little": {"columns": {**columns, "response": "output"}},
        "more": {"columns": {**columns, "response": "output"}},
        "pairs": {"ranking": True, "columns": ranked},
        "text": {"columns": {"prompt": "text"}},
    }
    for name, rows in {"little": answers, "more": answers, "pairs": pairs, "text": texts}.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
        registry[name]["file_name"] = f"{name}.json"
    (folder / "dataset_info.json").write_text(json.dumps(registry))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), tiny_model)


@pytest.fixture(autouse=True)
def other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named machines are taken to have the versions that have a fault, so that each rule of a version is met."""
    for row in machine.load()["fault"]:
        if "package" in row:
            monkeypatch.setitem(row, "pinned", row["versions"][0])


COUNTED = (49, 73, 92)  # faults that only the number of rows shows


def examine(lines: dict[str, Any], world: Path, on: str, rows: bool = False) -> list[Problem]:
    file = world / "recipe.yaml"
    file.write_text(launch.yaml_text(lines))
    question = preflight.Question(str(file), (), Workspace(world, world / "models", world / "runs"), {}, on, rows)
    return list(preflight.examine(question).problems)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
def test_a_fault_is_named_at_its_line_and_the_mended_recipe_is_not(
    fault: Fault, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    rows = fault.number in COUNTED
    found = examine(fault.recipe, world, fault.on, rows)
    said = [each for each in found if fault.says in each.what or fault.says in each.fix]
    assert said, [each.what for each in found]
    assert (said[0].severity, said[0].where.key) == (fault.severity, fault.key)
    assert said[0].where.line or fault.key not in fault.recipe
    again = examine(fault.mended, world, fault.on, rows)
    assert not [each.what for each in again if each.what == said[0].what]


@pytest.mark.slow
def test_every_fix_that_a_machine_can_carry_out_mends_without_a_new_error(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    tried, unmended = 0, []
    for fault in FAULTS:
        rows = fault.number in COUNTED
        found = examine(fault.recipe, world, fault.on, rows)
        said = next(each for each in found if fault.says in each.what or fault.says in each.fix)
        before = {each.what for each in found if each.severity == "error"}
        for mended in ways(said, fault.recipe):
            tried += 1
            left = examine(mended, world, fault.on, rows)
            still = [each.what for each in left if each.what == said.what]
            new = [each.what for each in left if each.severity == "error" and each.what not in before]
            unmended += [(fault.name, said.fix, mended, still + new)] if still or new else []
    print(f"{tried} fixes tried by machine, {tried - len(unmended)} mend")
    assert unmended == []
    assert tried >= 100, tried


def test_the_recipes_that_the_faults_are_put_into_have_none(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    from rule_cases import CHAT, EXPORT, PREDICT

    for base in (TRAIN, PREDICT, EXPORT, CHAT):
        assert [each.what for each in examine(base, world, "cpu") if each.severity == "error"] == []


ALONE = {
    "a value that was refused": ({"dataset": "${DATASET}"}, ["dataset"]),
    "a run that only tokenises": ({"do_train": None, "tokenized_path": "new"}, []),
    "a launcher beside DeepSpeed's own file": (
        {"use_unsloth": True, "deepspeed": {"zero_optimization": {"stage": 3}}},
        ["use_unsloth"],
    ),
}


@pytest.mark.parametrize(("lines", "keys"), ALONE.values(), ids=ALONE.keys())
def test_one_cause_is_one_error(
    lines: dict[str, Any], keys: list[str], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    found = [each for each in examine({**TRAIN, **lines}, world, "cpu") if each.severity == "error"]
    assert [each.where.key for each in found] == keys
    assert all("no deepspeed line" in each.fix for each in found if "kit.launcher" in each.fix)


def test_every_number_of_the_list_has_a_case_or_a_reason() -> None:
    numbers = {fault.number for fault in FAULTS} - {OWN}
    of_rules = {rule.number for rule in RULES} - {OWN}
    assert of_rules <= numbers, "every rule's number has a case"
    assert not numbers & set(ELSEWHERE)
    assert all(ELSEWHERE.values()) and len(numbers | set(ELSEWHERE)) == max(numbers | set(ELSEWHERE))


def test_every_rule_is_met_by_a_case(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    cases = [case_of(fault.recipe, fault.on, world) for fault in FAULTS]
    unmet = [rule.what for rule in RULES if not any(c.purpose in rule.purposes and rule.when(c) for c in cases)]
    assert unmet == []


def test_every_rule_names_real_arguments_and_its_source() -> None:
    for rule in RULES:
        assert all(key in TABLE or key.removeprefix("kit.") in KIT_KEYS for key in rule.keys.split()), rule.keys
        assert rule.source and rule.date and not rule.what.endswith(".")


def case_of(lines: dict[str, Any], on: str, world: Path, **more: Any) -> rules.Case:
    entries = {key: Entry(key, value, Place("r.yaml", n, key)) for n, (key, value) in enumerate(lines.items(), 1)}
    kit = msgspec.convert(entries.pop("kit").value if "kit" in entries else {}, Kit)
    host = machine.profile(on)
    stated, _ = check(entries.values(), TABLE)
    facts = models.look(str(lines.get("model_name_or_path", "")).removeprefix("models/"), world / "models")
    processes = len(host.devices) or (kit.devices if isinstance(kit.devices, int) else 1)
    launcher = "deepspeed" if "deepspeed" in lines else "fsdp" if "fsdp" in lines else "ddp"
    case = rules.Case(Recipe("r", Path("r.yaml"), entries, kit), Settings(TABLE, stated), host, facts, processes)
    case = replace(case, launcher=launcher if processes > 1 or launcher != "ddp" else "single", rows=32)
    return replace(case, precision="fp32" if kit.precision == "auto" else kit.precision, **more)


INSTALLED: dict[str, str | None] = {
    "transformers": "5.5.4", "datasets": "4.0.0", "accelerate": "1.11.0", "peft": "0.18.1", "trl": "0.24.0",
    "torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "torchaudio": "2.11.0+cpu",
}  # fmt: skip
PACKAGES = {
    "use_galore": ({"use_galore": True}, {}, "galore_torch", "use_galore"),
    "a version that is too old": ({"use_badam": True}, {"badam": "1.2.0"}, "badam, which is 1.2.0", "use_badam"),
    "an optimizer of bitsandbytes": ({"optim": "paged_adamw_8bit"}, {}, "bitsandbytes", "optim"),
    "an optimizer of torchao": ({"optim": "adamw_torch_8bit"}, {}, "torchao", "optim"),
    "a tracker": ({"report_to": ["tensorboard", "wandb"]}, {"tensorboard": "2.0"}, "wandb", "report_to"),
    "DeepSpeed": ({"deepspeed": {"zero_optimization": {"stage": 2}}}, {}, "deepspeed", "deepspeed"),
    "hqq": ({"quantization_bit": 4, "quantization_method": "hqq"}, {}, "hqq", "quantization_method"),
    "plot_loss": ({"plot_loss": True}, {}, "matplotlib", "plot_loss"),
    "a GPTQ checkpoint": ({"model_name_or_path": "models/gptq"}, {}, "gptqmodel", "model_name_or_path"),
    "transformers too new": ({}, {"transformers": "5.7.1"}, "starts with 4.55.0 to 5.6.0", None),
    "peft too old": ({}, {"peft": "0.17.9"}, "starts with 0.18.0", None),
    "no torchaudio": ({}, {"torchaudio": None}, "torchaudio is not installed", None),
    "another torchaudio": ({}, {"torchaudio": "2.11.0"}, "torchaudio 2.11.0 was built", None),
    "another torchvision": ({}, {"torchvision": "0.27.0+cpu"}, "torchvision 0.27.0+cpu was built", None),
}


@pytest.mark.parametrize(("lines", "versions", "says", "key"), PACKAGES.values(), ids=PACKAGES.keys())
def test_a_package_that_is_missing_or_does_not_fit_is_named(
    lines: dict[str, Any], versions: dict[str, str | None], says: str, key: str | None, world: Path
) -> None:
    case = case_of({**TRAIN, **lines}, "cpu", world)
    (problem,) = rules.check_packages(case, {**INSTALLED, **versions})
    assert says in problem.what and problem.kind == "missing" and problem.where.key == key
    enough = {name: "9999" for name in rules.packages_of(case) if name not in INSTALLED}
    assert rules.check_packages(case, {**INSTALLED, **enough}) == []


@pytest.mark.parametrize(
    ("fix", "ours", "foreign"),
    [
        ("pip install deepspeed", "make setup EXTRA=deepspeed", "pip install deepspeed"),
        ("pip install 'bitsandbytes>=0.50.0'", "make setup EXTRA=bitsandbytes", "pip install 'bitsandbytes>=0.50.0'"),
        ("make setup, or pip install llamafactory==1", "make setup", "pip install llamafactory==1"),
        ("pip install wandb", "make setup EXTRA=wandb", "pip install wandb"),
        ("pip install 'swanlab'", "make setup EXTRA=swanlab", "pip install 'swanlab'"),
        ("pip install mlflow", "{}/bin/pip install -c constraints.txt mlflow", "pip install mlflow"),
        ("/x/bin/pip install wandb", "/x/bin/pip install wandb", "/x/bin/pip install wandb"),
    ],
)
def test_a_missing_package_is_installed_by_the_one_command_that_fits(
    fix: str, ours: str, foreign: str, tmp_path: Path
) -> None:
    assert here.fitting(Problem("", fix), tmp_path).fix == foreign
    (tmp_path / "iis-finetune-setup.json").write_text("{}")
    assert here.fitting(Problem("", fix), tmp_path).fix == ours.format(tmp_path)


def test_a_torchaudio_that_set_up_replaced_or_tried_is_not_complained_about(world: Path) -> None:
    case = case_of(TRAIN, "cpu", world)
    for found, version in ((True, "2.11.0"), (False, "2.11.0"), (True, None)):
        host = dataclasses.replace(case.machine, torchaudio_placeholder=found)
        assert rules.check_packages(replace(case, machine=host), {**INSTALLED, "torchaudio": version}) == []


def test_checkpoints_are_counted_as_llamafactory_writes_them(world: Path) -> None:
    lines = {**TRAIN, "lora_rank": 8, "save_steps": 5, "max_steps": 20}
    case = case_of(lines, "cpu", world)
    trained = 2 * 8 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))  # q and o, k and v, three of the MLP; two layers
    assert rules.disk_bytes(case) == 4 * trained * 12 + trained * 4
    limited = case_of({**lines, "save_total_limit": 1}, "cpu", world)
    assert rules.disk_bytes(limited) == 2 * trained * 12 + trained * 4
    whole = case_of({**lines, "finetuning_type": "full", "save_only_model": True}, "cpu", world)
    assert rules.disk_bytes(whole) == 5 * (whole.model.parameters or 0) * 4
    assert rules.disk_bytes(case_of({**lines, "model_name_or_path": "who/knows"}, "cpu", world)) is None


ASKED = {
    "nothing is wrong": ({}, None, None),
    "an argument": ({"val_size": 0.1, "eval_dataset": "little"}, "Cannot specify `val_size`", "val_size"),
    "a template": ({"template": "nope"}, "Template nope does not exist", None),
}


@pytest.mark.extended
def test_every_argument_that_llamafactory_overrides_or_never_reads_is_warned_of(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    program = Path(__file__).parent.parent / "benchmarks" / "final_arguments.py"
    done = subprocess.run([sys.executable, str(program)], cwd=world, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"key"')]
    assert {"remove_unused_columns", "use_mca", "sortish_sampler"} <= {row["key"] for row in rows}
    unsaid = []
    for row in rows:
        said = {each.where.key for each in examine(row["recipe"], world, "cpu")}
        named = {key for rule in RULES for key in rule.keys.split() if said & {*rule.keys.split()}}
        unsaid += [] if row["key"] in said | named else [(row["key"], row["given"], row["got"])]
    assert unsaid == []


@pytest.mark.slow
@pytest.mark.parametrize(("lines", "says", "key"), ASKED.values(), ids=ASKED.keys())
def test_llamafactory_itself_is_asked_and_its_refusal_is_a_problem(
    lines: dict[str, Any], says: str | None, key: str | None, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    file = world / "asked.yaml"
    file.write_text(launch.yaml_text({**TRAIN, **lines}))
    workspace = Workspace(world, world / "models", world / "runs")
    question = preflight.Question(str(file), (), workspace, dict(os.environ))
    examined = preflight.examine(question)
    if lines.get("template"):  # the kit would not let it come this far
        examined = replace(examined, plan=examined.plan.write(template="nope"))
    found = preflight.ask_llamafactory(examined, question)
    assert [says in each.what for each in found if says] == ([True] if says else [])
    assert [each.where.key for each in found] == ([key] if says else [])


def test_a_name_in_a_row_is_a_question_a_property_or_an_argument_and_never_two_of_them() -> None:
    questions = {name for name, made in vars(conditions).items() if inspect.isfunction(made)}
    properties = {name for name in (*vars(rules.Case), *rules.Case.__struct_fields__) if name[0] != "_"}
    assert not questions & properties and not (questions | properties) & {*TABLE, "any"}
