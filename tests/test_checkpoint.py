from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from fake_training import checkpoint
from safetensors.numpy import save_file

from iis_finetune import runs
from iis_finetune.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "0001-a")
    run.output.mkdir(parents=True)
    return run


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def zeroed(path: Path) -> None:
    """What a power failure leaves on some file systems: the right length, no content."""
    data = bytearray(path.read_bytes())
    data[500:2000] = bytes(1500)
    path.write_bytes(data)


def shards(folder: Path, missing: bool) -> None:
    (folder / "adapter_model.safetensors").unlink()
    for number in (1, 2):
        save_file({f"w{number}": numpy.ones(4, numpy.float32)}, folder / f"model-0000{number}-of-00002.safetensors")
    names = {f"w{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    if missing:
        (folder / "model-00002-of-00002.safetensors").unlink()


def zero(folder: Path, optimizers: int, latest: str = "global_step10") -> None:
    """A DeepSpeed checkpoint of two processes."""
    (folder / "optimizer.pt").unlink()
    (folder / "scheduler.pt").unlink()
    (folder / "latest").write_text(latest)
    (folder / "global_step10").mkdir()
    for rank in range(optimizers):
        source = (folder / "training_args.bin").read_bytes()
        (folder / "global_step10" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(source)
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    (folder / "rng_state_1.pth").write_bytes((folder / "rng_state_0.pth").read_bytes())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "marked incomplete": (lambda f: (f / "checkpoint-is-incomplete.txt").touch(), "broken off"),
    "no optimizer": (lambda f: (f / "optimizer.pt").unlink(), "no optimizer state"),
    "no scheduler": (lambda f: (f / "scheduler.pt").unlink(), "no scheduler.pt"),
    "no random state": (lambda f: (f / "rng_state.pth").unlink(), "no rng_state.pth"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "no weights"),
    "no state": (lambda f: (f / "trainer_state.json").unlink(), "no readable trainer_state.json"),
    "state cut off": (lambda f: cut(f / "trainer_state.json", 5), "no readable trainer_state.json"),
    "another step": (lambda f: (f / "trainer_state.json").write_text('{"global_step": 8}'), "is of step 8"),
    "weights cut off": (lambda f: cut(f / "adapter_model.safetensors", 1), "is cut off"),
    "weights without header": (lambda f: cut(f / "adapter_model.safetensors", 60), "cannot be read"),
    "empty weights": (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "cannot be read"),
    "optimizer cut off": (lambda f: cut(f / "optimizer.pt", 100), "optimizer.pt cannot be read"),
    "optimizer zeroed": (lambda f: zeroed(f / "optimizer.pt"), "optimizer.pt cannot be read"),
    "a shard missing": (lambda f: shards(f, True), "no model-00002-of-00002.safetensors"),
}


@pytest.mark.parametrize(("breaking", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_each_way_to_be_broken_is_seen_and_walked_past(
    run: Run, breaking: Callable[[Path], object], words: str
) -> None:
    good = checkpoint(run.output / "checkpoint-2", 2)
    bad = checkpoint(run.output / "checkpoint-10", 10)
    assert runs.newest_good(run) == (bad, [])
    breaking(bad)
    found, skipped = runs.newest_good(run)
    assert found == good
    assert [each.folder for each in skipped] == [bad] and words in str(skipped[0])


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found_in_any_type(tmp_path: Path, kind: str, value: float) -> None:
    rows = numpy.linspace(-3e4, 3e4, 100_003, dtype=numpy.float32)
    path = tmp_path / "model.safetensors"
    for poisoned in (False, True):
        rows[99_999] = value if poisoned else 1.0
        if kind == "bfloat16":
            bits = (rows.view(numpy.uint32) >> 16).astype("<u2").tobytes()
            header = json.dumps({"w": {"dtype": "BF16", "shape": [len(rows)], "data_offsets": [0, len(bits)]}}).encode()
            path.write_bytes(len(header).to_bytes(8, "little") + header + bits)
        else:
            save_file({"first": numpy.zeros(3, kind), "w": rows.astype(kind)}, path)
        assert bool(runs.weight_faults(tmp_path)) == poisoned


def test_whole_numbers_and_the_largest_finite_values_are_fine(tmp_path: Path) -> None:
    largest = {kind: numpy.array([numpy.finfo(kind).max, numpy.finfo(kind).tiny], kind) for kind in ("f2", "f4", "f8")}
    save_file({**largest, "ids": numpy.full(9, -1, numpy.int64)}, tmp_path / "a.safetensors")
    assert runs.weight_faults(tmp_path) == []


def test_sharded_and_deepspeed_checkpoints_are_good_when_they_are_whole(run: Run) -> None:
    whole = checkpoint(run.output / "checkpoint-10", 10)
    shards(whole, False)
    assert runs.faults(whole) == []
    zero(whole, 2)
    assert runs.faults(whole, 2) == []
    assert "2 optimizer files for 3 processes" in runs.faults(whole, 3)
    (whole / "latest").write_text("global_step8")
    assert runs.faults(whole, 2) == ["global_step8 is not there"]


def test_every_process_needs_its_random_state(run: Run) -> None:
    folder = checkpoint(run.output / "checkpoint-4", 4, processes=2)
    assert runs.faults(folder, 2) == []
    (folder / "rng_state_1.pth").unlink()
    assert runs.faults(folder, 2) == ["no rng_state_1.pth"]


def test_without_a_good_checkpoint_every_one_is_named(run: Run) -> None:
    assert runs.newest_good(run) == (None, [])
    for step in (2, 4):
        checkpoint(run.output / f"checkpoint-{step}", step, math.nan)
    found, skipped = runs.newest_good(run)
    assert found is None and [each.folder.name for each in skipped] == ["checkpoint-4", "checkpoint-2"]
    assert "not finite in w" in str(skipped[0])
