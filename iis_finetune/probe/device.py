"""Try what a training needs on a device; started as a child, because a card without kernels ends it or hangs.

Usage: python -P device.py '[{"job": "matmul", "precision": "bf16", "device": "cuda:0"}, ...]'
Jobs: matmul; lora, its two products with narrow and odd shapes; memory, with gib; attention, with "path" math,
mem-efficient, flash, sdpa, eager; all_reduce, with rank, processes, folder, seconds. One JSON line a case, as soon as
it is done: {"state": "fine", "unavailable" or "failed", "said", "errors"}; an error is the largest difference divided
by the largest value of the reference, which the CPU computes.
"""

import datetime
import json
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BACKENDS = {
    "math": [SDPBackend.MATH],
    "mem-efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
}
MATRIX = 512
RANKS = (8, 16, 32, 64)  # of LoRA: hipBLASLt read past such narrow matrices on RDNA 4 (ROCm/legacy-rocm-build#6413)
SIZES = (512, 1023)  # an odd one: torch's linear was silently wrong on gfx1201 (pytorch/pytorch#189375)
SHAPE = (1, 4, 256, 64)  # batch, heads, tokens, size of a head
REDUCED = 4 * 2**20  # numbers; 16 MiB, so that the cards copy in earnest
UNAVAILABLE = re.compile(r"no available kernel|no viable backend", re.IGNORECASE)


def matmul(case: dict[str, Any]) -> list[float]:
    """One product in the precision against the same product in fp64 on the CPU."""
    made = torch.Generator().manual_seed(1)
    precision = PRECISIONS[case["precision"]]
    left, right = (torch.randn(MATRIX, MATRIX, generator=made).to(precision) for _ in range(2))
    found = left.to(case["device"]) @ right.to(case["device"])
    return [difference(found, left.double() @ right.double())]


def lora(case: dict[str, Any]) -> list[float]:
    """LoRA's two products forward and backward, in every rank and size, against fp64 on the CPU; the worst of each."""
    made = torch.Generator().manual_seed(3)
    precision, found = PRECISIONS[case["precision"]], []
    for rank, size in ((rank, size) for rank in RANKS for size in SIZES):
        shapes = ((MATRIX, size), (rank, size), (size, rank), (MATRIX, size))
        inputs = [torch.randn(shape, generator=made).to(precision) for shape in shapes]
        expected = gradients(two_products, [each.double() for each in inputs])
        pairs = zip(gradients(two_products, [each.to(case["device"]) for each in inputs]), expected, strict=True)
        found.append([difference(one, other) for one, other in pairs])
    return [max(each[0] for each in found), max(error for each in found for error in each[1:])]


def two_products(rows: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return rows @ down.T @ up.T


def gradients(compute: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and the gradients of all inputs but the last, which is the gradient of the output."""
    given = [each.detach().requires_grad_() for each in inputs[:-1]]
    output = compute(*given)
    output.backward(inputs[-1])
    return [output.detach(), *(each.grad for each in given if each.grad is not None)]


def memory(case: dict[str, Any]) -> list[float]:
    """Whether the driver gives a device that computes in the computer's memory what the kernel says it has."""
    given = torch.cuda.mem_get_info(case["device"])[1] / 2**30
    if given < 0.9 * case["gib"]:
        raise RuntimeError(f"the driver gives {given:.1f} of {case['gib']:.1f} GiB")
    return []


def attention(case: dict[str, Any]) -> list[float]:
    """Causal attention forward and backward in one form against the math form in fp32."""
    made = torch.Generator().manual_seed(2)
    precision = PRECISIONS[case["precision"]]
    inputs = [torch.randn(SHAPE, generator=made).to(precision) for _ in range(4)]
    expected = forward_and_backward("math", [each.float() for each in inputs])
    found = forward_and_backward(case["path"], [each.to(case["device"]) for each in inputs])
    errors = [difference(one, other) for one, other in zip(found, expected, strict=True)]
    return [errors[0], max(errors[1:])]


def forward_and_backward(path: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    compute = eager if path == "eager" else partial(scaled_dot_product_attention, is_causal=True)
    with sdpa_kernel(BACKENDS[path]) if path in BACKENDS else nullcontext():  # sdpa: whatever torch picks
        return gradients(compute, inputs)


def eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As transformers does it for `disabled`: the scores in the model's own precision, the softmax in fp32."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value


def all_reduce(case: dict[str, Any]) -> list[float]:
    """Sum each process's number over all of them, twice: the first one sets the connections up."""
    from torch import distributed

    rank, processes = case["rank"], case["processes"]
    device = torch.device(case["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{Path(case['folder']).resolve() / 'meeting'}",
        rank=rank,
        world_size=processes,
        timeout=datetime.timedelta(seconds=case["seconds"]),
    )
    for _ in range(2):
        numbers = torch.full((REDUCED,), float(rank + 1), device=device)
        distributed.all_reduce(numbers)
    expected = processes * (processes + 1) / 2
    error = difference(numbers, torch.full((REDUCED,), expected))
    distributed.destroy_process_group()
    return [error]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest value expected; NaN and infinity stay what they are."""
    return float((found.cpu().double() - expected.double()).abs().max() / expected.double().abs().max())


JOBS = {"matmul": matmul, "lora": lora, "memory": memory, "attention": attention, "all_reduce": all_reduce}


def answer(case: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"state": "fine", "said": "", "errors": JOBS[case["job"]](case)}
    except RuntimeError as error:
        said = " ".join(str(error).split())
        return {"state": "unavailable" if UNAVAILABLE.search(said) else "failed", "said": said, "errors": []}


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        sys.stdout.write("\n" + json.dumps(answer(each)) + "\n")
        sys.stdout.flush()
