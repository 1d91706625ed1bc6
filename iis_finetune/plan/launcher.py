"""Decide how many processes there are and how they share the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..decision import Decision
from ..errors import Problem
from ..machine import Machine
from .draft import Draft

Fits = Callable[[str, int], float | None]  # launcher, processes -> GiB a device, None when unknown
SHARDED = {"zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3}


@dataclass(frozen=True)
class Launcher:
    """`here` of the `processes` are on this machine, as many as on each of the others."""

    name: str
    processes: int
    here: int


def processes_wanted(draft: Draft, machine: Machine) -> int:
    """One process a device; on CPU one, or as many as `kit.devices` says."""
    wanted = draft.recipe.kit.devices
    number = len(wanted) if isinstance(wanted, list) else wanted
    if machine.accelerator == "cpu":
        if number and number > machine.cpu_count:
            what = f"{number} processes share {machine.cpu_count} processor threads: each step waits for the slowest"
            place = draft.recipe.place("kit.devices")
            draft.complain(Problem(what, f"kit.devices: {machine.cpu_count}, or fewer", place, "warning", "machine"))
        return number or 1
    there = len(machine.devices)
    if number and number > there:
        what = f"{number} devices are asked for, {machine.name} has {there}"
        draft.complain(Problem(what, f"kit.devices: {there}", draft.recipe.place("kit.devices"), kind="machine"))
    return min(number or there, there)


def decide(draft: Draft, machine: Machine, memory: Fits, nodes: int = 1) -> Launcher:
    """Decide the launcher and write what LLaMA-Factory and torchrun need for it."""
    here = max(processes_wanted(draft, machine), 1)
    processes = here * nodes
    stated = draft.stated("deepspeed", "fsdp")
    if stated and not draft.conflict(stated, "launcher"):
        draft.keep("launcher", stated[0], stated[0])
        chosen = Launcher(stated[0], processes, here)
    else:
        decision = _decision(draft, machine, memory, processes)
        draft.decisions.append(decision)
        alone = decision.value == "single"
        chosen = Launcher(str(decision.value), 1 if alone else processes, 1 if alone else here)
    _write(draft, chosen, nodes)
    return chosen


def _decision(draft: Draft, machine: Machine, memory: Fits, processes: int) -> Decision:
    wanted = draft.recipe.kit.launcher
    if wanted != "auto":
        entry = draft.recipe.kit_entries["kit.launcher"]
        return Decision("launcher", wanted, entry.source, f"stated as kit.launcher: {wanted}")
    if processes == 1:
        return Decision("launcher", "single", "kit default", "one device, one process")
    limit = min((device.memory_gib for device in machine.devices), default=None)
    need = memory("ddp", processes)
    if need is None or limit is None or need <= limit:
        fits = f", {need:.1f} GiB of {limit:.1f} GiB each" if need and limit else ""
        return Decision("launcher", "ddp", "kit default", f"a whole copy of the model on each of {processes}{fits}")
    for name in ("zero2", "zero3", "zero3_offload"):
        shared = memory(name, processes)
        if shared is not None and shared <= limit:
            reason = f"a whole copy needs {need:.1f} GiB, a device has {limit:.1f}; {name} needs {shared:.1f}"
            return Decision("launcher", name, "kit default", reason)
    return Decision("launcher", "zero3", "kit default", "nothing fits; zero3 comes nearest")


def _write(draft: Draft, launcher: Launcher, nodes: int) -> None:
    if launcher.name in SHARDED:
        draft.arguments["deepspeed"] = "{run}/deepspeed.json"
        draft.files["deepspeed.json"] = deepspeed_config(launcher.name, nodes)
    elif launcher.name == "fsdp" and "fsdp" not in draft.arguments:
        draft.arguments["fsdp"] = "full_shard auto_wrap"
        draft.arguments["fsdp_config"] = {"use_orig_params": True}
    if launcher.processes > 1 or launcher.name in (*SHARDED, "deepspeed", "fsdp"):
        draft.environment["FORCE_TORCHRUN"] = "1"
        draft.environment["NPROC_PER_NODE"] = str(launcher.here)
        # The hook holds the training to it: what is planned as shared must be shared.
        draft.environment |= {"IIS_LAUNCHER": launcher.name, "IIS_PROCESSES": str(launcher.processes)}


def deepspeed_config(launcher: str, nodes: int = 1) -> dict[str, Any]:
    """The ZeRO configuration of a launcher; `auto` values are filled in by transformers."""
    stage = SHARDED[launcher]
    # DeepSpeed's own bucket of 5e8 elements is 1.9 GiB in fp32, allocated whole; LoRA gradients need a tenth at most.
    buckets = {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "contiguous_gradients": True, **buckets}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if launcher.endswith("offload"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        **dict.fromkeys((*automatic, "gradient_clipping"), "auto"),
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000},
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        **({"checkpoint": {"use_node_local_storage": True}} if nodes > 1 else {}),
    }
