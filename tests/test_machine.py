import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from conftest import RECIPE, ROOT, Command, run

from iis_finetune import machine
from iis_finetune.decision import Decision
from iis_finetune.errors import ProblemsFound
from iis_finetune.machine import Machine, computer, knowledge, profile
from iis_finetune.machine.drivers import amd_devices, gfx_name

FIXTURES = Path(__file__).parent / "fixtures" / "machines"
PROFILES = list(machine.profiles())


def grow(root: Path, name: str) -> Path:
    """A file tree from a text: `> path` starts a file, what follows is in it."""
    _, *files = (FIXTURES / f"{name}.txt").read_text().split("\n> ")
    for path, _, text in (file.partition("\n") for file in files):
        write(root, path, text)
    return root


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def detect(root: Path, **environment: str) -> Machine:
    return machine.detect(root, environment)


def values(decisions: list[Decision]) -> dict[str, str]:
    return {decision.name.removeprefix("environment."): decision.value for decision in decisions}


@pytest.mark.parametrize(
    ("fixture", "devices", "left_out"),
    [
        ("a_two_mi50", [("gfx906", 31.98), ("gfx906", 31.98)], []),
        ("b_mi50_beside_renoir", [("gfx906", 31.98)], ["gfx90c"]),
        ("c_mi300x", [("gfx942", 191.98)], []),
        ("d_mi350x", [("gfx950", 287.98)], []),
        ("e_mixed", [("gfx90a", 63.98)], ["gfx1151"]),
        ("strix_halo", [("gfx1151", 62.5)], []),
        ("mi50_16gb", [("gfx906", 15.98)], []),
        ("renoir", [], ["gfx90c"]),
        ("unserved", [], []),
    ],
)
def test_the_usable_amd_devices_of_a_host_are_found(
    tmp_path: Path, fixture: str, devices: list[tuple[str, float]], left_out: list[str]
) -> None:
    found = detect(grow(tmp_path, fixture))
    assert [(one.arch, one.memory_gib) for one in found.devices] == devices
    assert [one.arch for one, _ in found.left_out] == left_out
    assert found.accelerator == ("rocm" if devices else "cpu")


def test_an_nvidia_node_in_kfd_is_no_amd_device(tmp_path: Path) -> None:
    found = amd_devices(grow(tmp_path, "e_mixed"))
    assert [(one.index, one.arch) for one in found] == [(0, "gfx1151"), (1, "gfx90a")]
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/2/properties"
    node.write_text(node.read_text().replace("gfx_target_version 0", "gfx_target_version 90000"))
    assert len(amd_devices(tmp_path)) == 2


def test_node_10_comes_after_node_2(tmp_path: Path) -> None:
    root = grow(tmp_path, "a_two_mi50")
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    (nodes / "3").rename(nodes / "10")
    assert [one.pci for one in detect(root).devices] == ["0000:05:00.0", "0000:87:00.0"]


def test_two_mi50_are_described_as_their_driver_names_them(tmp_path: Path) -> None:
    found = detect(grow(tmp_path, "a_two_mi50"))
    assert [one.uuid for one in found.devices] == ["GPU-65ad06a42ea03e3d", "GPU-65ad06a42ea03e3e"]
    assert [one.pci for one in found.devices] == ["0000:05:00.0", "0000:87:00.0"]
    assert str(found.devices[0]) == "gfx906 (AMD Instinct MI50 or MI60)"
    assert (found.cpu_count, found.memory_gib, found.cpu_flags) == (48, 125.0, ("avx",))
    assert (found.kfd_usable, found.container, found.wsl, found.problems) == (True, False, False, ())


def test_a_card_without_a_unique_id_in_kfd_takes_the_one_of_drm(tmp_path: Path) -> None:
    [device] = detect(grow(tmp_path, "mi50_16gb")).devices
    assert (device.uuid, device.pci) == ("GPU-65acfd4172e6213d", "0001:65:01.1")


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (90006, "gfx906"),
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (100300, "gfx1030"),
        (110501, "gfx1151"),
        (120001, "gfx1201"),
        (0, None),
        (91600, None),
        (90099, None),
    ],
)
def test_an_architecture_is_decoded_or_refused(version: int, name: str | None) -> None:
    assert gfx_name(version) == name


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, [0, 1]),
        ({"ROCR_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-65ad06a42ea03e3e"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, [1, 0]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, [1]),  # HIP counts what ROCr leaves
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"HIP_VISIBLE_DEVICES": "0,0"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "0,7,1"}, [0]),  # the driver stops at the first one that it does not know
    ],
)
def test_the_users_own_variables_are_a_filter(tmp_path: Path, environment: Mapping[str, str], kept: list[int]) -> None:
    found = machine.detect(grow(tmp_path, "a_two_mi50"), environment)
    assert [one.index for one in found.devices] == kept
    assert sorted(kept + [one.index for one, _ in found.left_out]) == [0, 1]
    assert all(reason for _, reason in found.left_out)


def test_a_filter_that_names_no_device_is_reported_and_an_empty_one_is_not(tmp_path: Path) -> None:
    root = grow(tmp_path, "a_two_mi50")
    [problem] = detect(root, ROCR_VISIBLE_DEVICES="7").problems
    assert "ROCR_VISIBLE_DEVICES names '7'" in problem.what
    assert detect(root, ROCR_VISIBLE_DEVICES="").problems == detect(root, HIP_VISIBLE_DEVICES="-1").problems == ()


def test_hidden_cards_stay_hidden_from_a_cpu_run(tmp_path: Path) -> None:
    found = detect(grow(tmp_path, "a_two_mi50"), HIP_VISIBLE_DEVICES="")
    assert values(machine.decide_environment(found))["HIP_VISIBLE_DEVICES"] == "-1"
    assert "ROCR_VISIBLE_DEVICES" not in values(machine.decide_environment(found))


def test_the_chosen_cards_are_named_by_uuid_and_no_more_than_there_are_processes(tmp_path: Path) -> None:
    found = detect(grow(tmp_path, "a_two_mi50"), HIP_VISIBLE_DEVICES="1,0")
    both = values(machine.decide_environment(found, 2))
    assert both["ROCR_VISIBLE_DEVICES"] == "GPU-65ad06a42ea03e3e,GPU-65ad06a42ea03e3d"
    assert values(machine.decide_environment(found, 1))["ROCR_VISIBLE_DEVICES"] == "GPU-65ad06a42ea03e3e"


@pytest.fixture
def open_root() -> Iterator[Path]:
    """A folder that another user can enter: pytest's own are shut."""
    root = Path(tempfile.mkdtemp(prefix="iis-machine-"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


def as_nobody(root: Path) -> Machine:
    """Detect without the rights of root, which may open anything."""
    if os.geteuid() != 0:
        return detect(root)
    os.seteuid(65534)
    try:
        return detect(root)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("shut", ["dev/kfd", "dev/dri/renderD129"])
def test_a_device_without_permission_is_a_problem_with_the_line_that_mends_it(open_root: Path, shut: str) -> None:
    grow(open_root, "a_two_mi50")
    for path in ("dev/kfd", "dev/dri/renderD128", "dev/dri/renderD129"):
        (open_root / path).chmod(0o666)
    assert as_nobody(open_root).kfd_usable is True
    (open_root / shut).chmod(0o644 if os.geteuid() == 0 else 0o444)
    found = as_nobody(open_root)
    [problem] = found.problems
    assert (found.kfd_usable, problem.exit_code) == (False, 3)
    assert f"/{shut}" in problem.what
    assert problem.fix.startswith("sudo usermod -aG render,video $USER")
    assert len(found.devices) == 2


def test_a_container_without_the_device_is_told_how_to_start(tmp_path: Path) -> None:
    root = grow(tmp_path, "a_two_mi50")
    (root / "dev/kfd").unlink()
    (root / ".dockerenv").touch()
    found = detect(root)
    assert found.container
    assert "--device=/dev/kfd" in found.problems[0].fix


def test_an_amd_card_without_its_driver_is_a_warning(tmp_path: Path) -> None:
    [problem] = detect(grow(tmp_path, "unserved")).problems
    assert "0000:05:00.0" in problem.what
    assert "0000:05:00.1" not in problem.what  # its sound output
    assert problem.severity == "warning"


def test_wsl_is_noticed(tmp_path: Path) -> None:
    found = detect(grow(tmp_path, "wsl"))
    assert found.wsl
    assert "WSL" in found.problems[0].what


@pytest.mark.parametrize(
    ("files", "memory_gib", "cpu_count"),
    [
        ({}, 125.0, 48),
        ({"sys/fs/cgroup/user.slice/memory.max": "max", "sys/fs/cgroup/user.slice/cpu.max": "max 100000"}, 125.0, 48),
        ({"sys/fs/cgroup/user.slice/memory.max": str(8 << 30)}, 8.0, 48),
        ({"sys/fs/cgroup/memory.max": str(16 << 30), "sys/fs/cgroup/cpu.max": "250000 100000"}, 16.0, 2),
        (
            {
                "proc/self/cgroup": "6:pids:/other\n5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/memory/other/memory.limit_in_bytes": str(1 << 30),
                "sys/fs/cgroup/memory/docker/memory.limit_in_bytes": str(4 << 30),
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "9223372036854771712",
            },
            4.0,
            48,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            125.0,
            4,
        ),
        ({"proc/self/cgroup": "4:cpu:/x\n", "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1"}, 125.0, 48),
    ],
)
def test_the_limits_of_the_cgroup_and_its_parents_bind(
    tmp_path: Path, files: Mapping[str, str], memory_gib: float, cpu_count: int
) -> None:
    root = grow(tmp_path, "a_two_mi50")
    for path, text in files.items():
        write(root, path, text)
    found = detect(root)
    assert (found.memory_gib, found.cpu_count) == (memory_gib, cpu_count)


NEW_SMI = """#!/bin/sh
echo "0, NVIDIA GeForce RTX 3090, 24576, 8.6, 550.54.14, GPU-aaaa1111, 00000000:01:00.0, 318"
echo "1, NVIDIA GeForce RTX 3090, 24576, 8.6, 550.54.14, GPU-bbbb2222, 00000000:02:00.0, 318"
"""
OLD_SMI = """#!/bin/sh
case "$1" in *compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2;; esac
echo "0, Tesla V100-SXM2-32GB, 32510, 418.39, GPU-cccc3333, 00000000:05:00.0"
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH to put an nvidia-smi into."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return folder / "nvidia-smi"


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_nvidia_smi_tells_the_cards_and_the_memory_that_the_driver_leaves(tmp_path: Path, smi: Path) -> None:
    program(smi, NEW_SMI)
    found = detect(grow(tmp_path / "root", "nvidia"))
    assert (found.accelerator, found.driver, found.arch) == ("cuda", "550.54.14", "sm_86")
    assert [(one.uuid, one.memory_gib) for one in found.devices] == [("GPU-aaaa1111", 23.69), ("GPU-bbbb2222", 23.69)]
    chosen = values(machine.decide_environment(found, 2))
    assert chosen["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa1111,GPU-bbbb2222"


@pytest.mark.parametrize(
    ("value", "kept"), [("1", [1]), ("GPU-bbbb", [1]), ("", []), ("GPU-bbbb2222,0", [1, 0]), ("MIG-1", [])]
)
def test_cuda_visible_devices_is_a_filter(tmp_path: Path, smi: Path, value: str, kept: list[int]) -> None:
    program(smi, NEW_SMI)
    found = detect(grow(tmp_path / "root", "nvidia"), CUDA_VISIBLE_DEVICES=value)
    assert [one.index for one in found.devices] == kept
    if not kept:
        assert values(machine.decide_environment(found))["CUDA_VISIBLE_DEVICES"] == ""


def test_an_old_nvidia_smi_is_asked_again_and_the_name_tells_the_architecture(tmp_path: Path, smi: Path) -> None:
    program(smi, OLD_SMI)
    found = detect(grow(tmp_path / "root", "nvidia"))
    assert [(one.arch, one.memory_gib, one.uuid) for one in found.devices] == [("sm_70", 31.75, "GPU-cccc3333")]
    assert found.driver == "418.39"


def test_a_card_that_reports_no_memory_computes_in_the_systems(tmp_path: Path, smi: Path) -> None:
    program(smi, '#!/bin/sh\necho "0, NVIDIA GB10, [N/A], 12.1, 580.95, GPU-dddd, 0000000F:01:00.0, [N/A]"\n')
    [device] = detect(grow(tmp_path / "root", "nvidia")).devices
    assert (device.arch, device.memory_gib, device.integrated) == ("sm_121", 125.0, True)


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 9\n", None])
def test_a_driver_without_a_working_nvidia_smi_is_a_warning(tmp_path: Path, smi: Path, text: str | None) -> None:
    if text:
        program(smi, text)
    elif shutil.which("nvidia-smi"):
        pytest.skip("this computer has an nvidia-smi of its own")
    found = detect(grow(tmp_path / "root", "nvidia"))
    assert found.accelerator == "cpu"
    assert [problem.severity for problem in found.problems] == ["warning"]


def test_nvidia_smi_is_not_started_without_the_driver(tmp_path: Path, smi: Path) -> None:
    program(smi, f"#!/bin/sh\ntouch {tmp_path}/started\n")
    detect(grow(tmp_path / "root", "a_two_mi50"))
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("build", "accelerator"), [("2.9.1+rocm6.3", "rocm"), ("2.13.0+cu130", "cuda")])
def test_beside_each_other_the_installed_torch_chooses_the_vendor(
    tmp_path: Path, smi: Path, monkeypatch: pytest.MonkeyPatch, build: str, accelerator: str
) -> None:
    program(smi, NEW_SMI)
    root = grow(grow(tmp_path / "root", "nvidia"), "a_two_mi50")
    (tmp_path / "site" / f"torch-{build}.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    found = detect(root)
    assert (found.accelerator, found.torch_build, len(found.left_out)) == (accelerator, build, 2)


def test_of_different_cards_the_kind_with_the_most_memory_is_chosen(tmp_path: Path) -> None:
    root = grow(tmp_path, "a_two_mi50")
    node = root / "sys/class/kfd/kfd/topology/nodes/3/properties"
    node.write_text(node.read_text().replace("90006", "100302"))
    write(root, "sys/class/drm/renderD129/device/mem_info_vram_total", str(8 << 30))
    found = detect(root)
    assert [one.arch for one in found.devices] == ["gfx906"]
    assert [(one.arch, why) for one, why in found.left_out] == [
        ("gfx1032", "another architecture than gfx906, which has more memory")
    ]


def test_package_versions_come_from_folder_names(tmp_path: Path) -> None:
    for name in ("flash_attn-2.8.3.dist-info", "torch-2.9.1+rocm6.3.dist-info", "torchvision-0.24.1.dist-info"):
        (tmp_path / name).mkdir()
    names = ("flash-attn", "torch", "Torchvision", "vision")
    found = [machine.package_version(name, ["/nowhere", str(tmp_path)]) for name in names]
    assert found == ["2.8.3", "2.9.1+rocm6.3", "0.24.1", None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"torchaudio_placeholder": true}', True),
        ('{"torchaudio_placeholder": false}', False),
        ("{", None),
        ("[]", None),
    ],
)
def test_the_result_of_set_up_is_a_fact_of_the_machine(tmp_path: Path, text: str, value: bool | None) -> None:
    write(tmp_path, "iis-finetune-setup.json", text)
    assert computer.torchaudio_placeholder(tmp_path) is value


def test_without_a_result_of_set_up_the_placeholder_is_unknown(tmp_path: Path) -> None:
    assert computer.torchaudio_placeholder(tmp_path) is None


def test_this_machine_is_found_in_milliseconds() -> None:
    durations = []
    for _ in range(5):
        start = time.perf_counter()
        found = machine.detect()
        durations.append(time.perf_counter() - start)
    assert found.name == "here"
    assert found.cpu_count >= 1
    if found.accelerator != "cuda":  # nvidia-smi is another program, with its own time
        assert min(durations) < 0.015


def test_the_machine_is_one_json_document(tmp_path: Path) -> None:
    document = json.loads(json.dumps(detect(grow(tmp_path, "b_mi50_beside_renoir")).as_json()))
    assert document["devices"][0]["arch"] == "gfx906"
    assert document["left_out"][0]["reason"] == "integrated graphics, too small to train on"
    assert document["torchaudio_placeholder"] in (None, True, False)


# Profiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_resolves_and_decides_with_a_reason(name: str) -> None:
    found = profile(name)
    precision, problems = machine.decide_precision(found)
    attention, more = machine.decide_attention(found, precision.value)
    decisions = [precision, attention]
    decisions += machine.decide_environment(found, 2)
    assert all(decision.reason and "{" not in decision.reason for decision in decisions)
    assert all(decision.source in ("machine table", "kit default") for decision in decisions)
    assert problems == more == list(found.problems) == []
    assert machine.wheel(found) is not None
    assert json.loads(json.dumps(found.as_json()))["name"] == name


def test_the_profiles_are_those_that_are_promised() -> None:
    promised = "mi25 mi50 mi60 radeon-vii mi100 mi210 mi300x rx5700xt rx6800xt rx7900xtx rx9070xt r9700 strix-halo"
    promised += " rtx3090 rtx4090 v100 a100 h100 h200 cpu"
    assert set(promised.split()) <= set(PROFILES)


@pytest.mark.parametrize(
    ("spelled", "name", "devices"),
    [
        ("gfx1100", "rx7900xtx", 1),
        ("sm_89", "rtx4090", 1),
        ("sm_8.6 x2", "rtx3090x2", 2),
        ("rx9070", "rx9070", 1),
        ("mi250", "mi250", 2),  # two dies, each a device of its own
        ("rtx5090", "rtx5090", 1),
        ("t4", "t4", 1),
        ("strix halo", "strix-halo", 1),
        ("2x AMD Instinct MI50", "mi50x2", 2),
        ("RX 7900 XTX x4", "rx7900xtxx4", 4),
        ("A100 80GB", "a100", 1),
        ("a100-40gb", "a100-40gb", 1),
        ("MI50 16 GB", "mi50-16gb", 1),
        ("gfx906:sramecc+:xnack-", "mi50", 1),
        ("rtx 3060 12GB x2", "rtx3060x2", 2),
        ("4090", "rtx4090", 1),
        ("NVIDIA H100 80GB HBM3", "h100", 1),
        ("4090x8", "rtx4090x8", 8),
        ("8x4090", "rtx4090x8", 8),
        ("mi50×2", "mi50x2", 2),
        ("mi50*2", "mi50x2", 2),
        ("４０９０ｘ８", "rtx4090x8", 8),
        ("两张mi50", "mi50x2", 2),
        ("8卡A800", "a800x8", 8),
        ("4090双卡", "rtx4090x2", 2),
        ("rtx4090笔记本", "rtx4090-laptop", 1),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx4090-laptop", 1),
        ("3080 laptop 16gb", "rtx3080-laptop-16gb", 1),
        ("RTX 4090 D", "rtx4090d", 1),
        ("2080Ti-22G x2", "rtx2080ti-22gbx2", 2),
        ("rtx4090:24", "rtx4090", 1),
        ("AMD Ryzen AI Max+ 395", "strix-halo", 1),
    ],
)
def test_a_machine_is_known_however_its_name_is_spelled(spelled: str, name: str, devices: int) -> None:
    found = profile(spelled)
    assert (found.name, len(found.devices)) == (name, devices)


def test_every_machine_is_found_by_its_name_its_card_and_its_architecture() -> None:
    for name, row in machine.profiles().items():
        assert profile(name).name == profile(name.upper()).name == name
        if "device" in row:
            assert profile(row["device"]).devices[0].name == row["device"]
            assert profile(row["architecture"]).arch == row["architecture"]


def test_the_machines_are_listed_with_what_is_known_of_each(quick: Command) -> None:
    listed = {row["name"]: row for row in json.loads(quick("machines", "--json").stdout)["machines"]}
    assert list(listed) == PROFILES
    told = {key: listed["mi50"][key] for key in ("architecture", "memory_gib", "precision", "attention", "knowledge")}
    assert list(told.values()) == ["gfx906", 31.98, "fp32", "disabled", "documented"]
    assert listed["t4"]["precision"] == "fp16" and listed["mi100"]["knowledge"] == "unconfirmed"
    text = quick("machines").stdout
    assert all(name in text for name in PROFILES)


def test_advice_that_is_followed_is_not_given_again() -> None:
    two = profile("mi50x2")
    assert any("kit.precision=fp16 kit.attention=sdpa" in each for each in machine.advice(two, 2, ("fp32", "disabled")))
    assert not any("kit.precision=fp16" in each for each in machine.advice(two, 2, ("fp16", "sdpa")))


def test_a_number_after_x_is_a_count() -> None:
    two = profile("MI50x2")
    assert (two.name, len(two.devices), two.title) == ("mi50x2", 2, "2x AMD Instinct MI50 (gfx906, 31.98 GiB each)")
    assert len(profile("rx7900xtxx4").devices) == 4
    assert len(profile("rx7900xtx").devices) == 1
    assert (profile("cpu").memory_gib, profile("cpu").devices) == (64.0, ())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("mi5", "'mi50'"),
        ("rtx4085", "'rtx4080'"),
        ("tpu9", "`iis-finetune machines`"),
        ("h100 40gb", "'h100'"),
        ("radeon", "`iis-finetune machines`"),
        ("mi50x0", "mi50x2"),
        ("cpux2", "'cpu'"),
        ("rtx4090:16", "'rtx4090-laptop' (15.6 GiB)"),
        ("rtx4090魔改48G", "'rtx4090' (23.65 GiB)"),
        ("mi50和mi60", "'mi60'"),
        ("两张", "`iis-finetune machines`"),
    ],
)
def test_an_unknown_machine_is_answered_with_near_names(text: str, hint: str) -> None:
    with pytest.raises(ProblemsFound) as caught:
        profile(text)
    [problem] = caught.value.problems
    assert text in problem.what
    assert hint in problem.fix
    assert caught.value.exit_code == 2


def test_a_profile_takes_nothing_from_here() -> None:
    found = profile("h200")
    assert (found.torch_build, found.driver, found.left_out, found.torchaudio_placeholder) == (None, None, (), None)
    assert machine.build_problems(found) == []


# Decisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision", "attention"),
    [
        ("mi50x2", "fp32", "disabled"),
        ("h200", "bf16", "sdpa"),
        ("rx7900xtx", "bf16", "sdpa"),
        ("rtx4090", "bf16", "sdpa"),
        ("v100", "fp16", "sdpa"),
        ("mi100", "bf16", "sdpa"),
        ("rx6800xt", "fp16", "sdpa"),
        ("cpu", "fp32", "sdpa"),
    ],
)
def test_auto_picks_what_the_card_does_well(name: str, precision: str, attention: str) -> None:
    found = profile(name)
    assert machine.decide_precision(found)[0].value == precision
    assert machine.decide_attention(found, precision)[0].value == attention


@pytest.mark.parametrize(
    ("name", "wanted", "severity", "word"),
    [
        ("mi50", "bf16", "warning", "emulated on gfx906 (AMD Instinct MI50) and about 3x slower than fp16"),
        ("v100", "bf16", "warning", "emulated"),
        ("cpu", "bf16", "warning", "emulated"),
        ("mi50", "fp16", "warning", "not proven"),
        ("cpu", "fp16", "error", "cannot run"),
        ("h200", "fp16", None, ""),
        ("h200", "fp32", None, ""),
        ("mi50", "as-saved", None, ""),
    ],
)
def test_an_impossible_precision_is_an_error_and_a_slow_one_a_warning(
    name: str, wanted: str, severity: str | None, word: str
) -> None:
    decision, problems = machine.decide_precision(profile(name), wanted)
    assert (decision.value, decision.source) == (wanted, "recipe")
    assert decision.reason
    assert [problem.severity for problem in problems] == ([severity] if severity else [])
    assert all(word in problem.what and problem.fix and problem.where.key == "kit.precision" for problem in problems)


def test_bf16_is_no_emulation_on_a_processor_that_has_it() -> None:
    found = Machine("here", "cpu", cpu_flags=("avx2", "avx512_bf16"))
    assert machine.decide_precision(found, "bf16")[1] == []


@pytest.mark.parametrize(
    ("name", "precision", "wanted", "severity", "word"),
    [
        ("mi50", "fp16", "disabled", "warning", "NaN"),
        ("h200", "bf16", "disabled", "warning", "accuracy"),
        ("mi50", "fp32", "sdpa", None, ""),
        ("mi50", "fp16", "fa2", "error", "does not support"),
        ("cpu", "fp32", "fa2", "error", "does not support"),
        ("h200", "fp32", "fa2", "error", "not in fp32"),
        ("h200", "bf16", "fa2", "warning", "without it LLaMA-Factory would silently use sdpa"),
    ],
)
def test_an_attention_that_was_asked_for_is_checked(
    name: str, precision: str, wanted: str, severity: str | None, word: str
) -> None:
    decision, problems = machine.decide_attention(profile(name), precision, wanted)
    assert (decision.value, decision.source) == (wanted, "recipe")
    assert [problem.severity for problem in problems] == ([severity] if severity else [])
    assert all(word in problem.what for problem in problems)


def test_with_fp16_on_gfx906_attention_is_sdpa_because_plain_attention_overflows() -> None:
    decision, _ = machine.decide_attention(profile("mi50"), "fp16")
    assert decision.value == "sdpa"
    assert "overflow" in decision.reason


def test_on_two_mi50_just_the_needed_variables_are_set_and_none_of_the_dead_ones() -> None:
    assert values(machine.decide_environment(profile("mi50x2"), 2)) == {
        "ROCR_VISIBLE_DEVICES": "0,1",
        "OPTIM_TORCH": "0",
        "TORCH_BLAS_PREFER_HIPBLASLT": "0",
        "TORCHDYNAMO_DISABLE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "8",
    }


def test_a_card_of_today_needs_next_to_nothing() -> None:
    expected = {"ROCR_VISIBLE_DEVICES": "0", "TOKENIZERS_PARALLELISM": "false"}
    assert values(machine.decide_environment(profile("rx7900xtx"))) == expected


def test_several_cpu_processes_get_the_device_name_that_lets_them_resume() -> None:
    assert values(machine.decide_environment(profile("cpu"), 2)) == {
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "8",
    }
    assert "ACCELERATE_TORCH_DEVICE" not in values(machine.decide_environment(profile("cpu"), 1))


@pytest.mark.parametrize(("driver", "needed"), [("535.161.08", True), ("550.54.14", False), (None, False)])
def test_rtx_40_cards_with_an_old_driver_cannot_copy_to_each_other(driver: str | None, needed: bool) -> None:
    two = profile("rtx4090x2")
    found = Machine("here", "cuda", two.devices, driver=driver, cpu_count=8)
    assert ("NCCL_P2P_DISABLE" in values(machine.decide_environment(found, 2))) is needed
    assert "NCCL_P2P_DISABLE" not in values(machine.decide_environment(found, 1))


@pytest.mark.parametrize(
    ("build", "override"), [("2.13.0+rocm7.2", True), ("2.11.0", False), ("2.11.0+rocm7.13.0", False)]
)
def test_an_rx_6700_pretends_to_be_gfx1030_only_on_pytorchs_own_build(build: str, override: bool) -> None:
    device = machine.Device(0, "AMD Radeon RX 6700 XT", "amd", "gfx1031", 11.98)
    found = Machine("here", "rocm", (device,), torch_build=build)
    assert ("HSA_OVERRIDE_GFX_VERSION" in values(machine.decide_environment(found))) is override


def test_rocm_7_14_is_newer_than_7_2() -> None:
    device = machine.Device(0, "AMD Instinct MI100", "amd", "gfx908", 31.98)
    versions = [
        machine.rocm_version(Machine("here", "rocm", (device,), torch_build=f"2.14.0+rocm{v}")) for v in ("7.14", "7.2")
    ]
    assert versions == [(7, 14), (7, 2)]
    assert versions[0] > versions[1]  # type: ignore[operator]


STARTING_SCRIPT = {
    "HSA_OVERRIDE_GFX_VERSION": "9.0.6",
    "NCCL_ASYNC_ERROR_HANDLING": "1",
    "PL_TORCH_DISTRIBUTED_BACKEND": "nccl",
    "PYTORCH_HIP_ALLOC_CONF": "expandable_segments:True",
    "MIOPEN_FIND_MODE": "2",
    "HSA_ENABLE_SDMA": "1",
    "HSA_FORCE_FINE_GRAIN_PCIE": "1",
    "DISABLE_VERSION_CHECK": "1",
}


def test_each_dead_or_harmful_variable_is_warned_of() -> None:
    problems = machine.warned_variables(profile("mi50x2"), {**STARTING_SCRIPT, "PATH": "/bin"})
    assert {problem.where.key for problem in problems} == set(STARTING_SCRIPT)
    assert all(problem.severity == "warning" and problem.fix == f"unset {problem.where.key}" for problem in problems)
    assert all("{" not in problem.what for problem in problems)


def test_a_variable_is_no_warning_where_it_does_no_harm() -> None:
    assert machine.warned_variables(profile("mi50"), {"PYTORCH_ALLOC_CONF": "garbage_collection_threshold:0.8"}) == []
    assert machine.warned_variables(profile("h200"), {"HSA_OVERRIDE_GFX_VERSION": "9.0.6"}) == []
    assert machine.warned_variables(profile("rx7900xtx"), {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}) == []


def test_strays_of_another_run_are_taken_from_the_training_processes() -> None:
    strays = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "USE_V1", "ALLOW_EXTRA_ARGS"]
    strays += ["LLAMABOARD_ENABLED", "FORCE_TORCHRUN"]
    dropped = machine.dropped_variables(profile("cpu"), dict.fromkeys([*strays, "HOME", "PATH", "HF_HOME"], "1"))
    assert [name for name, _ in dropped] == sorted(strays)
    assert all(reason for _, reason in dropped)


def test_the_users_filters_are_dropped_on_amd_because_they_would_count_renumbered_cards() -> None:
    filters = {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}
    assert [name for name, _ in machine.dropped_variables(profile("mi50"), filters)] == sorted(filters)
    assert machine.dropped_variables(profile("h200"), filters) == []


def test_nothing_that_is_set_is_also_warned_of() -> None:
    for name in PROFILES:
        found = profile(name)
        for processes in (1, 2):
            environment = values(machine.decide_environment(found, processes))
            assert machine.warned_variables(found, environment) == []


@pytest.mark.parametrize(
    ("name", "word"),
    [("mi50", "-DBNB_ROCM_ARCH=gfx906"), ("mi100", "7.14"), ("rx7900xtx", ""), ("h200", "")],
)
def test_quantization_says_what_it_needs(name: str, word: str) -> None:
    problems = machine.quantization_problems(profile(name))
    assert [problem.severity for problem in problems] == (["warning"] if word else [])
    assert all(word in problem.fix for problem in problems)


def test_a_processor_with_avx_alone_does_not_quantise() -> None:
    [problem] = machine.quantization_problems(Machine("here", "cpu", cpu_flags=("avx",)))
    assert problem.severity == "error" and "AVX2" in problem.what


def told(answer: subprocess.CompletedProcess[str], words: str) -> list[tuple[str, str, int | None]]:
    """Severity, key and line of each problem that `check --json` told in these words."""
    found = [each for each in json.loads(answer.stdout)["problems"] if words in each["what"]]
    return [(each["severity"], each["key"], each["line"]) for each in found]


ON_THE_HUB = RECIPE.replace("models/tiny", "Qwen/Qwen2.5-0.5B-Instruct")


@pytest.mark.parametrize("line", ["torch_compile: true", "torch_compile_backend: inductor"])
def test_check_warns_of_compiling_where_it_does_not_help(tmp_path: Path, line: str) -> None:
    write(tmp_path, "recipes/tiny.yaml", f"{ON_THE_HUB}{line}\n")
    words = ["check", "tiny", "--json", "--on"]
    expected = [("warning", line.partition(":")[0], ON_THE_HUB.count("\n") + 1)]
    assert told(run([*words, "mi50"], tmp_path), "torch_compile") == expected
    assert told(run([*words, "h200"], tmp_path), "torch_compile") == []


CHECK = """
import os
from dataclasses import replace
from iis_finetune import cli, machine
named = machine.profile
machine.profile = lambda text: replace(named(text), cpu_flags=(os.environ["STAGED"],))
cli.main()
"""
OWN = 'deepspeed: {zero_optimization: {stage: 2, offload_optimizer: {device: "%s"}}}\n'
LARGE = ON_THE_HUB.replace("0.5B", "7B").replace("type: lora", "type: full")


@pytest.mark.parametrize(
    ("text", "flag", "where"),
    [
        (ON_THE_HUB.replace("kit:\n", "kit:\n  launcher: zero2_offload\n"), "avx", ("kit.launcher", 2)),
        (ON_THE_HUB.replace("kit:\n", "kit:\n  launcher: zero2\n"), "avx", None),
        (OWN % "cpu" + ON_THE_HUB, "avx", ("deepspeed", 1)),
        (OWN % "none" + ON_THE_HUB, "avx", None),
        (LARGE, "avx", ("kit.launcher", None)),  # chosen by the kit: nothing else fits
        (LARGE, "avx2", None),
    ],
)
def test_check_warns_of_offloading_to_a_processor_without_avx2(
    tmp_path: Path, text: str, flag: str, where: tuple[str, int | None] | None
) -> None:
    write(tmp_path, "recipes/tiny.yaml", text)
    command = [sys.executable, "-c", CHECK, "check", "tiny", "--json", "--on", "mi50x2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STAGED": flag}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert told(answer, "no AVX2") == ([("warning", *where)] if where else [])


def test_the_faster_way_on_gfx906_is_advice_and_marked_unconfirmed() -> None:
    [sentence] = machine.advice(profile("mi50"))
    assert "2.7x" in sentence
    assert "kit.precision=fp16 kit.attention=sdpa" in sentence
    assert sentence.endswith("(unconfirmed)")
    assert machine.advice(profile("rx7900xtx")) == []
    assert "IOMMU" in machine.advice(profile("r9700x2"), 2)[1]


@pytest.mark.parametrize(
    ("name", "build", "severity"),
    [
        ("mi50", "2.13.0+cpu", "error"),
        ("mi50", "2.13.0+cu130", "error"),
        ("mi50", "2.13.0", "warning"),
        ("mi50", "2.9.1+rocm6.3", None),
        ("mi50", "2.9.0a0+gitabc", None),
        ("mi50", None, "error"),
        ("h200", "2.13.0+cpu", "error"),
        ("h200", "2.13.0", None),
        ("cpu", "2.13.0+cu130", None),
    ],
)
def test_a_torch_that_cannot_use_the_card_is_a_problem(name: str, build: str | None, severity: str | None) -> None:
    like = profile(name)
    found = Machine("here", like.accelerator, like.devices, torch_build=build)
    assert [problem.severity for problem in machine.build_problems(found)] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("name", "torch"),
    [("mi50", "2.9.1+rocm6.3"), ("rx7900xtx", "2.13.0+rocm7.2"), ("h200", "2.13.0+cu130"), ("v100", "2.13.0+cu126")],
)
def test_each_card_has_its_build_of_torch(name: str, torch: str) -> None:
    row = machine.wheel(profile(name))
    assert row and row.torch == torch


def test_an_old_nvidia_driver_gets_the_build_for_it() -> None:
    found = Machine("here", "cuda", profile("h200").devices, driver="550.54.14")
    row = machine.wheel(found)
    assert row and row.torch == "2.13.0+cu126"


# The table -----------------------------------------------------------------------------------------------------------

CELLS = ["precision", "attention", "bf16", "fp16", "sdpa_kernels", "flash_attn", "bitsandbytes", "compile"]
ROWS = knowledge.load()


@pytest.mark.parametrize("row", ROWS["architecture"], ids=lambda row: row["names"][0])
def test_every_claim_of_an_architecture_has_source_date_and_confirmed(row: knowledge.Row) -> None:
    row = knowledge.architecture(row["names"][0])  # with the cells of the row that it is like
    claims = {name: cell for name, cell in row.items() if name not in ("names", "products", "like")}
    assert set(CELLS) <= set(claims)
    for cell in claims.values():
        assert "value" in cell
        assert cell["source"]
        assert cell["date"].year >= 2026
        assert isinstance(cell["confirmed"], bool)
    assert row["precision"]["value"] in ("fp32", "fp16", "bf16")
    assert row["precision"]["reason"]
    assert row["attention"]["reason"]
    assert row["bf16"]["value"] == "hardware" or row["bf16"]["note"]
    assert row["compile"]["value"] or row["compile"]["note"]


@pytest.mark.parametrize("kind", ["variable", "card", "fault", "kernel", "profile"])
def test_every_other_row_has_source_date_and_confirmed(kind: str) -> None:
    for row in machine.profiles().values() if kind == "profile" else ROWS[kind]:
        assert row["source"]
        assert row["date"].year >= 2026
        assert isinstance(row["confirmed"], bool)


def test_auto_never_emulates() -> None:
    for row in (knowledge.architecture(row["names"][0]) for row in ROWS["architecture"]):
        assert row["precision"]["value"] == "fp32" or row[row["precision"]["value"]]["value"] in ("hardware", "guarded")


@pytest.mark.parametrize("arch", ["gfx906", "gfx1032", "gfx1250", "sm_61", "sm_75", "sm_89", "sm_90", "sm_121", "cpu"])
def test_every_architecture_has_a_row_and_the_catch_all_comes_last(arch: str) -> None:
    row = knowledge.architecture(arch)
    known = [other for other in ROWS["architecture"] if any(fnmatchcase(arch, name) for name in other["names"])]
    assert known[0] is row


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("NVIDIA A100-SXM4-80GB", "sm_80"),
        ("NVIDIA A10", "sm_86"),
        ("Tesla T4", "sm_75"),
        ("Tesla P40", "sm_61"),
        ("Tesla P100-PCIE-16GB", "sm_60"),
        ("NVIDIA GeForce GTX 1080 Ti", "sm_61"),
        ("NVIDIA RTX 6000 Ada Generation", "sm_89"),
        ("Something new", None),
    ],
)
def test_the_name_of_an_nvidia_card_tells_its_architecture(name: str, arch: str | None) -> None:
    assert knowledge.architecture_of(name) == arch
