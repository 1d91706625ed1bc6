from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from conftest import left_after, marked

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


PARENT = """
import os, signal, sys
from iis_finetune import process
process.ends_alike()
sleep = "import time; time.sleep(60)"
code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
code += f"; print('up', flush=True); {sleep}"
from pathlib import Path
process.attached([sys.executable, "-c", code], os.environ, Path("/"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_bound_program_and_all_it_started_end_with_the_parent_however_it_ends(number: signal.Signals) -> None:
    mark = {"IIS_TEST_MARK": str(uuid.uuid4())}
    words = [sys.executable, "-c", PARENT]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, **mark}) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        assert len(marked(mark)) == 4  # parent, guard, program, a child of its own session
        parent.send_signal(number)
        parent.wait(5)
    assert left_after(mark, 5) == []


def test_a_bound_program_gives_its_output_its_exit_code_and_its_signal(tmp_path: Path) -> None:
    done = process.capture(process.bound([sys.executable, "-c", "print('said'); raise SystemExit(7)"]), 20)
    assert done is not None and (done.returncode, done.stdout) == (7, "said\n")
    killed = process.capture(process.bound(["sh", "-c", "kill -9 $$"]), 20)
    assert killed is not None and killed.returncode == -signal.SIGKILL
    missing = process.capture(process.bound(["no-such-program-here"]), 20)
    assert missing is not None and (missing.returncode, missing.stderr[:20]) == (127, "no-such-program-here")
    # whoever asked has ended before the guard began: nothing is started
    words = process.bound(["touch", str(tmp_path / "started")])
    words[3] = "1"
    assert process.capture(words, 20) is not None and not (tmp_path / "started").exists()


def test_a_scratch_folder_that_a_killed_process_left_is_put_away_and_a_living_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import time; from iis_finetune import process\n"
        "with process.scratch_folder() as folder: print(folder, flush=True); time.sleep(60)"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    others = tmp_path / "iis-finetune-notes"
    others.mkdir()
    os.utime(others, (1, 1))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        os.utime(folder, (1, 1))
        with process.scratch_folder() as mine:
            assert folder.is_dir() and mine.parent == tmp_path
        child.kill()
    assert folder.is_dir() and not mine.exists()
    with process.scratch_folder():
        assert not folder.exists() and others.is_dir()
