from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from iis_finetune import observe
from iis_finetune.observe import Seen, StallLimits, Watcher, sensors
from iis_finetune.runs import Run

HEAD = "***** Running training *****\n  Total optimization steps = 1,000\n"
LOGGED = "{{'loss': '{loss}', 'grad_norm': '{norm}', 'learning_rate': '1e-05', 'epoch': '0.1'}}\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "0001-a")
    run.output.mkdir(parents=True)
    run.log.write_text("what an earlier attempt printed\n")
    return run


def add(run: Run, text: str) -> None:
    with run.log.open("a") as log:
        log.write(text)


def bar(step: int, total: int = 1000) -> str:
    return f"\r {step * 100 // total:2}%|#   | {step}/{total} [00:10<10:00,  1.00s/it]"


def logged(loss: object = 2.5, norm: object = 0.9) -> str:
    return LOGGED.format(loss=loss, norm=norm)


def looks(watcher: Watcher, texts: list[str]) -> Iterator[Seen | None]:
    for second, text in enumerate(texts, 1):
        add(watcher.run, text)
        yield watcher.look(float(second))


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_loss_that_is_not_finite_is_trouble_at_once(run: Run, loss: str, scaled: bool) -> None:
    seen = list(looks(Watcher(run, 0.0, scaled), [HEAD, bar(1), logged(), bar(2) + logged(loss)]))
    assert seen[:3] == [None] * 3 and seen[3] is not None
    assert (seen[3].trouble, seen[3].step) == ("not finite", 2) and loss in seen[3].what


def test_a_gradient_norm_that_is_nan_behind_a_healthy_loss_is_trouble(run: Run) -> None:
    *_, last = looks(Watcher(run, 0.0), [HEAD, bar(1), logged(6.24, "nan")])
    assert last is not None and "gradient norm is nan" in last.what


def test_fp16_may_overflow_while_its_loss_scale_settles_but_not_for_ever(run: Run) -> None:
    watcher = Watcher(run, 0.0, scaled=True)
    assert set(looks(watcher, [HEAD, *[logged(2.5, "inf")] * 9, logged()])) == {None}
    seen = list(looks(watcher, [logged(2.5, "inf")] * 10))
    assert seen[:9] == [None] * 9 and seen[9] is not None and "10 logs in a row" in seen[9].what


def test_a_loss_of_zero_under_a_large_gradient_that_never_changes_is_trouble(run: Run) -> None:
    changing = [logged(0.0, 1 + 0.1 * number) for number in range(20)]
    assert set(looks(Watcher(run, 0.0), [HEAD, *changing])) == {None}
    *_, last = looks(Watcher(run, 0.0), [HEAD, *[logged(0.0, 1.732)] * 6])
    assert last is not None and "exactly 0" in last.what and "stays at 1.732" in last.what


def test_a_loss_of_zero_counts_only_without_a_gradient(run: Run) -> None:
    learned_all = [logged(0.0, 0.003)] * 20
    assert set(looks(Watcher(run, 0.0), [HEAD, *learned_all])) == {None}
    *_, last = looks(Watcher(run, 0.0), [HEAD, *[logged(0.0, 0.0)] * 5])
    assert last is not None and "exactly 0" in last.what


def test_a_log_line_cut_in_two_by_the_moment_of_looking_is_read_whole(run: Run) -> None:
    text = logged(2.5, "nan")
    seen = list(looks(Watcher(run, 0.0), [HEAD, text[:30], text[30:]]))
    assert seen[:2] == [None, None] and seen[2] is not None


def test_what_an_earlier_attempt_printed_is_not_looked_at(run: Run) -> None:
    add(run, logged("nan", "nan"))
    assert Watcher(run, 0.0).look(1.0) is None


def test_a_stall_is_measured_by_the_usual_step_above_a_floor(run: Run) -> None:
    watcher = Watcher(run, 0.0, limits=StallLimits(5, 100, 1000))
    assert watcher.limit_seconds() == 1000, "before the second step nothing is known"
    add(run, HEAD)
    for step in range(1, 6):
        add(run, bar(step))
        assert watcher.look(step * 60.0) is None
    assert watcher.limit_seconds() == 300
    assert watcher.look(5 * 60.0 + 299) is None
    seen = watcher.look(5 * 60.0 + 300)
    assert seen is not None and seen.trouble == "stall" and "a step takes 60 s" in seen.what


def test_another_bar_that_moves_is_life_and_repeated_warnings_are_not(run: Run) -> None:
    watcher = Watcher(run, 0.0, limits=StallLimits(5, 100, 1000))
    add(run, HEAD + bar(1))
    watcher.look(1.0)
    add(run, bar(2))
    watcher.look(11.0)
    for number in range(1, 5):
        add(run, f"\r 10%|#| {number}/40 [00:00<00:01, 20it/s]")  # an evaluation
        assert watcher.look(11.0 + 90 * number) is None
    assert watcher.steps[0] == 10, "only training steps are steps"
    add(run, "[rank1] watchdog: still waiting\n" * 3)
    assert watcher.look(371.0 + 99) is None
    add(run, "[rank1] watchdog: still waiting\n")
    assert watcher.look(371.0 + 101) is not None


def test_before_training_any_output_is_life(run: Run) -> None:
    watcher = Watcher(run, 0.0, limits=StallLimits(5, 10, 50))
    for second in (40, 80, 120):
        add(run, "Loading checkpoint shards\n")
        assert watcher.look(float(second)) is None
    assert watcher.look(171.0) is not None


def test_the_time_left_after_a_resume_is_that_of_the_steps_done_since(run: Run) -> None:
    """LLaMA-Factory divides by all steps: after 500 of 1,000 it says a third of a minute where five are left."""
    lines = [line(step, step * 10, step * 100) for step in range(480, 501)]
    lines += [line(step, (step - 500) * 10, step * 100) for step in range(501, 531)]
    run.trainer_log.write_text("".join(lines))
    now = observe.signs(run)
    assert now.seconds_per_step == 10 and now.eta_seconds == 470 * 10 and now.tokens_per_second == 10


def test_with_a_single_line_llamafactorys_own_estimate_is_taken(run: Run) -> None:
    run.trainer_log.write_text(line(3, 30, 300))
    assert observe.signs(run).eta_seconds == 7


def line(step: int, elapsed: int, tokens: int) -> str:
    clock = f"{elapsed // 3600}:{elapsed // 60 % 60:02}:{elapsed % 60:02}"
    told = {"current_steps": step, "total_steps": 1000, "elapsed_time": clock, "total_tokens": tokens}
    return json.dumps({**told, "remaining_time": "0:00:07"}) + "\n"


AMD = {
    "gpu": 0,
    "mem_usage": {"used_vram": {"value": 2048, "unit": "MB"}},
    "temperature": {"edge": {"value": 40, "unit": "C"}, "hotspot": {"value": 61, "unit": "C"}},
    "power": {"socket_power": {"value": 150, "unit": "W"}},
}
ROCM = {
    "card0": {
        "Temperature (Sensor edge) (C)": "40.0",
        "Temperature (Sensor junction) (C)": "61.0",
        "Average Graphics Package Power (W)": "150.0",
        "VRAM Total Memory (B)": "34342961152",
        "VRAM Total Used Memory (B)": "2147483648",
    },
    "system": {"Driver version": "6.8"},
}
TOLD = {"memory_used_gib": 2.0, "temperature_celsius": 61.0, "power_watts": 150.0}


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("amd-smi", json.dumps([AMD])),
        ("amd-smi", json.dumps({"gpu_data": [AMD]})),
        ("rocm-smi", json.dumps(ROCM)),
        ("nvidia-smi", "2048, 61, 150.00\n"),
    ],
)
def test_each_tool_tells_memory_heat_and_power(tmp_path: Path, program: str, text: str) -> None:
    (tmp_path / "text").write_text(text)
    tool = tmp_path / program
    tool.write_text(f"#!/bin/sh\n/bin/cat '{tmp_path}/text'\n")
    tool.chmod(0o755)
    assert observe.devices({"PATH": str(tmp_path)}) == [TOLD]


def test_a_tool_that_tells_half_or_nonsense_harms_nothing(tmp_path: Path) -> None:
    assert observe.devices({"PATH": str(tmp_path)}) is None
    for program, text in {"rocm-smi": "no devices", "nvidia-smi": "2048, [N/A], [N/A]"}.items():
        tool = tmp_path / program
        tool.write_text(f"#!/bin/sh\necho '{text}'\n")
        tool.chmod(0o755)
    assert observe.devices({"PATH": str(tmp_path)}) == [
        {"memory_used_gib": 2.0, "temperature_celsius": None, "power_watts": None}
    ]


def test_kills_for_memory_are_counted_in_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "CGROUPS", tmp_path)
    assert sensors.killed_for_memory() is None
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 3\n")
    assert sensors.killed_for_memory() == 3
