"""Inside the training process: say what was loaded, hold it to the plan, stop at a step's end, dump the stacks.

Plain Python without the package: it runs in LLaMA-Factory's processes, on the path by PYTHONPATH alone.
`IIS_RUN` is the run folder, `IIS_PRECISION` the precision of the plan, `IIS_LAUNCHER` and `IIS_PROCESSES` how it
shares the model, `IIS_BASE` the model behind a precision view, `IIS_SUPERVISOR` the process that watches (its
number and its start in clock ticks): without it nobody would ever end the training, so it saves and stops.

On several machines each has a run folder of its own, written by the first of its processes.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Patch = Callable[[Any], None]
REQUEST, TARGET = "stop-requested", "stop-at-step"
# What each launcher shares out among the processes: nobody may hold all of it.
SHARES = {"zero2": ("optimizer",), "zero3": ("optimizer", "parameters"), "fsdp": ("optimizer", "parameters")}


def wait_for_trainer() -> None:
    patches: dict[str, Patch] = {"transformers.trainer": patch}
    if os.environ.get("IIS_STAGE") == "ppo":
        import iis_ppo_hook  # type: ignore[import-not-found] # beside this file, on the training's path only

        patches = dict(iis_ppo_hook.PATCHES)
    sys.meta_path.insert(0, _Finder({**patches, "llamafactory.train.tuner": leave_when_done()}))


def leave_when_done() -> Patch:
    """Have a training that has returned end with code 0 before the interpreter takes itself apart.

    A thread of gloo's or autograd's that lets go of a tensor meanwhile aborts a process whose results are all saved
    (pytorch/pytorch#190489, looked at 2026-11-21; seen once here with two processes, and taken for the same).
    """
    returned: list[bool] = []

    def leave() -> None:
        if returned:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def note_the_return(tuner: Any) -> None:
        original = tuner.run_exp

        def run_exp(*words: Any, **named: Any) -> None:
            original(*words, **named)
            returned.append(True)

        tuner.run_exp = run_exp

    atexit.register(leave)  # the first to be registered is the last to be called
    return note_the_return


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the real finders find each of the modules and changes it once it is loaded; then it is out of the way."""

    def __init__(self, patches: dict[str, Patch]) -> None:
        self.patches = patches

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        change = self.patches.pop(name, None)
        if change is None:
            return None
        if not self.patches:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_and_change(module: ModuleType) -> None:
                load(module)
                change(module)

            spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def patch(trainer: Any) -> None:
    """Put our two looks around `Trainer.train`: before the first step, and at each step's end."""
    original = trainer.Trainer.train

    def train(self: Any, *words: Any, **named: Any) -> Any:
        look(self, trainer.TrainerCallback)
        if nodes() > 1:
            run = Path(os.environ["IIS_RUN"])
            named["resume_from_checkpoint"] = several().common_checkpoint(run, named.get("resume_from_checkpoint"))
            self.add_callback(several().callback(trainer.TrainerCallback)(run))
        return original(self, *words, **named)

    trainer.Trainer.train = train
    _patch_last_epoch(trainer)
    if nodes() > 1:
        several().patch_save(trainer)


def leads() -> bool:
    """Whether this is the first of its machine's processes."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def nodes() -> int:
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def several() -> Any:
    import iis_training_nodes  # type: ignore[import-not-found] # beside this file, on the training's path only

    return iis_training_nodes


def look(trainer: Any, callback: Any) -> None:
    """What is done before the first step; `callback` is transformers' class of that name."""
    run = Path(os.environ["IIS_RUN"])
    rank = int(os.environ.get("RANK", "0"))
    stacks = (run / f"stacks-{rank}.log").open("a")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    loaded = describe(trainer)
    write_if(leads(), run / "loaded.json", loaded)
    refuse_another_precision(loaded, os.environ.get("IIS_PRECISION", "as-saved"))
    name_the_original(trainer.model, os.environ.get("IIS_BASE"))
    trainer.add_callback(sharing_callback(callback)(run, trainer, loaded))
    if os.environ.get("IIS_TRIAL"):
        import iis_trial_hook  # type: ignore[import-not-found] # beside this file, on the training's path only

        trainer.add_callback(iis_trial_hook.callback(callback)(run, trainer))
    if nodes() == 1:
        trainer.add_callback(stop_callback(callback)(run, rank))


def name_the_original(model: Any, base: str | None) -> None:
    """Have the adapter name the model that was asked for, not the precision view that it was loaded from."""
    for config in getattr(without_head(model), "peft_config", {}).values() if base else ():
        config.base_model_name_or_path = base


def without_head(model: Any) -> Any:
    """The language model itself: stages rm and ppo wrap it together with a value head."""
    return getattr(model, "pretrained_model", model)


def _patch_last_epoch(trainer: Any) -> None:
    """Train no further when a resume starts at the last step: transformers 5.6 takes one step too many then."""
    original = getattr(trainer.Trainer, "_run_epoch", None)
    if original is None:
        return

    def run_epoch(self: Any, *words: Any, **named: Any) -> Any:
        if self.state.global_step >= self.state.max_steps > 0:
            self.control.should_training_stop = True
            return None
        return original(self, *words, **named)

    trainer.Trainer._run_epoch = run_epoch


def describe(trainer: Any) -> dict[str, Any]:
    """What is in memory: parameters by data type, trainable or not; attention, devices, how it is shared."""
    import torch
    import transformers

    model, accelerator = trainer.model, trainer.accelerator
    counts: dict[str, Counter[str]] = {"trainable": Counter(), "frozen": Counter()}
    for parameter in model.parameters():
        counter, dtype = counts["trainable" if parameter.requires_grad else "frozen"], str(parameter.dtype)
        counter[dtype.removeprefix("torch.")] += getattr(parameter, "ds_numel", None) or parameter.numel()
    quantizer = getattr(without_head(model), "hf_quantizer", None)
    return {
        "parameters": {name: dict(counter) for name, counter in counts.items()},
        "model": type(model).__name__,
        "attention": getattr(without_head(model).config, "_attn_implementation", None),
        "mixed_precision": accelerator.mixed_precision,
        "autocast": _autocast(trainer),
        "quantization": str(getattr(quantizer, "quantization_config", None) or "") or None,
        "device": str(next(model.parameters()).device),
        "processes": accelerator.num_processes,
        "distributed": str(accelerator.distributed_type).rpartition(".")[2].lower(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device_memory_gib": torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else None,
    }


def _autocast(trainer: Any) -> str | None:
    """The dtype that stage ppo's own autocast computes in; every other stage's is mixed_precision."""
    own = getattr(trainer, "amp_context", None)
    return str(own.fast_dtype).removeprefix("torch.") if own is not None and own._enabled else None


def refuse_another_precision(loaded: dict[str, Any], planned: str) -> None:
    """End the process when what is in memory is not the precision of the plan."""
    if wrong := _difference(loaded, planned):
        # SystemExit with a text prints it and ends with code 1, before the first step.
        text = f"iis-finetune: the plan says {planned}, but {wrong}"
        raise SystemExit(f"{text}; the run is stopped before its first step")


def _difference(loaded: dict[str, Any], planned: str) -> str | None:
    if planned not in TORCH_NAMES:
        return None
    mixed = loaded["mixed_precision"] or "no"
    if planned == "fp32" and loaded.get("autocast"):
        return f"it computes under autocast in {loaded['autocast']}"
    if mixed not in ("no" if planned == "fp32" else planned, "no"):
        return f"mixed precision is {mixed}"
    if planned != "fp32" and mixed == "no" and loaded["distributed"] != "deepspeed":
        return "mixed precision is off"
    frozen = {name: count for name, count in loaded["parameters"]["frozen"].items() if "float" in name}
    trainable = loaded["parameters"]["trainable"]
    held = {**trainable, **frozen} if planned == "fp32" else frozen
    if loaded["quantization"] or not held:
        return None
    main = max(held, key=lambda name: held[name])
    strange = sorted(set(held) - {"float32"}) if planned == "fp32" else [main] * (main != TORCH_NAMES[planned])
    return f"{held[strange[0]]:,} parameters are {strange[0]}" if strange else None


def sharing_callback(base: Any) -> Any:
    """A callback that looks, once everything is set up, how much each process holds, and holds it to the plan."""

    class LookBeforeTheFirstStep(base):  # type: ignore[misc]
        def __init__(self, run: Path, trainer: Any, loaded: dict[str, Any]) -> None:
            self.run, self.trainer, self.loaded = run, trainer, loaded

        def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_more: Any) -> None:
            self.loaded["sharing"] = describe_sharing(self.trainer)
            write_if(leads(), self.run / "loaded.json", self.loaded)
            planned = os.environ.get("IIS_LAUNCHER", "")
            wrong = unshared(self.loaded, planned, int(os.environ.get("IIS_PROCESSES", "1")))
            if planned and wrong:
                text = f"iis-finetune: the plan shares the model by {planned}, but {wrong}"
                raise SystemExit(f"{text}; the run is stopped before its first step")

    return LookBeforeTheFirstStep


def describe_sharing(trainer: Any) -> dict[str, Any]:
    """What the model is wrapped in, and how many parameters and optimizer's values this process keeps of it."""
    wrapped = getattr(trainer, "model_wrapped", trainer.model)  # stage ppo's trainer keeps no wrapped one
    engine = getattr(wrapped, "optimizer", None)
    flat = getattr(engine, "fp32_partitioned_groups_flat", None)  # ZeRO-3
    flat = flat or getattr(engine, "single_partition_of_fp32_groups", None)  # ZeRO-1 and 2
    updated = flat or [each for group in trainer.optimizer.param_groups for each in group["params"]]
    return {
        "wrapper": type(wrapped).__name__,
        "parameters": sum(map(_kept, trainer.model.parameters())),
        "optimizer": sum(map(_kept, updated)),
    }


def _kept(tensor: Any) -> int:
    """Numbers of a parameter in this process: ZeRO-3 keeps its part aside, FSDP2 inside."""
    part = getattr(tensor, "ds_tensor", None)
    if part is None:
        part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(part.numel())


def unshared(loaded: dict[str, Any], planned: str, processes: int) -> str | None:
    """What is not shared among the processes as the plan says; None when all is."""
    if loaded["processes"] != processes:
        return f"{loaded['processes']} processes train together, not {processes}"
    counts = loaded["parameters"]
    whole = {"optimizer": sum(counts["trainable"].values())}
    whole["parameters"] = whole["optimizer"] + sum(counts["frozen"].values())
    for part in SHARES.get(planned.removesuffix("_offload"), ()) if processes > 1 else ():
        here = loaded["sharing"][part]
        if here * processes > 1.5 * whole[part]:  # a little more than its share: parts are filled up to equal sizes
            return f"each of {processes} processes holds {here:,} of {whole[part]:,} values of the {part}"
    return None


def stop_callback(base: Any) -> Any:
    """A callback that ends the training with a checkpoint at a step's end, the same step in every process.

    Rank 0 sees the request while a step is under way and names that step. Another rank reads the name at the step's
    end, which it cannot reach before rank 0 has taken part in the step's gradient exchange, so all see it in time.
    """

    class StopAtStepEnd(base):  # type: ignore[misc]
        def __init__(self, run: Path, rank: int) -> None:
            self.run, self.rank = run, rank
            signal.signal(signal.SIGTERM, self.request)

        def request(self, _number: int, _frame: FrameType | None) -> None:
            (self.run / REQUEST).touch()

        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
            if self.rank == 0 and not supervised():
                (self.run / REQUEST).touch()
            if self.rank == 0 and (self.run / REQUEST).exists() and not (self.run / TARGET).exists():
                write(self.run / TARGET, state.global_step + 1)

        on_substep_end = on_step_begin

        def on_step_end(self, _args: Any, state: Any, control: Any, **_more: Any) -> None:
            if (self.run / TARGET).exists() and json.loads((self.run / TARGET).read_text()) <= state.global_step:
                control.should_save = control.should_training_stop = True
            self.on_step_begin(_args, state, control)  # stage ppo tells of no step's begin: name the next one here

    return StopAtStepEnd


def supervised() -> bool:
    """Whether the supervisor still lives; true when none was named, as in a start by hand."""
    pid, _, started = os.environ.get("IIS_SUPERVISOR", "").partition(" ")
    if not started:
        return True
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return False
    return fields[19] == started and fields[0] not in "ZX"


def write_if(mine: bool, path: Path, content: Any) -> None:
    if mine:
        write(path, content)


def write(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
