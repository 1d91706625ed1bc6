"""The steps that decide how many processes there are, on how many machines, and how they share the model."""

from typing import Any

from msgspec.structs import replace

from ..decision import Decision
from ..errors import Problem, errors_of
from ..tables import read
from .fit import needed, problems_of_offload
from .record import Launcher, Plan

SHARDED = {"zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3}  # the ZeRO stage of each
UNNAMED = "FIRST_NODE"  # stands for an address that is not known yet
JOIN_SECONDS = 600  # torch 2.13 static_tcp_rendezvous.py; said all the same, because it is the limit that users meet
NOT_ON_NODES = {
    "single": "a single process cannot be on several nodes",
    "fsdp": "FSDP over several nodes is not tried: a node would keep only its part of a checkpoint",
}


def launcher(plan: Plan) -> Plan:
    """Decide the launcher and write what LLaMA-Factory and torchrun need for it."""
    plan, here = _devices(plan)
    several = Launcher("ddp", here * (plan.nodes.number if plan.nodes else 1), here)
    plan, stated = plan.heard("launcher")
    if stated:
        plan = plan.keep("launcher", stated[0], stated[0])
        return _write(replace(plan, launch=replace(several, name=stated[0])))
    decision = _decision(plan, several)
    chosen = Launcher() if decision.value == "single" else replace(several, name=str(decision.value))
    return _write(replace(plan.note(decision), launch=chosen))


def _devices(plan: Plan) -> tuple[Plan, int]:
    """One process a device; on CPU one, or as many as `kit.devices` says."""
    wanted, machine, place = plan.recipe.kit.devices, plan.machine, plan.recipe.place("kit.devices")
    number = len(wanted) if isinstance(wanted, list) else wanted
    if machine.accelerator == "cpu":
        if number and number > machine.cpu_count:
            what = f"{number} processes share {machine.cpu_count} processor threads: each step waits for the slowest"
            fix = f"kit.devices: {machine.cpu_count}, or fewer"
            plan = plan.complain(Problem(what, fix, place, "warning", "machine"))
        return plan, max(number or 1, 1)
    there = len(machine.devices)
    if number and number > there:
        what = f"{number} devices are asked for, {machine.name} has {there}"
        plan = plan.complain(Problem(what, f"kit.devices: {there}", place, kind="machine"))
    return plan, max(min(number or there, there), 1)


def _decision(plan: Plan, several: Launcher) -> Decision:
    wanted = plan.recipe.kit.launcher
    if wanted != "auto":
        entry = plan.recipe.kit_entries["kit.launcher"]
        return Decision("launcher", wanted, entry.source, f"stated as kit.launcher: {wanted}")
    if several.processes == 1:
        return Decision("launcher", "single", "kit default", "one device, one process")
    whole = needed(plan, several)
    if not plan.machine.devices or whole.ready:
        known = plan.machine.devices and whole.per_device_gib
        fits = f", {whole.per_device_gib:.1f} GiB of {whole.limit_gib:.1f} GiB each" if known else ""
        reason = f"a whole copy of the model on each of {several.processes}{fits}"
        return Decision("launcher", "ddp", "kit default", reason)
    for tried in (replace(several, name=name) for name in ("zero2", "zero3", "zero3_offload")):
        shared = needed(plan, tried)
        if shared.ready and not errors_of(problems_of_offload(plan, tried)):
            reason = f"a whole copy needs {whole.per_device_gib:.1f} GiB, a device has {whole.limit_gib:.1f}"
            reason = f"{reason}; {tried.name} needs {shared.per_device_gib:.1f}"
            return Decision("launcher", tried.name, "kit default", reason)
    return Decision("launcher", "zero3", "kit default", "nothing fits; zero3 comes nearest")


def _write(plan: Plan) -> Plan:
    chosen, nodes = plan.launch, plan.nodes
    if chosen.name in SHARDED:
        config = deepspeed_config(chosen.name, nodes.number if nodes else 1)
        plan = replace(plan.write(deepspeed="{run}/deepspeed.json"), files={"deepspeed.json": config})
    elif chosen.name == "fsdp" and not plan.stated("fsdp"):
        plan = plan.write(fsdp="full_shard auto_wrap", fsdp_config={"use_orig_params": True})
    if chosen.processes == 1 and chosen.name not in (*SHARDED, "deepspeed", "fsdp"):
        return plan
    plan = plan.export({"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(chosen.here)})
    # The hook holds the training to it: what is planned as shared must be shared.
    return plan.export({"IIS_LAUNCHER": chosen.name, "IIS_PROCESSES": str(chosen.processes)})


def deepspeed_config(launcher: str, nodes: int = 1) -> dict[str, Any]:
    """The ZeRO configuration of a launcher; `auto` values are filled in by transformers."""
    stage, given = SHARDED[launcher], read("deepspeed.json")
    zero: dict[str, Any] = {"stage": stage, **given["zero"]}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if launcher.endswith("offload"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    local = {"checkpoint": {"use_node_local_storage": True}} if nodes > 1 else {}
    return {**given["config"], "zero_optimization": zero, **local}


def several_processes(plan: Plan) -> Plan:
    """What every run of more than one process needs."""
    if plan.processes == 1:
        return plan
    reason = "the other ranks wait while the first tokenises; 30 minutes, the default, is too short for large data"
    plan = plan.choose("ddp_timeout", 180_000_000, reason)
    method, reward = plan.settings["finetuning_type"], plan.settings["stage"] == "rm"
    if plan.launcher == "ddp" and (method == "oft" or (reward and method == "full")):
        reason = "with torch's older checkpointing DDP ends in 'Expected to mark a variable ready only once' here"
        plan = plan.choose("use_reentrant_gc", False, reason)
    return plan


def several_nodes(plan: Plan) -> Plan:
    """What a run on several machines needs beside what several processes do."""
    nodes = plan.nodes
    if nodes is None:
        return plan
    told = f"--nodes on the command line; this is node {nodes.rank}, the first is at {nodes.address}:{nodes.port}"
    plan = plan.complain(*_node_problems(plan)).note(Decision("nodes", nodes.number, "override", told))
    plan = plan.export(nodes.variables())
    reason = "every node keeps whole checkpoints in a run folder of its own, so no disk need be shared"
    plan = plan.choose("save_on_each_node", True, reason)
    reason = f"a node waits {JOIN_SECONDS // 60} minutes for the others to come, then its attempt ends"
    plan = plan.export_for(reason, "PET_RDZV_CONF", f"timeout={JOIN_SECONDS}")
    if nodes.interface:
        reason = f"the card that leads to {nodes.address}; gloo would take the one that the host's name belongs to"
        plan = plan.export_for(reason, "GLOO_SOCKET_IFNAME", nodes.interface)
    return plan


def _node_problems(plan: Plan) -> list[Problem]:
    found, nodes, place = [], plan.nodes, plan.recipe.place
    if plan.launcher in NOT_ON_NODES:
        found.append(Problem(NOT_ON_NODES[plan.launcher], "kit.launcher: ddp, or zero3", place("kit.launcher")))
    if plan.settings["stage"] == "ppo":
        found.append(Problem("stage ppo runs on one machine", "train without --nodes", place("stage")))
    known = nodes is None or nodes.interface or nodes.address == UNNAMED
    if nodes and not known and plan.machine.here and "GLOO_SOCKET_IFNAME" not in plan.recipe.kit.env:
        what = f"no network card is known to lead to {nodes.address}"
        found.append(Problem(what, "kit.env={GLOO_SOCKET_IFNAME: eth0}", severity="warning", kind="machine"))
    if plan.settings["save_total_limit"] == 1:
        what = "with one checkpoint kept, nodes that are cut off during a save have none in common"
        found.append(Problem(what, "save_total_limit: 2", place("save_total_limit"), severity="warning"))
    return found
