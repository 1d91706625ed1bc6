"""What the machine decides (precision, attention, quantisation, each with its reason) and what it cannot do well."""

from collections.abc import Mapping
from typing import Any

from ..decision import Decision
from ..errors import Place, Problem
from .computer import bitsandbytes_libraries, package_version
from .knowledge import Row, architecture, filled, rocm_version, version_numbers
from .records import Machine, trouble

Decided = tuple[Decision, list[Problem]]


def _cell(machine: Machine, column: str) -> Row:
    """A cell of the machine's row, its sentences filled in."""
    return filled(architecture(machine.arch).get(column, {}), machine)


def _asked(wanted: str, automatic: str) -> str:
    return f"asked for; auto would choose {automatic} here" if wanted != automatic else "asked for, as auto would"


def decide_precision(machine: Machine, wanted: str = "auto") -> Decided:
    """fp32, fp16, bf16 or as-saved; what the machine cannot do is an error, what it does slowly a warning."""
    policy = _cell(machine, "precision")
    if wanted == "auto":
        return Decision("precision", policy["value"], "machine table", policy["reason"]), []
    if wanted == "as-saved":
        reason = "asked for: LLaMA-Factory keeps the data type that the base model was saved in"
        return Decision("precision", wanted, "recipe", reason), []
    decision = Decision("precision", wanted, "recipe", _asked(wanted, policy["value"]))
    return decision, _precision_problems(machine, wanted, f"remove the line: auto picks {policy['value']} here")


def _precision_problems(machine: Machine, wanted: str, fix: str) -> list[Problem]:
    cell = _cell(machine, wanted) if wanted in ("bf16", "fp16") else {}
    key, note = "kit.precision", cell.get("note", "")
    if cell.get("value") == "none":
        return [trouble(f"{wanted} cannot run on {machine.device}: {note}", fix, "error", key)]
    if emulates(machine, wanted):
        return [trouble(f"{wanted} is emulated on {machine.device} and {note}", fix, key=key)]
    if wanted == "fp16" and note:
        watched = f"keep attention sdpa, and let the watcher look for NaN; or {fix}"
        return [trouble(f"fp16 is not proven on {machine.device}: {note}", watched, key=key)]
    return []


def emulates(machine: Machine, precision: str) -> bool:
    """Whether the machine computes a precision, slowly, in another one."""
    cell = architecture(machine.arch).get(precision, {})
    return cell.get("value") == "emulated" and not set(cell.get("unless_flags", ())) & set(machine.cpu_flags)


def decide_attention(machine: Machine, precision: str, wanted: str = "auto") -> Decided:
    """disabled, sdpa or fa2 (LLaMA-Factory's `flash_attn`), for the precision that was decided."""
    automatic, reason = _automatic_attention(machine, precision)
    if wanted == "auto":
        return Decision("attention", automatic, "machine table", reason), []
    decision = Decision("attention", wanted, "recipe", _asked(wanted, automatic))
    fix = f"remove the line: auto picks {automatic} here"
    if wanted == "fa2":
        return decision, _flash_problems(machine, precision, fix)
    if wanted == "disabled" and precision in ("fp16", "bf16"):
        # Qwen2-7B, WikiText-2 perplexity: fp16 NaN, bf16 7.997 against 7.13 (huggingface/transformers#33317)
        harm = "overflows to NaN with" if precision == "fp16" else "loses accuracy with"
        what = f"plain attention (disabled) {harm} {precision} on Qwen2 and similar models"
        return decision, [trouble(what, fix, key="kit.attention")]
    return decision, []


def _automatic_attention(machine: Machine, precision: str) -> tuple[str, str]:
    policy = _cell(machine, "attention")
    if precision == "fp32" or policy["value"] == "sdpa":
        return policy["value"], policy["reason"]
    what = "the base model's own data type" if precision == "as-saved" else precision
    reason = f"with {what} plain attention can overflow; PyTorch's own computes in fp32 inside on {machine.device}"
    return "sdpa", reason


def _flash_problems(machine: Machine, precision: str, fix: str) -> list[Problem]:
    key, cell = "kit.attention", _cell(machine, "flash_attn")
    if not cell["value"]:
        return [trouble(f"the flash-attn package does not support {machine.device}", fix, "error", key)]
    if precision == "fp32":
        return [Problem("flash-attn computes in fp16 and bf16 only, not in fp32", fix, Place(key=key))]
    if not machine.here or package_version("flash_attn") is None:
        what = "attention fa2 needs the flash-attn package; without it LLaMA-Factory would silently use sdpa"
        install = f"pip install flash-attn --no-build-isolation, or {fix}"
        return [Problem(what, install, Place(key=key), "error" if machine.here else "warning", "missing")]
    return []


def fused_attention(machine: Machine, environment: Mapping[str, Any]) -> bool:
    """Whether sdpa keeps no scores in memory; some cards need a switch for that, which `kit.env` may turn on."""
    kernels = _cell(machine, "sdpa_kernels").get("value")
    wanted = str(environment.get("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"))
    return kernels == "flash" or (kernels == "experimental" and wanted == "1")


def quantization_problems(machine: Machine, key: str = "quantization_bit") -> list[Problem]:
    """What speaks against bitsandbytes quantisation, asked for at `key`; of kind `machine` where it is impossible."""
    cell, remove = _cell(machine, "bitsandbytes"), "remove quantization_bit, or use quantization_method: hqq"
    other = remove if key == "quantization_bit" else "name the model that is not quantised"
    note = cell.get("note", f"{cell.get('version', '')} or later")
    if cell["value"] == "none":
        return [trouble(f"bitsandbytes does not support {machine.device}", other, "error", key)]
    if not {cell.get("needs_flag", "avx2")} & set(machine.cpu_flags or ("avx2",)):
        return [trouble("this processor has no AVX2, which bitsandbytes needs on a CPU", other, "error", key)]
    if foreign := _foreign_bitsandbytes(machine, cell.get("version", "0")):
        return [Problem(foreign, note, Place(key=key), kind="missing")]
    if machine.here and package_version("bitsandbytes") is None:
        fix = note if cell["value"] == "source" else f"pip install 'bitsandbytes>={cell['version']}'"
        return [Problem("quantization needs the bitsandbytes package", fix, Place(key=key), kind="missing")]
    what = f"bitsandbytes has no ready-made build for {machine.device}"
    too_old = (rocm_version(machine) or ()) < version_numbers(cell.get("rocm_from", ""))
    if cell["value"] != "source" and too_old:
        what += " and this ROCm" if machine.here else f" below ROCm {cell['rocm_from']}"
    return [trouble(what, f"{note}; or {other}", key=key)] if cell["value"] == "source" or too_old else []


def _foreign_bitsandbytes(machine: Machine, oldest: str) -> str | None:
    """What is wrong with the installed bitsandbytes for an AMD card: its version, or that no library is for this ROCm.

    It takes the library of the same ROCm, else the next lower one of the same major number, else one that crashes.
    """
    found = package_version("bitsandbytes") if machine.here and machine.accelerator == "rocm" else None
    if found is None:
        return None
    if version_numbers(found)[:3] < version_numbers(oldest):
        return f"bitsandbytes {found} is installed, and 4-bit weights are wrong with it on {machine.device}"
    libraries = [version_numbers(f"{name[0]}.{name[1:]}") for name in bitsandbytes_libraries()]
    rocm = rocm_version(machine)
    if not libraries or rocm is None or any(one[0] == rocm[0] and one <= rocm for one in libraries):
        return None
    return f"bitsandbytes {found} has no library for ROCm {'.'.join(map(str, rocm))}: it takes another one and crashes"


def compile_problems(machine: Machine) -> list[Problem]:
    """What speaks against a recipe that asks for torch_compile."""
    cell = _cell(machine, "compile")
    if cell["value"]:
        return []
    what = f"torch_compile does not help here: {cell['note']}"
    return [trouble(what, "remove torch_compile", cell.get("severity", "warning"), "torch_compile")]


def offload_problems(machine: Machine) -> list[Problem]:
    """What speaks against keeping the optimizer in the computer's memory (zero2_offload, zero3_offload)."""
    if not machine.cpu_flags or {"avx2", "avx512f"} & set(machine.cpu_flags):
        return []
    what = "this processor has no AVX2, so DeepSpeed's optimizer on the CPU runs without vector instructions: very slow"
    return [trouble(what, "zero3 or fsdp without offload, or a smaller model", key="kit.launcher")]


def build_problems(machine: Machine) -> list[Problem]:
    """Whether the installed torch can use the devices that were found here; a build of one's own is trusted."""
    if not machine.here:
        return []
    fix, build = "see `iis-finetune doctor --install-plan`", machine.torch_build
    if build is None:
        return [Problem("torch is not installed", fix, kind="missing")]
    local = build.partition("+")[2]
    wrong = {"rocm": ("cpu", "cu"), "cuda": ("cpu", "rocm"), "cpu": ()}[machine.accelerator]
    if local.startswith(wrong) and wrong:
        return [trouble(f"torch {build} cannot use {machine.device}", fix, "error")]
    if machine.accelerator == "rocm" and build.replace(".", "").isdecimal():
        return [trouble(f"torch {build} looks like the CUDA build, which cannot use {machine.device}", fix)]
    return []


def advice(machine: Machine, processes: int = 1, chosen: tuple[str, str] | None = None) -> list[str]:
    """Sentences that are advice and not decisions, but for what precision and attention are `chosen` already."""
    columns = ("advice", "several") if processes > 1 else ("advice",)
    cells = [cell for column in columns if (cell := _cell(machine, column))]
    left = [cell for cell in cells if chosen is None or cell.get("unless") != [*chosen]]
    return [cell["value"] + ("" if cell["confirmed"] else " (unconfirmed)") for cell in left]
