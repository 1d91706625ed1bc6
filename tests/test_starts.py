"""A detached start before it has a run, as a user meets it: prepared, followed, failed; in real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hub_server
import pytest
from conftest import ROOT

from iis_finetune import process, runs
from iis_finetune.runs import Request, Workspace

FETCHED = ("train", "tiny", "model_name_or_path=org/tiny", "--background")
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9", "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9"}


class Kit:
    """The verbs as a user types them in a project; the training program is the staged one."""

    def __init__(self, python: Path, project: Path):
        self.python, self.project = python, project

    def begun(self, *words: str, **more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(self.project), "NO_PROXY": "127.0.0.1"}
        return subprocess.Popen(
            [str(self.python), "-m", "iis_finetune", *words],
            cwd=self.project,
            env={**environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        child = self.begun(*words, **more)
        said, wrong = child.communicate(timeout=120)
        return subprocess.CompletedProcess(words, child.returncode, said, wrong)


@pytest.fixture
def kit(python: Path, project: Path) -> Iterator[Kit]:
    """What it left in preparation is ended afterwards."""
    yield Kit(python, project)
    process.end([start.process for start in runs.starts(place(project)) if not start.fix], 0)


def place(project: Path) -> Workspace:
    return Workspace(project, project / "models", project / "runs")


@pytest.fixture
def opened(project: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A hub with the tiny model, which takes its time until it is told otherwise."""
    shutil.copytree(tiny_model, project / "served" / "org" / "tiny")
    opened = threading.Event()
    monkeypatch.setattr(hub_server, "time", SimpleNamespace(sleep=opened.wait))
    with hub_server.Hub(project / "served") as running:
        running.behaviour.bytes_per_second = 4000
        for name, address in running.environment.items():
            monkeypatch.setenv(name, address)
        yield opened
        opened.set()


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_start_that_downloads_is_seen_and_watched_into_its_run(
    kit: Kit, project: Path, opened: threading.Event
) -> None:
    started = kit(*FETCHED)
    assert started.returncode == 0, started.stderr
    assert started.stdout.splitlines()[-1] == "next: iis-finetune watch last"
    doing = f"downloading org/tiny to {project}/models/org--tiny"
    wait(lambda: "%" in next(runs.starts(place(project))).doing)
    listed = kit("runs").stdout
    assert f"is being prepared: {doing}: " in listed and listed.endswith(" %\nnext: iis-finetune watch last\n")
    assert f"is being prepared: {doing}: " in kit("status", "last").stdout
    told = json.loads(kit("status", "last", "--json").stdout)
    assert (told["run"], told["recipe"], told["state"], told["step"]) == (None, "tiny", "starting", None)
    for words in (("export", "last"), ("evaluate", "last", "--data", "little"), ("chat", "last"), ("logs", "last")):
        refused = kit(*words)
        assert refused.returncode == 2, words
        assert f"the newest start, tiny, has no run yet: {doing}" in refused.stderr
    looking = kit.begun("watch", "last")
    assert looking.stdout and looking.stdout.readline() == f"{doing} ...\n"
    opened.set()
    said, wrong = looking.communicate(timeout=100)
    assert looking.returncode == 0, wrong
    assert "run 0001-tiny:" in said and "0001-tiny: finished" in said
    assert list(runs.starts(place(project))) == []


def test_who_watches_a_download_only_looks_away_with_ctrl_c(kit: Kit, project: Path, opened: threading.Event) -> None:
    assert kit(*FETCHED).returncode == 0
    looking = kit.begun("watch", "last")
    assert looking.stdout and "downloading" in looking.stdout.readline()
    looking.send_signal(signal.SIGINT)
    said, _ = looking.communicate(timeout=60)
    assert looking.returncode == 0 and "it goes on; next: iis-finetune status last" in said
    assert [each.fix for each in runs.starts(place(project))] == [None]


def test_a_start_that_failed_is_told_of_until_a_later_one_has_its_run(kit: Kit, project: Path) -> None:
    assert kit("train", "tiny").returncode == 0
    assert kit(*FETCHED, **NOWHERE).returncode in (0, 3)
    wait(lambda: all(each.fix for each in runs.starts(place(project))))
    (start,) = runs.starts(place(project))
    assert "error: " in start.request.log.read_text() and start.doing in start.request.log.read_text()
    for words in (("runs",), ("status", "last")):
        said = kit(*words).stdout
        assert f"failed before it had a run: {start.doing}" in said and f"fix: {start.fix}" in said, words
    watched = kit("watch", "last")
    assert watched.returncode == 3 and f"error: {start.doing}" in watched.stderr and "finished" not in watched.stdout
    told = json.loads(kit("runs", "--json").stdout)
    assert [each["run"] for each in told["runs"]] == ["0001-tiny"]
    assert [(each["state"], each["fix"]) for each in told["starts"]] == [("failed", start.fix)]
    logs = kit("logs", "last")
    assert logs.returncode == 0 and f"tiny, failed before it had a run: {start.doing}" in logs.stderr
    assert "`last` is taken for the run before it, 0001-tiny" in logs.stderr
    assert kit("status", "1").stdout.startswith("run                0001-tiny")
    assert kit("train", "tiny").returncode == 0
    assert kit("runs").stdout.count("failed") == 0 and "0002-tiny" in kit("status", "last").stdout


def begun(project: Path, *told: dict[str, object], smoke: bool = False, resume: str | None = None) -> Request:
    """A start of this very process, with what it has told so far."""
    me = process.identity(os.getpid())
    request = runs.new_request(place(project), {"recipe": "/p/tiny.yaml", "smoke": smoke, "resume": resume})
    request.tell(process=vars(me))
    for line in told:
        request.tell(**line)
    return request


def names(project: Path) -> list[tuple[str, str, bool]]:
    return [(each.name, each.doing, bool(each.fix)) for each in runs.starts(place(project))]


def test_the_run_of_a_base_is_not_that_of_the_start(tmp_path: Path) -> None:
    request = begun(tmp_path, {"phase": "making the base model: recipe first"}, {"run": "0001-first"})
    assert names(tmp_path) == [("tiny", "making the base model: recipe first", False)]
    request.tell(run="0002-tiny")
    assert names(tmp_path) == []
    begun(tmp_path, {"run": "0003-tiny-smoke"}, smoke=True)
    begun(tmp_path, {"claimed": "0002-tiny"}, resume="0002-tiny")
    assert names(tmp_path) == []


def test_a_failed_start_is_told_of_for_a_week_and_one_in_preparation_is_never_hidden(tmp_path: Path) -> None:
    wrong = {"severity": "warning", "what": "slow", "fix": "-"}, {"severity": "error", "what": "no way", "fix": "mend"}
    first = begun(tmp_path, {"phase": "downloading a"})
    failed = begun(tmp_path, {"problems": wrong}, {"exit": 3})
    assert names(tmp_path) == [("tiny", "no way", True), ("tiny", "downloading a", False)]
    os.utime(failed.progress, (0, time.time() - 8 * 86400))
    assert names(tmp_path) == [("tiny", "downloading a", False)]
    os.utime(failed.progress)
    begun(tmp_path, {"run": "0001-tiny"}, {"exit": 0})
    assert names(tmp_path) == [("tiny", "downloading a", False)]
    first.progress.write_text(first.progress.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))
    assert names(tmp_path) == [], "it is gone, and another has its run"
    first.progress.write_text("[]\n{")
    shutil.rmtree(failed.folder)
    assert names(tmp_path) == []


def test_a_start_whose_process_was_killed_has_failed(tmp_path: Path) -> None:
    request = begun(tmp_path, {"phase": "downloading a"})
    request.progress.write_text(request.progress.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))
    assert names(tmp_path) == [("tiny", "its process ended without a word", True)]
