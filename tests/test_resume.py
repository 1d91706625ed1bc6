"""The verbs of a run's life as a user types them; the training program is the staged one."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from iis_finetune import runs
from iis_finetune.runs import Run

Kit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def kit(python: Path, project: Path) -> Iterator[Kit]:
    """Run a verb in the project; what it left running is ended afterwards."""

    def call(*words: str, told: list[Mapping[str, Any]] | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE": json.dumps(told or []), **more}
        command = [str(python), "-m", "iis_finetune", *words]
        return subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    yield call
    for run in all_runs(project):
        if runs.state(run) in ("starting", "running"):
            call("stop", run.name, "--now")


def all_runs(project: Path) -> list[Run]:
    return [Run(path) for path in sorted((project / "runs").glob("0*"))]


def only(project: Path) -> Run:
    (run,) = all_runs(project)
    return run


def at(step: int, what: str) -> dict[str, Any]:
    return {"at": step, "do": what}


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(kit: Kit, project: Path, *words: str, **more: str) -> Run:
    """A run in the background that takes its time."""
    done = kit("train", "tiny", *words, "--background", **{"FAKE_STEP_SECONDS": "0.5", **more})
    assert done.returncode == 0, done.stderr
    run = all_runs(project)[-1]
    wait(lambda: runs.state(run) == "running")
    return run


def test_background_names_the_run_and_stop_and_resume_say_what_they_do(kit: Kit, project: Path) -> None:
    run = running(kit, project)
    assert run.name == "0001-tiny"
    stopped = kit("stop", "1")
    assert stopped.returncode == 0
    assert "waiting for the step under way and its checkpoint" in stopped.stdout
    assert "stopped with checkpoint-" in stopped.stdout and "next: iis-finetune resume 0001" in stopped.stdout
    assert kit("resume", "last").returncode == 0
    assert runs.state(run) == "finished"
    assert [attempt.ending for attempt in runs.attempts(run)] == ["stopped", "finished"]
    again = kit("resume", "1")
    assert again.returncode == 2 and "is finished: it has done 10 steps" in again.stderr
    assert "iis-finetune resume 0001 max_steps=20 goes on from its last checkpoint" in again.stderr


def test_a_finished_run_goes_on_as_a_longer_one_and_never_from_the_beginning(kit: Kit, project: Path) -> None:
    assert kit("train", "tiny").returncode == 0
    run = only(project)
    assert kit("resume", "1", "max_steps=10").returncode == 2
    longer = kit("resume", "1", "max_steps=20")
    assert longer.returncode == 0, longer.stderr
    assert "0001-tiny goes on from checkpoint-10 as a longer run" in longer.stdout
    assert "schedule: linear over the longer run" in longer.stdout
    assert runs.attempts(run)[-1].from_checkpoint == "checkpoint-10"
    for checkpoint in run.checkpoints():
        (checkpoint / "optimizer.pt").unlink()
    refused = kit("resume", "1", "max_steps=30")
    assert refused.returncode == 2 and "no whole checkpoint is left" in refused.stderr
    assert f"train tiny adapter_name_or_path={run.output}" in refused.stderr
    assert [each.attempt for each in runs.attempts(run)] == [1, 2]


def test_a_running_run_is_neither_deleted_nor_resumed_and_a_stopped_one_can_be(kit: Kit, project: Path) -> None:
    run = running(kit, project, FAKE_STEP_SECONDS="20")
    for words in (("runs", "--delete", "1", "--yes"), ("resume", "1")):
        refused = kit(*words)
        assert refused.returncode == 2 and "0001-tiny is being trained by process" in refused.stderr
    assert kit("stop", "1", "--now").returncode == 0
    assert kit("runs", "--delete", "1", "--yes").returncode == 0 and not run.folder.exists()


def test_changed_data_and_arguments_are_listed_and_refused_unless_accepted(kit: Kit, project: Path) -> None:
    assert kit("train", "tiny", told=[at(5, "term")]).returncode == 1
    data = project / "data" / "little.json"
    rows = json.loads(data.read_text())
    data.write_text(json.dumps([*rows, rows[0]]))
    refused = kit("resume", "last", "lora_dropout=0.3", "save_steps=5")
    assert refused.returncode == 2
    assert "little.json changed since the run began" in refused.stderr and "lora_dropout was" in refused.stderr
    assert "save_steps" not in refused.stderr, "it changes no weight"
    accepted = kit("resume", "last", "lora_dropout=0.3", "--accept-changes")
    assert accepted.returncode == 0, accepted.stderr
    run = only(project)
    assert "lora_dropout: 0.3" in run.arguments.read_text()
    resumed = next(event for event in runs.events(run) if event["event"] == "resumed")
    assert "lora_dropout" in resumed["changed"] and any(data.name in name for name in resumed["changed"])
    assert runs.attempts(run)[-1].from_checkpoint == "checkpoint-4"


def test_what_a_checkpoint_would_ignore_or_not_fit_is_refused_even_then(kit: Kit, project: Path) -> None:
    assert kit("train", "tiny", told=[at(5, "term")]).returncode == 1
    for change in ("learning_rate=0.5", "lora_rank=2", "optim=sgd"):
        refused = kit("resume", "last", change, "--accept-changes")
        assert refused.returncode == 2 and change.partition("=")[0] in refused.stderr, refused.stderr
    refused = kit("resume", "last", "kit.devices=2")
    assert refused.returncode == 2 and "processes was 1 and is 2 now" in refused.stderr
    assert kit("resume", "last").returncode == 0


def test_status_is_strict_json_with_every_key(kit: Kit, project: Path) -> None:
    run = running(kit, project)
    told = json.loads(kit("status", "last", "--json").stdout, parse_constant=pytest.fail)
    assert list(told) == [
        *(
            "run",
            "recipe",
            "state",
            "held",
            "step",
            "total_steps",
            "loss",
            "grad_norm",
            "held_out",
            "eta_seconds",
            "tokens_per_second",
        ),
        *("pids", "supervisor_pid", "attempts", "events", "device", "evaluating"),
    ]
    assert told["state"] == "running" and len(told["pids"]) == 1 and told["supervisor_pid"] and told["device"] is None
    assert told["events"][0]["event"] == "started" and told["attempts"][0]["attempt"] == 1
    assert kit("stop", run.name, "--now").returncode == 0
    ended = json.loads(kit("status", "last", "--json").stdout)
    assert ended["state"] == "stopped" and ended["pids"] == [] and ended["supervisor_pid"] is None


def test_two_runs_on_one_device_are_refused_with_the_name_of_the_first(kit: Kit, project: Path) -> None:
    run = running(kit, project, "kit.env={CUDA_VISIBLE_DEVICES: '0,1'}")
    refused = kit("train", "tiny", "kit.env={CUDA_VISIBLE_DEVICES: '1'}")
    assert refused.returncode == 3 and run.name in refused.stderr
    assert kit("train", "tiny", "kit.env={CUDA_VISIBLE_DEVICES: '2'}").returncode == 0
    assert kit("train", "tiny").returncode == 0, "the CPU is shared"


def test_a_command_is_told_of_recovery_and_end(kit: Kit, project: Path) -> None:
    heard = project / "heard"
    teller = project / "tell me.sh"
    teller.write_text(f'#!/bin/sh\necho "$2" >>"{heard}"\n')
    teller.chmod(0o755)
    done = kit("train", "tiny", "kit.notify=" + json.dumps(f"'{teller}' loud"), told=[at(5, "kill")])
    assert done.returncode == 0, done.stderr
    wait(lambda: heard.exists() and len(heard.read_text().splitlines()) == 2)
    told = [json.loads(line) for line in heard.read_text().splitlines()]
    assert [each["event"] for each in told] == ["recovering", "finished"]
    assert told[0]["run"] == "0001-tiny" and "killed by SIGKILL" in told[0]["text"]


def test_a_webhook_gets_json_and_its_address_is_written_nowhere(kit: Kit, project: Path) -> None:
    bodies: list[dict[str, Any]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_words: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/secret-token"
    done = kit("train", "tiny", "kit.notify=env:MY_HOOK", told=[at(5, "crash")] * 2, MY_HOOK=address)
    assert done.returncode == 1
    wait(lambda: len(bodies) == 2)
    server.shutdown()
    server.server_close()
    assert bodies[-1]["event"] == "failed" and "twice at the same step" in bodies[-1]["why"]
    written = [path for path in (project / "runs").rglob("*") if path.is_file()]
    assert [path for path in written if b"secret-token" in path.read_bytes()] == []


def test_a_deaf_webhook_holds_nothing_up(kit: Kit, project: Path) -> None:
    began = time.monotonic()
    done = kit("train", "tiny", "kit.notify=env:MY_HOOK", MY_HOOK="http://10.255.255.1/never")
    assert done.returncode == 0 and time.monotonic() - began < 30
