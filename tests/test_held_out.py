"""The loss on held-out rows: over the steps of a run, and over its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from iis_finetune.cli.meter import StepMeter
from iis_finetune.cli.summary import tell_found
from iis_finetune.errors import RunFailed
from iis_finetune.evaluate.checkpoints import judged
from iis_finetune.observe import held_out, losses_of
from iis_finetune.runs import Run


def write_log(run: Run, lines: list[tuple[int, dict[str, Any]]]) -> None:
    run.output.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"current_steps": step, "total_steps": 60, **line}) + "\n" for step, line in lines)
    run.trainer_log.write_text(text, encoding="utf-8")


def course(trained: float, held: list[float]) -> list[tuple[int, dict[str, Any]]]:
    """Ten steps between two looks at the held-out rows; training loss changes by so much a step."""
    lines: list[tuple[int, dict[str, Any]]] = []
    for look, loss in enumerate(held, 1):
        lines += [(step, {"loss": 5 + trained * step}) for step in range(10 * look - 9, 10 * look + 1)]
        lines.append((10 * look, {"eval_loss": loss}))
    return lines


@pytest.mark.parametrize(
    ("trained", "held", "best", "overfits"),
    [
        (-0.05, [3.0, 2.0, 2.5, 2.8], 20, True),
        (-0.05, [3.0, 2.0, 2.5], 20, False),  # one look alone
        (-0.05, [3.0, 2.0, 2.005, 2.01], 20, False),  # chance
        (0.05, [3.0, 2.0, 2.5, 2.8], 20, False),  # training loss rises as well: something else is wrong
        (-0.05, [3.0, 2.0, 2.5, 1.9], 40, False),
        (-0.05, [2.0], 10, False),
    ],
)
def test_over_fitting_is_a_held_out_loss_that_rises_for_a_while_as_the_training_loss_falls(
    tmp_path: Path, trained: float, held: list[float], best: int, overfits: bool
) -> None:
    run = Run(tmp_path / "0001-a")
    write_log(run, course(trained, held))
    seen = held_out(*losses_of(run))
    assert seen is not None
    assert (seen.step, seen.loss, seen.best_step, seen.best_loss) == (10 * len(held), held[-1], best, min(held))
    assert (seen.overfits is not None) == overfits == ("warning: over-fitting since step 20: " in seen.told)


def test_what_lies_behind_a_resumed_checkpoint_is_forgotten_and_a_loss_that_is_no_number_left_out(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path / "0001-a")
    write_log(run, [*course(-0.05, [3.0, 2.0, 1.0]), (21, {"loss": float("nan")}), (22, {"loss": 4.0})])
    trained, held = losses_of(run)
    assert max(trained) == 22 and 21 not in trained and held == {10: 3.0, 20: 2.0}
    write_log(run, [*course(-0.05, [3.0, 2.0, 1.0]), (20, {"eval_loss": 2.5})])
    seen = held_out(*losses_of(run))
    assert seen is not None and (seen.step, seen.loss, seen.best_step) == (20, 2.5, 20)
    assert held_out({1: 2.0}, {}) is None


def test_watch_and_status_tell_the_held_out_loss_and_the_best_step(
    quick: Command, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(project / "runs" / "0001-tiny")
    write_log(run, course(-0.05, [3.0, 2.0, 2.5, 2.8]))
    said = (
        "held-out loss 2.8 at step 40, best 2 at step 20\nwarning: over-fitting since step 20: held-out loss 2 -> 2.8"
    )
    assert said in quick("status", "1").stdout
    told = json.loads(quick("status", "1", "--json").stdout)["held_out"]
    assert (told["step"], told["best_step"]) == (40, 20) and told["overfits"]
    meter = StepMeter(run)
    meter.update()
    assert said in capsys.readouterr().out
    meter.update()
    assert capsys.readouterr().out == "", "it is said once"


def slices(mean: float, seed: int) -> list[float | None]:
    return [float(value) for value in mean + np.random.default_rng(seed).normal(0, 0.02, 20)]


def test_the_best_checkpoint_is_named_and_those_that_cannot_be_told_apart_from_it() -> None:
    hard = np.random.default_rng(9).uniform(0, 4, 20)  # how hard a slice is, for every checkpoint
    measured = {
        step: [float(value) for value in np.array(slices(mean, step)) + hard]
        for step, mean in ((50, 2.5), (100, 2.001), (150, 2.0), (200, 2.3))
    }
    found = judged(measured, [10] * 20)
    verdicts = {each["step"]: each["verdict"] for each in found["checkpoints"]}
    assert {verdicts[found["best"]], *(verdicts[step] for step in (50, 200))} == {"best", "worse"}
    assert found["keep"] == 100 and sorted(verdicts[step] for step in (100, 150)) == ["best", "cannot tell"]
    alone = found["checkpoints"][0]["alone"]
    assert alone["low"] < alone["tuned"] < alone["high"], "the interval of its own mean"
    with pytest.raises(RunFailed):
        judged({10: [None]}, [1])


def test_checkpoints_are_told_with_the_one_to_keep(capsys: pytest.CaptureFixture[str]) -> None:
    found = judged({50: slices(2.5, 1), 150: slices(2.0, 2), 200: slices(2.0, 2)}, [10] * 20)
    tell_found(Run(Path("0007-tiny")), {"data": "held_out", **found, "overfits": "over-fitting since step 150"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "checkpoints of 0007-tiny on held_out"
    assert [line.split()[0:2] for line in lines[2:5]] == [["step", "50"], ["step", "150"], ["step", "200"]]
    assert lines[2].endswith("worse") and lines[3].endswith("best") and lines[4].endswith("cannot tell")
    assert lines[5:] == [
        "best: step 150",
        "warning: over-fitting since step 150",
        "next: iis-finetune export 0007 --checkpoint 150",
    ]
