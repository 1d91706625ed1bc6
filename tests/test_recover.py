from __future__ import annotations

from typing import Any

import pytest

from iis_finetune import recover
from iis_finetune.recover import Failure, Situation, decide

NAN = Failure("not finite", 7, "the gradient norm is nan")
OOM = Failure("out of memory", 3, "CUDA out of memory")
STALL = Failure("stall", 9, "no sign of life for 900 s")
KILLED = Failure("killed", 5, "killed by SIGKILL from outside")
CRASH = Failure("crash", 5, "ValueError: a broken row")
LATER_CRASH = Failure("crash", 6, "ValueError: a broken row")
FULL = Failure("disk full", 5, "No space left on device")
ALONE = Failure("left alone", None, "Timed out after 601 seconds waiting for clients. 1/2 clients joined.")
REFUSED = Failure("refused", None, "ValueError: unknown template")


def case(failure: Failure, **known: Any) -> Situation:
    return Situation(failure, **known)


GOES_ON: dict[str, tuple[Situation, dict[str, Any], float]] = {
    "nan in fp16: fp32": (case(NAN, precision="fp16"), {"precision": "fp32"}, 2),
    "nan in bf16: fp32": (case(NAN, precision="bf16"), {"precision": "fp32"}, 2),
    "nan on Strix Halo: the other attention first": (
        case(NAN, precision="bf16", arch="gfx1151", attention="sdpa"),
        {"attention": "disabled"},
        2,
    ),
    "nan on Strix Halo with plain attention: fp32": (
        case(NAN, precision="bf16", arch="gfx1151", attention="disabled", before=(NAN,)),
        {"precision": "fp32"},
        2,
    ),
    "nan in fp32, the first time: once more": (case(NAN), {}, 2),
    "memory: half": (case(OOM, micro_batch=8), {"micro_batch": 4}, 2),
    "memory a third time: half of half": (case(OOM, micro_batch=2, before=(OOM, OOM)), {"micro_batch": 1}, 2),
    "memory with an odd micro-batch: its largest divisor": (case(OOM, micro_batch=9), {"micro_batch": 3}, 2),
    "memory with a prime micro-batch": (case(OOM, micro_batch=7), {"micro_batch": 1}, 2),
    "stall: once more": (case(STALL), {}, 2),
    "a stall after progress is a first one": (case(STALL, before=(STALL,), attempts=1), {}, 2),
    "killed: longer pauses": (case(KILLED, before=(KILLED,), attempts=2), {}, 5),
    "killed ten times with progress between": (case(KILLED, before=(KILLED,) * 10, attempts=1), {}, 2),
    "crash: once more": (case(CRASH), {}, 2),
    "the same crash at another step": (case(LATER_CRASH, before=(CRASH,), attempts=2), {}, 5),
}
GIVES_UP: dict[str, tuple[Situation, str]] = {
    "nan in fp32 again": (case(NAN, before=(NAN,), attempts=2), "lower learning_rate"),
    "nan after fp32 was tried": (case(NAN, before=(NAN,), precision="fp32"), "already in fp32"),
    "memory at micro-batch 1": (case(OOM, micro_batch=1), "cutoff_len"),
    "a second stall": (case(STALL, before=(STALL,), attempts=2), "IOMMU"),
    "killed three times without progress": (case(KILLED, before=(KILLED, KILLED), attempts=3), "3 attempts in a row"),
    "the same crash twice": (case(CRASH, before=(CRASH,), attempts=1), "twice at the same step"),
    "a full disk": (case(FULL, attempts=3), "free some space"),
    "refused before the first step": (case(REFUSED), "before the first step"),
    "one of several nodes changes nothing alone": (case(OOM, micro_batch=8, may_change=False), "with micro-batch 4"),
    "the other nodes did not come": (case(ALONE), "resume the run on every node"),
    "told to stop": (case(KILLED, may_recover=False), "kit.on_failure"),
}


@pytest.mark.parametrize(("now", "change", "pause"), GOES_ON.values(), ids=GOES_ON.keys())
def test_it_goes_on(now: Situation, change: dict[str, Any], pause: float) -> None:
    action = decide(now)
    assert (action.resume, dict(action.change), action.pause_seconds) == (True, change, pause)
    assert action.why.startswith(now.failure.what)


@pytest.mark.parametrize(("now", "words"), GIVES_UP.values(), ids=GIVES_UP.keys())
def test_it_gives_up_and_says_what_would_help(now: Situation, words: str) -> None:
    action = decide(now)
    assert not action.resume and words in action.why and now.failure.what in action.why


def test_pauses_grow_and_end_at_five_minutes() -> None:
    assert [recover.pause_seconds(number) for number in (1, 2, 3, 4, 5, 20)] == [2, 5, 10, 20, 40, 300]


TEXTS = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": "out of memory",
    "torch.OutOfMemoryError: HIP out of memory. Tried to allocate": "out of memory",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory": (
        "out of memory"
    ),
    "RuntimeError: DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes": "out of memory",
    "x\nMemoryError\n": "out of memory",
    "OSError: [Errno 28] No space left on device": "disk full",
    "SafetensorError: Error while serializing: IoError(Os { code: 28 }) (os error 28)": "disk full",
    "RuntimeError: [enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0": "disk full",
}


@pytest.mark.parametrize(("text", "cause"), TEXTS.items())
def test_the_words_of_a_log_name_the_cause(text: str, cause: str) -> None:
    found = recover.cause_in(f"step 1\n{text}\nmore")
    assert found is not None and found[0] == cause


def test_ordinary_words_name_no_cause() -> None:
    assert recover.cause_in("ValueError: memory of an out-of-date kind\nINFO: space left: 3 GB") is None
