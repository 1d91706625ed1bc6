"""Faults of cards, packages and LLaMA-Factory that others have found: said before anything starts, or by its name."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, Command
from test_machine import grow

from iis_finetune import doctor, machine, preflight, recover, rules
from iis_finetune.arguments import trained_with
from iis_finetune.doctor import Subject
from iis_finetune.errors import Place, Problem, errors_of
from iis_finetune.machine import Device, Machine, computer
from iis_finetune.runs import Workspace
from iis_finetune.wheels import read_table

TABLES = ROOT / "iis_finetune" / "tables"
Look = Callable[..., preflight.Examined]


@pytest.fixture
def look(project: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """What `check` and `plan` make of the tiny recipe with overrides on a named machine."""
    monkeypatch.chdir(project)
    workspace = Workspace(project, project / "models", project / "runs")

    def examined(on: str, *overrides: str) -> preflight.Examined:
        return preflight.examine(preflight.Question("recipes/tiny.yaml", overrides, workspace, {}, on))

    return examined


def said(examined: preflight.Examined, words: str) -> list[Problem]:
    return [each for each in examined.problems if words in each.what]


# RDNA 4 --------------------------------------------------------------------------------------------------------------


def test_lora_on_rdna4_is_warned_of_and_its_plan_keeps_hipblaslt_out(look: Look) -> None:
    found = look("rx9070xt")
    [problem] = said(found, "has faulted gfx1201")
    assert (problem.severity, problem.kind, problem.where.key) == ("warning", "machine", "finetuning_type")
    assert "PYTORCH_NO_HIP_MEMORY_CACHING" in problem.fix
    names = ("TORCH_BLAS_PREFER_HIPBLASLT", "ROCBLAS_USE_HIPBLASLT")
    assert [found.plan.environment[name] for name in names] == ["0", "0"]
    reasons = [each.reason for each in found.plan.decisions if each.name.endswith("HIPBLASLT")]
    assert len(reasons) == 2 and all("unconfirmed" in reason for reason in reasons)
    assert "PYTORCH_NO_HIP_MEMORY_CACHING" in machine.advice(found.machine)[0]
    for cure in ("finetuning_type=full", "kit.env={PYTORCH_NO_HIP_MEMORY_CACHING: '1'}"):
        assert said(look("rx9070xt", cure), "has faulted") == []


@pytest.mark.parametrize(
    ("build", "known"), [("2.9.0+rocm6.4", False), ("2.13.0+rocm7.2", True), ("2.15.0+rocm10.0", True)]
)
def test_only_a_torch_for_rocm_7_2_or_later_is_concerned(tmp_path: Path, build: str, known: bool) -> None:
    card = machine.profile("r9700").devices
    here = Machine("here", "rocm", card, torch_build=build, kfd_usable=True)
    chosen = {each.name for each in machine.decide_environment(here)}
    assert ("environment.ROCBLAS_USE_HIPBLASLT" in chosen) == known
    subject = Subject(here, {}, Workspace(tmp_path, tmp_path, tmp_path), root=tmp_path, packages=[])
    found = doctor.hardware.devices(subject).problems
    assert bool([each for each in found if "has faulted gfx1201" in each.what]) == known


# A card that faulted -------------------------------------------------------------------------------------------------

FAULTS = (
    "Memory access fault by GPU node-1 (Agent handle: 0x55) on address 0x7f12. Reason: Page not present.",
    "HSA_STATUS_ERROR_MEMORY_FAULT: Agent attempted to access an inaccessible address.",
    "RuntimeError: HIP error: an illegal memory access was encountered",
)


@pytest.mark.parametrize("line", FAULTS)
def test_a_run_on_a_card_that_faulted_does_not_go_on_by_itself(line: str) -> None:
    named = recover.cause_in(f"epoch 1\n{line}\n")
    assert named == ("gpu fault", line)
    action = recover.decide(recover.Situation(recover.Failure("gpu fault", 7, line)))
    assert not action.resume
    assert re.search(r"restart the computer.*reset the card.*then `iis-finetune resume`", action.why)
    known = rules.explain(line, Place())
    assert known is not None and "the card faulted" in known.what


def test_an_illegal_access_on_nvidia_is_a_crash_like_any_other() -> None:
    assert recover.cause_in("RuntimeError: CUDA error: an illegal memory access was encountered\n") is None


# Cards without Triton, older cards -----------------------------------------------------------------------------------

ON_CARDS = {
    "gfx906: no Liger": ("mi50x2", "enable_liger_kernel=true", "error", "does not know gfx906"),
    "gfx906: an own build for 8-bit Adam": ("mi50", "optim=adamw_8bit", "warning", "no ready-made build for gfx906"),
    "gfx906: torchao's Adam": ("mi50", "optim=adamw_torch_8bit", "warning", "compiled by Triton"),
    "gfx900: an own build of bitsandbytes": ("mi25", "quantization_bit=4", "warning", "no ready-made build for gfx900"),
    "gfx1010: compiled programs write zeros": ("rx5700xt", "torch_compile=true", "error", "learns from zeros"),
    "gfx1010: Triton writes zeros": ("rx5700xt", "enable_liger_kernel=true", "error", "learns from zeros"),
    "gfx1030: Liger in bf16": ("rx6800xt", "enable_liger_kernel=true kit.precision=bf16", "error", "LLVM ERROR"),
}


@pytest.mark.parametrize(("on", "overrides", "severity", "words"), ON_CARDS.values(), ids=ON_CARDS.keys())
def test_what_a_card_cannot_do_is_said_before_the_start(
    look: Look, on: str, overrides: str, severity: str, words: str
) -> None:
    [problem] = said(look(on, *overrides.split()), words)
    assert (problem.severity, problem.kind) == (severity, "machine")


def test_liger_in_fp16_on_gfx1030_and_8_bit_adam_on_a_card_with_a_build_are_let_through(look: Look) -> None:
    for on, override in (("rx6800xt", "enable_liger_kernel=true"), ("rx7900xtx", "optim=adamw_8bit")):
        assert [each.what for each in look(on, override).problems if "set-up does not bring" not in each.what] == []


@pytest.mark.parametrize(
    ("on", "override", "said"),
    [
        ("rtx4090", "use_unsloth=true", "needs the package unsloth, which set-up does not bring"),
        ("rx7900xtx", "kit.attention=fa2", "needs the flash-attn package"),
        ("mi50", "model_name_or_path=unsloth/Qwen2.5-7B-Instruct-bnb-4bit", "bitsandbytes has no ready-made build"),
    ],
)
def test_what_a_named_machine_would_have_to_install_is_a_warning(look: Look, on: str, override: str, said: str) -> None:
    [found] = [each for each in look(on, override).problems if said in each.what]
    assert found.severity == "warning" and found.where.key == override.partition("=")[0]


def test_gfx1010_keeps_triton_from_its_broken_buffer_operations(look: Look) -> None:
    assert look("rx5700xt").plan.environment["AMDGCN_USE_BUFFER_OPS"] == "0"


@pytest.mark.parametrize(
    ("arch", "kernels", "fused"),
    [("gfx1100", "flash", True), ("gfx1101", "experimental", False), ("gfx1102", "experimental", False),
     ("gfx1150", "experimental", False), ("gfx1151", "flash", True), ("gfx1153", "experimental", False),
     ("gfx1200", "experimental", False), ("gfx1201", "flash", True), ("gfx906", "math", False)],
)  # fmt: skip
def test_attention_counts_as_fused_only_where_torch_uses_its_kernel(arch: str, kernels: str, fused: bool) -> None:
    assert machine.architecture(arch)["sdpa_kernels"]["value"] == kernels
    card = Machine("a card", "rocm", (Device(0, "a card", "amd", arch, 16.0),))
    assert machine.fused_attention(card, {}) == fused
    switched = machine.fused_attention(card, {"TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": 1})
    assert switched == (kernels != "math")


def test_a_card_that_no_build_serves_is_left_out_and_the_cpu_is_used(tmp_path: Path) -> None:
    nodes = grow(tmp_path, "mi50_16gb") / "sys/class/kfd/kfd/topology/nodes"
    for node in nodes.glob("*/properties"):
        node.write_text(node.read_text().replace("gfx_target_version 90006", "gfx_target_version 80003"))
    found = machine.detect(tmp_path, {})
    assert (found.accelerator, found.devices) == ("cpu", ())
    [(card, reason)] = found.left_out
    assert card.arch == "gfx803" and "train on the CPU" in reason


# bitsandbytes --------------------------------------------------------------------------------------------------------


def here(name: str, build: str) -> Machine:
    like = machine.profile(name)
    return Machine("here", like.accelerator, like.devices, torch_build=build)


@pytest.mark.parametrize(
    ("build", "version", "libraries", "words"),
    [
        ("2.13.0+rocm7.2", "0.49.2", ["71", "72"], "4-bit weights are wrong"),
        ("2.13.0+rocm7.2", "0.50.2", ["64", "72", "714"], None),
        ("2.12.0+rocm7.13", "0.50.2", ["64", "72", "714"], None),  # takes 7.2's
        ("2.6.0+rocm6.1", "0.50.2", ["64", "72", "714"], "no library for ROCm 6.1"),
        ("2.15.0+rocm10.0", "0.50.2", ["64", "72", "714"], "no library for ROCm 10.0"),
    ],
)
def test_a_bitsandbytes_that_is_wrong_or_for_another_rocm_is_named(
    monkeypatch: pytest.MonkeyPatch, build: str, version: str, libraries: list[str], words: str | None
) -> None:
    monkeypatch.setattr("iis_finetune.machine.decide.package_version", lambda _: version)
    monkeypatch.setattr("iis_finetune.machine.decide.bitsandbytes_libraries", lambda: libraries)
    problems = machine.quantization_problems(here("rx7900xtx", build))
    assert [words in each.what for each in problems if words] == ([True] if words else [])
    assert len(problems) == (1 if words else 0)
    assert machine.quantization_problems(here("h200", "2.13.0+cu130")) == []  # CUDA has libraries for all


def test_the_libraries_of_bitsandbytes_are_read_from_their_names(tmp_path: Path) -> None:
    (tmp_path / "bitsandbytes").mkdir()
    for name in ("rocm72", "rocm714", "cuda130", "cpu"):
        (tmp_path / "bitsandbytes" / f"libbitsandbytes_{name}.so").touch()
    assert sorted(computer.bitsandbytes_libraries([str(tmp_path)])) == ["714", "72"]


# Builds of torch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gfx1010", "gfx1012", "gfx1031", "gfx1103", "gfx1151", "gfx1152", "gfx1153"])
def test_the_multi_arch_index_gives_one_card_its_own_libraries(arch: str) -> None:
    row = next(row for row in read_table() if row.serves("rocm", arch, None))
    row = replace(row, devices=(arch,))
    assert "multi-arch" in row.index
    assert row.for_pip()[0] == f"torch[device-{arch}]==2.12.0+rocm7.14.0"
    assert row.requirements(local=False) == ["torch==2.12.0", "torchvision==0.27.0", "torchaudio==2.11.0"]


def test_the_install_plan_of_strix_halo_names_its_device_and_its_kernel(iis: Command) -> None:
    done = iis("doctor", "--install-plan", "--on", "strix-halo")
    assert done.returncode == 0
    assert "pip install 'torch[device-gfx1151]==2.12.0+rocm7.14.0'" in done.stdout
    assert "Linux 6.17" in done.stdout


@pytest.mark.parametrize(
    ("kernel", "hangs"), [("6.14.0-33-generic", True), ("7.0.2", True), ("6.17.0-5-generic", False), ("6.140.1", False)]
)
def test_a_kernel_on_which_strix_halo_hangs_is_named(tmp_path: Path, kernel: str, hangs: bool) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text(f"{kernel}\n")
    found = replace(machine.profile("strix-halo"), name="here", torch_build="2.12.0+rocm7.14.0")
    subject = Subject(found, {}, Workspace(tmp_path, tmp_path, tmp_path), root=tmp_path, packages=[])
    problems = [each for each in doctor.hardware.devices(subject).problems if "hang without a word" in each.what]
    assert [kernel in each.what for each in problems] == ([True] if hangs else [])


# LLaMA-Factory 0.9.5 and its packages --------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["kit.attention=fa2", "flash_attn=fa2"])
def test_fa2_is_refused_with_the_transformers_that_breaks_it_alone(
    look: Look, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(look("h200", override), "transformers") == [], "the one that the kit installs works"
    [row] = [each for each in machine.load()["fault"] if each.get("package") == "transformers"]
    monkeypatch.setitem(row, "pinned", "5.6.0")
    [problem] = said(look("h200", override), "transformers 5.6.0")
    assert (problem.severity, problem.kind, problem.where.key) == ("error", "missing", override.partition("=")[0])


def test_the_version_that_a_named_machine_is_taken_to_have_is_the_pinned_one() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for row in machine.load()["fault"]:
        assert "package" not in row or row["pinned"] == pins[row["package"]]


PACKED = {
    "a length that 8 divides": (("neat_packing=true",), None),
    "packing has the same fault": (("packing=true", "cutoff_len=100"), "multiple of 8"),
    "neat packing too": (("neat_packing=true", "cutoff_len=1023"), "multiple of 8"),
    "no packing, any length": (("cutoff_len=100",), None),
    "pre-training cuts its rows itself": (("stage=pt", "packing=true", "cutoff_len=100"), None),
    "Gemma 3 gets a blank picture": (("neat_packing=true", "template=gemma3"), "blank picture"),
}


@pytest.mark.parametrize(("overrides", "words"), PACKED.values(), ids=PACKED.keys())
def test_packing_that_ends_at_the_first_step_is_refused(
    look: Look, overrides: tuple[str, ...], words: str | None
) -> None:
    found = look("h200", *overrides)
    for fault in ("multiple of 8", "blank picture"):
        assert [each.severity for each in said(found, fault)] == (["error"] if fault == words else [])


def test_packing_says_what_it_changes_and_neat_packing_needs_no_word(look: Look) -> None:
    assert [each.severity for each in said(look("h200", "packing=true"), "see each other")] == ["warning"]
    assert said(look("h200", "neat_packing=true"), "see each other") == []


def test_new_tokens_in_spare_rows_are_warned_of_only_where_there_are_some(look: Look, project: Path) -> None:
    assert said(look("h200", "add_tokens=<new>"), "spare rows") == []  # the tiny model has a row for each token
    found = look("h200", "add_tokens=<new>", "model_name_or_path=Qwen/Qwen2.5-7B-Instruct")
    assert [each.severity for each in said(found, "spare rows")] == ["warning"]


FAILED = {
    "RuntimeError: The size of tensor a (104) must match the size of tensor b (100) at non-singleton dimension 2": None,
    '  File "transformers/models/qwen2/modeling_qwen2.py", line 110, in apply_rotary_pos_emb\n    q_embed = (q * cos)\n'
    "RuntimeError: The size of tensor a (104) must match the size of tensor b (100) at non-singleton dimension 2": (
        "a packed row of 100 tokens was filled up to 104"
    ),
    "LLVM ERROR: Cannot select: intrinsic %llvm.amdgcn.fdot2.bf16.bf16": "Triton cannot compile bf16",
    "RuntimeError: unsupported target: 'gfx906'": "no support for this card (gfx906)",
    "RuntimeError: CUDA error: HIPBLAS_STATUS_UNKNOWN_ERROR": "matrix library",
    'File "/x/torch/utils/file_baton.py", line 46 in wait': "holds the lock",
    "Configured ROCm binary not found at /x/libbitsandbytes_rocm63.so": "no library for this ROCm",
}


@pytest.mark.parametrize(("log", "words"), FAILED.items())
def test_a_known_failure_is_explained_and_another_is_not(log: str, words: str | None) -> None:
    known = rules.explain(log, Place())
    assert (known is None) == (words is None)
    assert not (known and words) or words in known.what


# Methods that LLaMA-Factory has not ----------------------------------------------------------------------------------


OTHER_METHODS = ("prefix_tuning", "prompt_tuning", "p_tuning", "ia3", "adapter")
# hidden size, layers, width of keys, of the MLP
SIZES = {
    "Qwen/Qwen2.5-7B-Instruct": (3584, 28, 512, 18944),
    "Qwen/Qwen2.5-0.5B-Instruct": (896, 24, 128, 4864),
    "meta-llama/Llama-3.1-8B-Instruct": (4096, 32, 1024, 14336),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_method_of_peft_is_answered_with_the_lora_of_about_its_size_for_this_model(look: Look, name: str) -> None:
    hidden, layers, narrow, wide = SIZES[name]
    theirs = {
        "prefix_tuning": 20 * layers * 2 * narrow,
        "prompt_tuning": 20 * hidden,
        "p_tuning": 20 * hidden + 3 * (hidden * hidden + hidden),
        "ia3": layers * (2 * narrow + wide),
        "adapter": layers * 2 * (2 * hidden * 64 + 64 + hidden),
    }
    for method in OTHER_METHODS:
        found = look("h200", f"finetuning_type={method.replace('_', '-')}", f"model_name_or_path={name}")
        [problem] = said(found, "LLaMA-Factory has no")
        assert problem.where.key == "finetuning_type" and problem.exit_code == 2
        lines = dict(re.findall(r"'(\w+)=([\w,]+)'", problem.fix))
        ours = rules.trained_parameters(found.model, trained_with({**lines, "lora_rank": int(lines["lora_rank"])})) or 0
        assert 0.7 < theirs[method] / ours < 1.5 or method == "prompt_tuning"
        stated = [float(number) for number in re.findall(r"([\d.e+]+) million", problem.what)]
        assert stated == pytest.approx([ours / 1e6, theirs[method] / 1e6], rel=0.06)
        assert errors_of(look("h200", *(f"{key}={value}" for key, value in lines.items())).problems) == []


def test_a_method_of_peft_is_answered_for_a_model_whose_sizes_are_not_known(look: Look) -> None:
    [problem] = said(look("h200", "finetuning_type=ia3", "model_name_or_path=who/knows"), "LLaMA-Factory has no")
    assert "'finetuning_type=lora'" in problem.fix and "million" not in problem.what


@pytest.mark.parametrize(
    ("name", "line"), [("qlora", "'quantization_bit=4'"), ("dora", "'use_dora=true'")], ids=["qlora", "dora"]
)
def test_a_form_of_lora_is_answered_with_its_switch(look: Look, name: str, line: str) -> None:
    [problem] = said(look("h200", f"finetuning_type={name}"), "cannot be")
    assert "'finetuning_type=lora'" in problem.fix and line in problem.fix


@pytest.mark.parametrize("name", ["machine.toml", "recovery.toml", "failures.toml", "wheels.toml"])
def test_every_row_says_where_it_was_seen_and_when(name: str) -> None:
    for kind, rows in tomllib.loads((TABLES / name).read_text()).items():
        listed = [rows] if isinstance(rows, dict) else rows
        for row in listed if kind != "architecture" else ():
            assert row["source"] and str(row.get("date", "2026")).startswith("2026"), (kind, row)
