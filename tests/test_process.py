from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from iis_finetune import process


def test_a_program_that_is_not_there_is_none_and_a_slow_one_has_no_exit_code() -> None:
    assert process.capture(["no-such-program-here"], 1) is None
    late = process.capture([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(30)"], 1)
    assert late is not None and late.returncode is None and late.stdout == "1\n"


def test_a_started_program_has_a_session_of_its_own_and_survives_a_hang_up(tmp_path: Path) -> None:
    code = "import os, time; print(os.getsid(0) == os.getpid(), flush=True); time.sleep(60)"
    log = tmp_path / "log"
    child = process.start(process.Launch([sys.executable, "-c", code], {}, tmp_path, log))
    who = process.identity(child.pid)
    assert who is not None
    deadline = time.monotonic() + 10
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.read_text() == "True\n"
    process.end([who], 5)
    assert not process.alive(who)
    child.wait()


def test_the_whole_tree_is_found_and_ended_even_when_a_child_has_its_own_group() -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        who = process.identity(child.pid)
        assert who is not None
        family = process.tree(who)
        assert len(family) == 2
        process.end(family, 5)
        assert not any(process.alive(member) for member in family)


def test_what_ignores_the_request_is_killed() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        who = process.identity(child.pid)
        assert who is not None
        process.end([who], 0.5)
        assert child.wait() == -signal.SIGKILL
