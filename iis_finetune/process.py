"""The only module that starts programs: own sessions, signals by process id, time limits."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Child = subprocess.Popen[bytes]
STATUS, STARTED = 0, 19  # fields of /proc/PID/stat, counted from the one after the name (proc_pid_stat(5))
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
GUARD = Path(__file__).parent / "probe" / "guard.py"
SCRATCH = "iis-finetune-scratch-"  # how the name of a scratch folder begins, and of no other folder
NEW_SECONDS = 60.0  # a folder this young may not be locked yet
LEAVE_SECONDS = 3.0  # what an ended program gets to leave in order


@dataclass(frozen=True)
class Completed:
    """What a program that was waited for left behind; `returncode` is None when it ran out of time."""

    returncode: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Identity:
    """A process that cannot be taken for another one: its number, its start (clock ticks since the boot), the boot."""

    pid: int
    started: int
    boot: str


@dataclass(frozen=True)
class Launch:
    """A program to start: its words, its whole environment, its folder, the file that takes all it prints."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path


def capture(
    command: Sequence[str], timeout_seconds: float, environment: Mapping[str, str] | None = None
) -> Completed | None:
    """Run a short program to its end; None when there is no such program."""
    program = shutil.which(command[0], path=environment.get("PATH") if environment else None)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            timeout=timeout_seconds,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return Completed(None, _text(late.stdout), _text(late.stderr))
    except OSError as error:
        return Completed(126, "", error.strerror or str(error))
    return Completed(done.returncode, _text(done.stdout), _text(done.stderr))


def _text(data: bytes | str | None) -> str:
    return data.decode(errors="replace") if isinstance(data, bytes) else data or ""


def start(launch: Launch) -> Child:
    """Start a program in a session of its own, so that neither a closed terminal nor Ctrl-C reaches it."""
    with launch.log.open("ab") as log:
        return subprocess.Popen(
            list(launch.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=launch.folder,
            env=dict(launch.environment),
            start_new_session=True,
        )


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder, locked while it is needed; those that a killed process left behind are put away first."""
    for left in (parent or Path(tempfile.gettempdir())).glob(f"{SCRATCH}*/"):
        with contextlib.suppress(OSError):  # another user's, in use, or gone by now
            if time.time() - left.stat().st_mtime > NEW_SECONDS:
                with locked(left, wait=False):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent) as made, locked(Path(made)):
        yield Path(made)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Alone with a folder; the lock ends with this process, however it does. Without `wait` OSError if it is taken."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def ended(child: Child, seconds: float) -> int | None:
    """A child's exit code; None when it has not ended in that time: the kernel may hold even a killed one."""
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def bound(command: Sequence[str]) -> list[str]:
    """The words that run a program which ends, with all that it started, when this process does, however it does."""
    return [sys.executable, "-IS", str(GUARD), str(os.getpid()), *command]


def ends_alike() -> None:
    """Let SIGTERM and a hang-up end a verb as Ctrl-C does: what it made halfway is put away; nohup stays in force."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def attached(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> int | None:
    """Run a program on this terminal until it ends (chat, serve); its exit code, None when this process was to end."""
    child = subprocess.Popen(bound(command), env=dict(environment), cwd=folder)
    who = identity(child.pid)
    try:
        return child.wait()
    except KeyboardInterrupt:  # typed at the terminal, the child got it too
        return None
    finally:
        if who and child.returncode is None:
            end(tree(who), LEAVE_SECONDS)
            child.wait()


def boot() -> str:
    """The kernel's name for the time since this machine was last started."""
    return BOOT_ID.read_text().strip()


def identity(pid: int) -> Identity | None:
    """Who a process is; None when it is gone."""
    fields = _stat(pid)
    return Identity(pid, int(fields[STARTED]), boot()) if fields else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name; a start in ticks never drifts with the clock."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def alive(who: Identity | None) -> bool:
    """Whether this very process still runs: not another one with its number, not before a reboot, not a zombie."""
    if who is None or who.boot != boot():
        return False
    fields = _stat(who.pid)
    return bool(fields) and int(fields[STARTED]) == who.started and fields[STATUS] not in "ZX"


def tree(who: Identity) -> list[Identity]:
    """A process and all its descendants, oldest first; torchrun's workers sit in groups of their own."""
    if not alive(who):
        return []
    import psutil  # 30 ms that `check` and `plan` need not pay

    try:
        children = psutil.Process(who.pid).children(recursive=True)
    except psutil.Error:
        children = []
    found = (identity(child.pid) for child in children)
    return [who, *(child for child in found if child and alive(child))]


def send(processes: Iterable[Identity], number: signal.Signals) -> None:
    """Signal each process that still is the one meant."""
    for who in processes:
        if alive(who):
            with contextlib.suppress(ProcessLookupError):  # it ended in between
                os.kill(who.pid, number)


def wait_gone(processes: Sequence[Identity], seconds: float) -> list[Identity]:
    """Wait until all are gone; those that are left when the time is over."""
    deadline = time.monotonic() + seconds
    left = [who for who in processes if alive(who)]
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [who for who in left if alive(who)]
    return left


def end(processes: Sequence[Identity], grace_seconds: float) -> None:
    """Ask them to end, wait, then kill what is left, by id."""
    send(processes, signal.SIGTERM)
    left = wait_gone(processes, grace_seconds)
    send(left, signal.SIGKILL)
    wait_gone(left, 5)
