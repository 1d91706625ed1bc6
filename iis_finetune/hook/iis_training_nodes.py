"""What the hook adds on several machines; each has a run folder of its own, led by its first process."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from iis_training_hook import REQUEST, TARGET, leads, supervised, write_if  # type: ignore[import-not-found]


def patch_save(trainer: Any) -> None:
    """Save no parts for the whole: ZeRO-3 gathers the weights on the first node alone, the others are given None."""
    original = trainer.Trainer._save

    def save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        parted = any(hasattr(parameter, "ds_id") for parameter in self.model.parameters())
        if not (parted and state_dict is None):
            original(self, output_dir, state_dict)

    trainer.Trainer._save = save


def common_checkpoint(run: Path, chosen: Any) -> Any:
    """The newest checkpoint that every node has: one that was cut off during a save is behind the others."""
    from torch import distributed

    newest = _step_of(chosen) if chosen else 0
    there = {step for path in (run / "output").glob("checkpoint-*") if (step := _step_of(path)) <= newest}
    everywhere: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everywhere, there)
    common = max(set.intersection(*everywhere), default=0)
    if not common and any(everywhere):
        text = "; ".join(f"rank {rank}: {sorted(steps) or 'none'}" for rank, steps in enumerate(everywhere))
        raise SystemExit(f"iis-finetune: the nodes have no checkpoint in common ({text})")
    return str(run / "output" / f"checkpoint-{common}") if common else False


def _step_of(checkpoint: Any) -> int:
    number = str(checkpoint).rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def callback(base: Any) -> Any:
    """What each of several nodes does beside training: stop together, tell how far it is, keep what a resume needs."""

    class OneOfSeveralNodes(base):  # type: ignore[misc]
        def __init__(self, run: Path) -> None:
            self.run = run
            signal.signal(signal.SIGTERM, lambda *_: (run / REQUEST).touch())

        def on_step_end(self, args: Any, state: Any, control: Any, **_more: Any) -> None:
            if _any_asks(self.run, args.device):
                control.should_save = control.should_training_stop = True
                write_if(leads(), self.run / TARGET, state.global_step)
            _say(state, f"{state.global_step}/{state.max_steps} [")

        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_more: Any) -> None:
            _say(state, str(logs))

        def on_save(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
            if leads():
                _name_newest(self.run / "output" / f"checkpoint-{state.global_step}")

        def on_train_end(self, args: Any, state: Any, _control: Any, **_more: Any) -> None:
            _keep_state(args, state)

    return OneOfSeveralNodes


def _keep_state(args: Any, state: Any) -> None:
    """Write how far it came, which the trainer does on the first node alone."""
    if leads() and not state.is_world_process_zero:
        state.save_to_json(str(Path(args.output_dir) / "trainer_state.json"))


def _name_newest(checkpoint: Path) -> None:
    """Write the name of DeepSpeed's folder, which it does on the first node alone."""
    for parts in checkpoint.glob("global_step*"):
        if not (checkpoint / "latest").exists():
            (checkpoint / "latest").write_text(parts.name)


def _any_asks(run: Path, device: Any) -> bool:
    """Whether any node is to stop: one number a step is exchanged, so that all stop at the same."""
    import torch

    flag = torch.tensor(int(leads() and ((run / REQUEST).exists() or not supervised())), device=device)
    torch.distributed.all_reduce(flag)
    return bool(flag.item())


def _say(state: Any, text: str) -> None:
    """A line into the log of a node whose trainer prints nothing: the first node's progress bar stands in its own."""
    if leads() and not state.is_world_process_zero:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
