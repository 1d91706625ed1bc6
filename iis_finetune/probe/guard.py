"""Run a program that ends, with all that it started, when the process that asked for it ends, however that was.

Usage: python -IS guard.py PARENT_PID PROGRAM WORD ...

It stays the program's parent: the kernel tells it of its own parent's end and gives it the program's orphans.
Ctrl-C is the program's to answer. Exits as the program did.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

SET_DEATH_SIGNAL, BECOME_REAPER = 1, 36  # prctl(2)
GRACE_SECONDS, KILL_SECONDS = 2.0, 2.0
ASKS_TO_END = (signal.SIGTERM, signal.SIGHUP)
prctl = ctypes.CDLL(None).prctl


def descendants() -> set[int]:
    """The living processes below this one; -S leaves psutil out, and with it 30 ms."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - names, not paths
        try:
            with open(f"/proc/{entry}/stat", errors="replace") as file:  # noqa: PTH123
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:  # it ended in between
            continue
        if state not in "ZX":
            parents[int(entry)] = int(parent)
    found: set[int] = set()
    while more := {each for each, parent in parents.items() if parent in {os.getpid(), *found}} - found:
        found |= more
    return found


def reap(program: int) -> int | None:
    """Take in what has ended; the program's own wait status once it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):  # none is left
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = ended[1] if ended[0] == program else status
    return status


def end_all(program: int) -> int | None:
    status = None
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        until, asked = time.monotonic() + seconds, set[int]()
        while (left := descendants()) and time.monotonic() < until:
            for each in left - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, number)
            asked |= left
            time.sleep(0.02)
            status = reap(program) or status
    return status


def run(parent: int, words: list[str]) -> int:
    """The wait status of the program, or of the signal that ended all."""
    heard = {signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT, *ASKS_TO_END}
    heard -= {each for each in heard if signal.getsignal(each) is signal.SIG_IGN}  # nohup
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    prctl(BECOME_REAPER, 1)
    prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the kernel was asked
        return signal.SIGTERM
    program = os.fork()
    if program == 0:
        prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            os.execvp(words[0], words)  # noqa: S606
        except OSError as error:
            sys.stderr.write(f"{words[0]}: {error.strerror}\n")
            os._exit(127)
    while (number := signal.sigwait(heard)) not in ASKS_TO_END:
        if number == signal.SIGCHLD and (status := reap(program)) is not None:
            end_all(program)
            return status
    return end_all(program) or number


if __name__ == "__main__":
    result = run(int(sys.argv[1]), sys.argv[2:])
    if os.WIFSIGNALED(result):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with contextlib.suppress(OSError):  # SIGKILL cannot be set
            signal.signal(os.WTERMSIG(result), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(result))
    sys.exit(os.WEXITSTATUS(result))
