"""Find the accelerators from the kernel's files and one NVIDIA program; it runs before anything is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from iis_finetune.wheels import Accelerator, Devices

AMD_VENDOR = 0x1002
# An integrated GPU beside a card has a carve-out below this; nobody means to train on it.
LEAST_DEVICE_MEMORY_BYTES = 4 * 2**30


def architecture_name(version: int) -> str:
    """KFD's number as a gfx name: 90006 is gfx906, 90010 is gfx90a, 110501 is gfx1151."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _properties(file: Path) -> dict[str, int]:
    try:
        pairs = (line.split() for line in file.read_text(encoding="ascii").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    except (OSError, UnicodeDecodeError):
        return {}


def _local_memory_bytes(node: Path) -> int:
    return sum(_properties(file).get("size_in_bytes", 0) for file in node.glob("mem_banks/*/properties"))


def amd_devices(root: Path) -> Devices | None:
    """AMD devices in the kernel's own list, which no HSA_OVERRIDE_GFX_VERSION changes."""
    found = []
    for node in sorted(root.glob("sys/class/kfd/kfd/topology/nodes/*"), key=lambda node: node.name.zfill(4)):
        facts = _properties(node / "properties")
        if facts.get("vendor_id") == AMD_VENDOR and facts.get("simd_count", 0) and facts.get("gfx_target_version"):
            found.append((architecture_name(facts["gfx_target_version"]), _local_memory_bytes(node)))
    cards = [name for name, memory in found if memory >= LEAST_DEVICE_MEMORY_BYTES] or [name for name, _ in found]
    return Devices("rocm", len(cards), tuple(cards)) if cards else None


def _ask_nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    command = [program, "--query-gpu=compute_cap,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def nvidia_devices(root: Path, answer: str) -> Devices | None:
    """NVIDIA devices from the driver's files and, where it answers, nvidia-smi (old ones do not know compute_cap)."""
    rows = re.findall(r"^\s*(\d+\.\d+),\s*(\d+)\.", answer, flags=re.MULTILINE)
    try:
        kernel = re.search(r"\s(\d{3})\.\d+", (root / "proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        kernel = None
    if not kernel and not rows:
        return None
    driver = int(rows[0][1]) if rows else int(kernel[1]) if kernel else None
    oldest = min((float(capability) for capability, _ in rows), default=None)
    count = len(rows) or len(list(root.glob("proc/driver/nvidia/gpus/*"))) or 1
    return Devices("cuda", count, driver=driver, compute_capability=oldest)


def detect(wanted: Accelerator | None, root: Path = Path("/")) -> Devices:
    """Devices of the accelerator that is wanted, or of the best one here; a wanted one that is not here has count 0."""
    if wanted == "cpu":
        return Devices("cpu")
    cuda = nvidia_devices(root, _ask_nvidia_smi() if root == Path("/") else "") if wanted != "rocm" else None
    rocm = amd_devices(root) if wanted != "cuda" else None
    both = "NVIDIA and AMD cards are both here; ACCEL=rocm chooses the AMD ones" if cuda and rocm else ""
    if cuda:
        return Devices("cuda", cuda.count, driver=cuda.driver, compute_capability=cuda.compute_capability, note=both)
    return rocm or Devices(wanted or "cpu")
