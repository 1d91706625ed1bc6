"""The doctor on staged hosts, and its probes on the CPU; failures of a device are staged by a program of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import RECIPE, ROOT, run
from msgspec.structs import replace
from test_machine import grow, write

from iis_finetune import doctor, machine, recipe
from iis_finetune.doctor import Subject, builds, hardware, probing
from iis_finetune.doctor.probing import Tried
from iis_finetune.doctor.subject import Check
from iis_finetune.errors import ProblemsFound, exit_code
from iis_finetune.machine import Machine, profile
from iis_finetune.machine.records import HERE
from iis_finetune.runs import Workspace
from iis_finetune.wheels import RECORD, cure_of, record_of

CARDS = ("0000:05:00.0", "0000:87:00.0")
PROFILES = list(machine.profiles())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder with a recipe, whose model nobody looks for."""
    write(tmp_path, "recipes/tiny.yaml", RECIPE)
    return tmp_path


def subject(root: Path, **environment: str) -> Subject:
    places = Workspace(root, root / "models", root / "runs")
    return Subject(machine.detect(root, environment), environment, places, None, root, ())


def of_card(machine_name: str, build: str, **changes: str) -> Machine:
    return dataclasses.replace(profile(machine_name), name=HERE, torch_build=build, **changes)  # type: ignore[arg-type]


def group(root: Path, card: str, number: int, kind: str | None) -> None:
    """Put a card into an IOMMU group; None: a kernel that does not tell the group's type."""
    folder = root / f"sys/kernel/iommu_groups/{number}"
    folder.mkdir(parents=True)
    if kind:
        (folder / "type").write_text(f"{kind}\n")
    link = root / f"sys/bus/pci/devices/{card}/iommu_group"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)


def behind_iommu(root: Path, unit: str, kind: str | None) -> Path:
    grow(root, "a_two_mi50")
    (root / "sys/class/iommu" / unit).mkdir(parents=True)
    for number, card in enumerate(CARDS):
        group(root, card, number, kind)
    return root


# ---- hardware


@pytest.mark.parametrize(
    ("unit", "kind", "files", "state", "words"),
    [
        ("dmar0", "DMA-FQ", {}, "warning", "intel_iommu=on iommu=pt"),
        ("ivhd0", "DMA", {}, "warning", "amd_iommu=on iommu=pt"),
        ("dmar0", "identity", {}, "fine", "identity"),
        ("dmar0", "identity", {"proc/cmdline": "ro quiet"}, "fine", "identity"),  # the group decides, not the words
        ("dmar0", "DMA-FQ", {"proc/cmdline": "iommu=pt"}, "warning", "DMA-FQ"),
        ("dmar0", None, {"proc/cmdline": "ro intel_iommu=on iommu=pt"}, "fine", "identity"),
        ("dmar0", None, {"proc/cmdline": "ro quiet"}, "warning", "DMA by default"),
        ("dmar0", "DMA", {"proc/version": "Linux version 5.15 (Microsoft)"}, "fine", "virtual machine"),
        ("dmar0", "DMA", {"sys/class/dmi/id/sys_vendor": "QEMU\n"}, "fine", "virtual machine"),
    ],
)
def test_the_iommu_is_judged_by_the_groups_of_the_cards(
    tmp_path: Path, unit: str, kind: str | None, files: Mapping[str, str], state: str, words: str
) -> None:
    root = behind_iommu(tmp_path, unit, kind)
    for path, text in files.items():
        write(root, path, text)
    check = hardware.iommu(subject(root))
    assert check and check.state == state
    assert words in " ".join([check.found, *(f"{each.what} {each.fix}" for each in check.problems)])


def test_an_iommu_matters_for_two_cards_only_and_one_that_is_off_not_at_all(tmp_path: Path) -> None:
    root = behind_iommu(tmp_path / "on", "dmar0", "DMA-FQ")
    one = hardware.iommu(subject(root, ROCR_VISIBLE_DEVICES="0"))
    off = hardware.iommu(subject(grow(tmp_path / "off", "a_two_mi50")))
    assert one and one.state == "fine" and "two cards or more" in one.found
    assert off == Check("iommu", "not active")
    assert hardware.iommu(subject(grow(tmp_path / "nvidia", "nvidia"))) is None


def test_a_translating_iommu_is_told_before_cards_are_tried(tmp_path: Path) -> None:
    danger = doctor.risk(subject(behind_iommu(tmp_path / "dma", "ivhd0", "DMA")))
    assert danger and "froze the whole computer" in danger.what and "save your work" in danger.fix
    assert doctor.risk(subject(behind_iommu(tmp_path / "pt", "ivhd0", "identity"))) is None


@pytest.mark.parametrize(("setting", "state"), [("1\n", "warning"), ("0\n", "fine"), ("2\n", "warning")])
def test_numa_balancing_is_a_warning_where_there_are_cards(tmp_path: Path, setting: str, state: str) -> None:
    root = grow(tmp_path, "a_two_mi50")
    assert hardware.numa(subject(root)) is None
    write(root, "proc/sys/kernel/numa_balancing", setting)
    check = hardware.numa(subject(root))
    assert check and check.state == state
    assert hardware.numa(subject(root, HIP_VISIBLE_DEVICES="-1")) is None


def test_a_card_that_shows_a_part_of_its_memory_only_is_named(tmp_path: Path) -> None:
    root = grow(tmp_path, "a_two_mi50")
    whole = "0x0000380000000000 0x00003807ffffffff 0x000000000014220c\n"
    for card, window in zip(CARDS, (whole, "0x00000000d0000000 0x00000000dfffffff 0x14220c\n"), strict=True):
        write(root, f"sys/bus/pci/devices/{card}/resource", window)
    [problem] = hardware.devices(subject(root)).problems
    assert "0.25 of 32 GiB of 0000:87:00.0" in problem.what and "Resizable BAR" in problem.fix
    assert hardware.devices(subject(root, ROCR_VISIBLE_DEVICES="1")).problems == []


def test_a_card_on_the_bus_that_its_neighbours_driver_does_not_serve_is_named(tmp_path: Path) -> None:
    root = grow(tmp_path, "a_two_mi50")
    for card in (*CARDS, "0000:0a:00.0"):
        write(root, f"sys/bus/pci/devices/{card}/vendor", "0x1002\n")
        write(root, f"sys/bus/pci/devices/{card}/class", "0x038000\n")
    [problem] = hardware.devices(subject(root, ROCR_VISIBLE_DEVICES="0")).problems
    assert "0000:0a:00.0" in problem.what and "atomics" in problem.fix


def test_what_detection_found_wrong_is_an_error_of_the_devices(tmp_path: Path) -> None:
    root = grow(tmp_path, "a_two_mi50")
    assert "open to this user" in hardware.devices(subject(root)).found
    (root / "dev/kfd").unlink()
    check = hardware.devices(subject(root))
    assert (check.state, exit_code(check.problems)) == ("error", 3)


def test_variables_of_the_shell_and_of_the_recipe_are_named_with_their_place(tmp_path: Path) -> None:
    text = RECIPE.replace("kit:\n", "kit:\n  env:\n    NCCL_ASYNC_ERROR_HANDLING: 1\n    HARMLESS: 1\n")
    write(tmp_path, "own.yaml", text)
    asked = subject(grow(tmp_path, "a_two_mi50"), HSA_OVERRIDE_GFX_VERSION="9.0.6", LOCAL_RANK="0")
    asked = replace(asked, recipe=recipe.read(str(tmp_path / "own.yaml"))[0])
    check = hardware.variables(asked)
    told = [(each.where.key, each.where.line, each.fix) for each in check.problems]
    assert told == [
        ("HSA_OVERRIDE_GFX_VERSION", None, "unset HSA_OVERRIDE_GFX_VERSION"),
        ("kit.env.NCCL_ASYNC_ERROR_HANDLING", 2, "remove the line from kit.env"),
    ]
    assert check.found == "kept away from runs: LOCAL_RANK"


def test_little_room_is_a_warning_and_hardly_any_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "models"
    monkeypatch.setattr(hardware, "COMFORTABLE_DISK_GIB", 0)
    assert hardware.disk(folder).state == "fine"
    monkeypatch.setattr(hardware, "COMFORTABLE_DISK_GIB", 10**9)
    monkeypatch.setattr(hardware, "LEAST_DISK_GIB", 0)
    [problem] = hardware.disk(folder).problems
    assert problem.severity == "warning" and "IIS_MODELS=" in problem.fix
    monkeypatch.setattr(hardware, "LEAST_DISK_GIB", 10**9)
    assert hardware.disk(folder).state == "error"


def test_shared_memory_that_is_missing_is_a_warning_with_the_fix_for_a_container(tmp_path: Path) -> None:
    root = grow(tmp_path, "a_two_mi50")
    assert "mount" in hardware.shared_memory(subject(root)).problems[0].fix
    (root / ".dockerenv").touch()
    assert "--shm-size" in hardware.shared_memory(subject(root)).problems[0].fix
    (root / "dev/shm").mkdir()
    assert hardware.shared_memory(subject(root)).state == "fine"


# ---- builds


WHEEL, AMD_WHEEL = "torch/lib/rocblas/library", "_rocm_sdk_libraries_gfx906/lib/rocblas/library"


@pytest.mark.parametrize(
    ("card", "build", "kernels", "state"),
    [
        ("mi50x2", "2.9.1+rocm6.3", f"{WHEEL}/TensileLibrary_lazy_gfx906.dat", "fine"),
        ("mi50", "2.13.0+rocm7.2", f"{WHEEL}/TensileLibrary_lazy_gfx1030.dat", "error"),
        ("mi50", "2.12.0+rocm7.13.0", f"{AMD_WHEEL}/Kernels.so-000-gfx906-xnack-.hsaco", "fine"),
        ("mi50", "2.9.1+rocm6.3", None, "fine"),  # no such folder: the table says that 6.3 still has them
        ("mi50", "2.13.0+rocm7.2", None, "error"),
        ("rx7900xtx", "2.13.0+rocm7.2", None, "fine"),
        ("rx6700xt", "2.13.0+rocm7.2", f"{WHEEL}/TensileLibrary_lazy_gfx1030.dat", "fine"),  # pretends to be a gfx1030
        ("rx6700xt", "2.11.0+rocm7.13.0", f"{WHEEL}/TensileLibrary_lazy_gfx1030.dat", "error"),  # AMD's does not
        ("mi50", "2.13.0+cpu", None, "error"),
        ("v100", "2.13.0+cu126", None, "fine"),
        ("v100", "2.13.0+cu130", None, "error"),
        ("h200", "2.13.0+cu130", None, "fine"),
    ],
)
def test_torch_must_have_code_for_this_very_card(
    tmp_path: Path, card: str, build: str, kernels: str | None, state: str
) -> None:
    if kernels:
        write(tmp_path, kernels, "")
    host = of_card("rx6800xt" if card == "rx6700xt" else card, build)
    if card == "rx6700xt":
        host = dataclasses.replace(host, devices=(dataclasses.replace(host.devices[0], arch="gfx1031"),))
    asked = replace(subject(tmp_path), machine=host, packages=(str(tmp_path),))
    assert builds.torch(asked).state == state


def test_a_cuda_build_that_the_driver_is_too_old_for_is_an_error(tmp_path: Path) -> None:
    asked = replace(subject(tmp_path), machine=of_card("h200", "2.13.0+cu130", driver="550.54.14"))
    [problem] = builds.torch(asked).problems
    assert "needs NVIDIA driver 580 or later, this one is 550.54.14" in problem.what


TAGGED = ("torch-2.9.1+rocm6.3", "torchvision-0.24.1+rocm6.3", "torchaudio-2.9.1+rocm6.3")


@pytest.mark.parametrize(
    ("packages", "state", "words"),
    [
        (TAGGED, "fine", ""),
        ((*TAGGED[:1], "torchvision-0.24.1", TAGGED[2]), "warning", "torchvision 0.24.1 was built for another torch"),
        ((*TAGGED[:1], "torchvision-0.23.0+rocm6.3", TAGGED[2]), "warning", "torchvision 0.23.0+rocm6.3"),
        ((*TAGGED[:2], "torchaudio-2.9.1+cu128"), "warning", "torchaudio 2.9.1+cu128"),
        (TAGGED[:2], "error", "torchaudio is not installed"),
        ((*TAGGED, "transformers-5.9.0"), "error", "transformers 5.9.0"),
    ],
)
def test_the_companions_of_torch_must_be_of_its_build(
    tmp_path: Path, packages: tuple[str, ...], state: str, words: str
) -> None:
    for name in packages:
        (tmp_path / f"{name}.dist-info").mkdir()
    asked = replace(subject(tmp_path), machine=of_card("mi50", "2.9.1+rocm6.3"), packages=(str(tmp_path),))
    check = builds.companions(asked)
    assert (check.state, exit_code(check.problems)) == (state, 3 if state == "error" else 0)
    assert words in " ".join(each.what for each in check.problems)


STARTS = "def main():\n    print('fine')\n"
DIES = "def main():\n    raise RuntimeError('operator torchvision::nms does not exist')\n"


@pytest.mark.parametrize(("program", "state", "fix"), [(STARTS, "fine", ""), (DIES, "error", "doctor --fix")])
def test_llamafactory_is_started_and_what_it_dies_of_is_explained(
    tmp_path: Path, program: str, state: str, fix: str
) -> None:
    write(tmp_path, "llamafactory/__init__.py", "")
    write(tmp_path, "llamafactory/cli.py", program)
    (tmp_path / "llamafactory-0.9.5.dist-info").mkdir()
    asked = subject(tmp_path, PYTHONPATH=str(tmp_path))
    check = builds.llamafactory(replace(asked, packages=(str(tmp_path),)), quick=False)
    assert (check.state, check.found.split(",")[0]) == (state, "0.9.5")
    assert fix in " ".join(each.fix for each in check.problems)


@pytest.mark.parametrize(("folder", "state"), [("none", "error"), ("llamafactory-0.9.6.dist-info", "warning")])
def test_a_llamafactory_that_is_missing_or_unknown_is_named(tmp_path: Path, folder: str, state: str) -> None:
    (tmp_path / folder).mkdir()
    assert builds.llamafactory(replace(subject(tmp_path), packages=(str(tmp_path),)), quick=True).state == state


# ---- what to install, what to repair


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_pip_lines_with_one_index_and_pins_that_stay(name: str) -> None:
    first, second, *_ = doctor.install_plan(profile(name), {}).commands
    words = shlex.split(first)
    assert words[:2] == ["pip", "install"] and words[-2] == "--index-url"
    assert second.split()[-3:] == [re.sub(r"\[.*\]", "", word) for word in words[2:5]]


def test_two_mi50_get_the_last_build_that_works_on_them_and_deepspeed() -> None:
    plan = doctor.install_plan(profile("mi50x2"), {"IIS_TORCH_INDEX": "https://mirror/whl/"})
    pins = "torch==2.9.1+rocm6.3 torchvision==0.24.1+rocm6.3 torchaudio==2.9.1+rocm6.3"
    assert plan.commands[0] == f"pip install {pins} --index-url https://mirror/whl/rocm6.3"
    assert "deepspeed" in plan.commands[-1] and "2.8.0" in plan.note and not plan.confirmed


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package alone, as pip puts it into an environment; the project is not there."""
    shutil.copytree(ROOT / "iis_finetune", tmp_path / "site/iis_finetune", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "site"


def test_outside_a_clone_the_pip_lines_name_only_what_is_there(installed: Path) -> None:
    done = run(["doctor", "--install-plan", "--on", "mi50x2"], installed.parent, PYTHONPATH=str(installed))
    lines = [shlex.split(line) for line in done.stdout.splitlines() if "pip install" in line]
    files = [Path(line[line.index("-c") + 1]) for line in lines if "-c" in line]
    assert len(lines) == 4 and len(files) == 2 and all(file.is_file() for file in files)
    assert "iis-finetune[train]" in lines[1] and not {"-e", ".[train]"} & {*lines[1]}
    assert "make setup" not in done.stdout + done.stderr


def test_in_a_clone_the_pip_lines_work_in_its_folder_and_in_any_other(tmp_path: Path) -> None:
    at_home = doctor.install_plan(profile("mi50"), {}, ROOT).commands[1]
    elsewhere = doctor.install_plan(profile("mi50"), {}, tmp_path).commands[1]
    assert "-c constraints.txt -e '.[train]'" in at_home
    assert f"-c {ROOT}/constraints.txt -e '{ROOT}[train]'" in elsewhere


def test_a_package_that_a_verb_needs_and_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/fixtures/runs", tmp_path / "runs")
    staged = "import sys; sys.modules['matplotlib'] = None; from iis_finetune.cli import main; main()"
    words = [sys.executable, "-c", staged, "report", "1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "bug" not in done.stderr
    assert "this needs the package matplotlib, which is not installed" in done.stderr


def test_a_card_without_a_published_build_is_told_so() -> None:
    card = dataclasses.replace(
        profile("mi50"), devices=(dataclasses.replace(profile("mi50").devices[0], arch="gfx803"),)
    )
    with pytest.raises(ProblemsFound, match="no published build") as caught:
        doctor.install_plan(card, {})
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("vision", "folder", "audio", "expected"),
    [
        (None, "own", None, (False, False, False)),
        ("nms", "own", None, (True, False, False)),
        ("nms", "other", "libcudart", (False, True, True)),
        ("No module named 'torchvision'", "", "No module named 'torchaudio'", (False, False, True)),
    ],
)
def test_only_a_torchvision_of_this_environment_is_removed(
    tmp_path: Path, vision: str | None, folder: str, audio: str | None, expected: tuple[bool, bool, bool]
) -> None:
    where = str(tmp_path / folder / "site-packages") if folder else ""
    cure = cure_of({"torch": None, "torchvision": vision, "torchaudio": audio}, where, tmp_path / "own")
    assert (cure.remove_torchvision, cure.torchvision_is_foreign, cure.torchaudio_placeholder) == expected


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An environment whose torchvision and torchaudio cannot be loaded; it sees this one's packages behind its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    [site] = (tmp_path / "venv/lib").glob("python*/site-packages")
    write(site, "torch.py", "")
    for name in ("torchvision", "torchaudio"):
        write(site, f"{name}.py", "raise OSError('libcudart.so.13: cannot open shared object file')\n")
    files = ("torchvision.py", *(f"torchvision-0.28.0.dist-info/{name}" for name in ("METADATA", "RECORD")))
    write(site, files[1], "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    write(site, files[2], "".join(f"{name},,\n" for name in files))
    write(site, "all.pth", sysconfig.get_path("purelib"))
    return site


def fix(site: Path) -> dict[str, list[str]]:
    command = [str(site.parents[2] / "bin/python"), "-m", "iis_finetune", "doctor", "--fix", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, list[str]] = json.loads(done.stdout)
    assert told["problems"] == []
    return told


def test_fix_cures_what_cannot_be_loaded_once_and_takes_the_placeholder_back(broken: Path) -> None:
    venv = broken.parents[2]
    (venv / RECORD).write_text('{"accelerator": "rocm", "torchvision": "0.28.0"}')
    os.utime(venv / RECORD, (1, 1))
    removed, covered = fix(broken)["done"]
    assert "torchvision" in removed and "libcudart" in removed and "placeholder" in covered
    assert not (broken / "torchvision.py").exists()
    cured = {"torchvision": None, "torchvision_removed": True, "torchaudio_placeholder": True}
    assert record_of(venv) == {"accelerator": "rocm", **cured}
    assert (venv / RECORD).stat().st_mtime == 1  # the inputs of set-up that it is compared with have not changed
    assert fix(broken)["done"] == []
    write(broken, "torchaudio.py", "")
    assert "no placeholder any more" in fix(broken)["done"][0]
    assert (record_of(venv) or {})["torchaudio_placeholder"] is False


# ---- probes

FAKE = """
import json, os, sys, time
from pathlib import Path
here = Path(__file__).parent
with (here / "pids").open("a") as file:
    file.write(f"{os.getpid()}\\n")
for case in json.loads(sys.argv[1]):
    name = " ".join(str(case.get(key, "")) for key in ("job", "precision", "path", "rank")).split()
    did = json.loads((here / "does.json").read_text()).get(" ".join(name), "0.0")
    if did == "crash":
        print("rocBLAS error: Cannot read TensileLibrary.dat for GPU arch : gfx906", file=sys.stderr)
        os._exit(6)
    if did == "hang":
        time.sleep(600)
    answer = {"state": "fine", "said": "", "errors": [float(did)]}
    print("\\n" + json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device program that does what does.json says, and notes its process number."""
    write(tmp_path, "fake.py", FAKE)
    monkeypatch.setattr(probing, "PROBE", tmp_path / "fake.py")
    return tmp_path


def tried(fake: Path, does: Mapping[str, str], host: str = "mi50", **options: float) -> dict[str, Tried]:
    write(fake, "does.json", json.dumps(does))
    asked = replace(subject(fake, PATH=os.environ["PATH"]), machine=profile(host))
    found = doctor.trials(asked, **options)  # type: ignore[arg-type]
    assert all(not Path(f"/proc/{pid}").exists() for pid in (fake / "pids").read_text().split())
    return {each.what: each for each in found}


def test_a_crash_in_one_trial_does_not_hide_the_others(fake: Path) -> None:
    found = tried(fake, {"matmul bf16": "crash", "attention fp32 eager": "crash"})
    assert len(found) == 21
    assert {each.what for each in found.values() if each.state == "failed"} == {"bf16 matmul", "fp32 attention eager"}
    assert len((fake / "pids").read_text().split()) == 3
    minor, major = doctor.problems_of(list(found.values()))
    assert (minor.severity, major.severity) == ("warning", "error")  # auto trains in fp32 with eager attention there
    assert "no code for this card" not in major.what and "--install-plan" in major.fix


def test_a_card_on_which_nothing_begins_is_tried_once(fake: Path) -> None:
    found = tried(fake, {"matmul fp32": "crash"})
    assert [each.state for each in found.values()] == ["failed"]
    assert exit_code(doctor.problems_of(list(found.values()))) == 3


def test_a_number_that_is_wrong_or_none_at_all_is_found(fake: Path) -> None:
    found = tried(fake, {"matmul fp32": "nan", "matmul bf16": "0.04", "matmul fp16": "0.04"})
    states = {name: found[f"{name} matmul"].state for name in ("fp32", "fp16", "bf16")}
    assert states == {"fp32": "wrong", "fp16": "wrong", "bf16": "fine"}
    assert found["fp32 matmul"].as_json()["error"] is None


def test_a_hang_is_ended_in_time_and_the_rest_is_still_tried(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "IMPORT_SECONDS", 1.5)
    monkeypatch.setattr(probing, "CASES_SECONDS", 0)
    found = tried(fake, {"attention bf16 flash": "hang", "all_reduce 1": "hang"}, "mi50x2", seconds=0.5)
    assert {name for name, each in found.items() if each.state == "late"} == {
        "bf16 attention flash",
        "all-reduce of 2 processes",
    }
    assert any("kit.devices: 1" in each.fix for each in doctor.problems_of(list(found.values())))


@pytest.mark.parametrize(("host", "asked", "number"), [("mi50", None, 1), ("mi50x4", None, 2), ("mi50x4", 4, 4),
                                                       ("mi50x2", 4, 2), ("cpu", None, 1), ("cpu", 2, 2)])  # fmt: skip
def test_as_many_sum_as_there_are_devices_for(host: str, asked: int | None, number: int) -> None:
    assert doctor.together(profile(host), asked) == number


def test_what_a_training_needs_computes_on_this_cpu(folder: Path) -> None:
    words = ["doctor", "--probe", "--processes", "2", "--json"]
    done = run(words, folder, CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="-1")
    assert done.returncode == 0, done.stderr
    found = {each["what"]: each for each in json.loads(done.stdout)["trials"]}
    assert len(found) == 15  # products, those of LoRA and five forms of attention in fp32 and bf16, and the sum of two
    assert {name for name, each in found.items() if each["state"] == "unavailable"} <= {
        f"{precision} attention {path}" for precision in ("fp32", "bf16") for path in ("flash", "mem-efficient")
    }
    assert 0 < found["fp32 attention eager"]["backward"] < 1e-5 < found["bf16 attention eager"]["backward"] < 5e-2
    assert found["all-reduce of 2 processes"]["error"] == 0


# ---- the verb


def test_a_quick_look_imports_nothing_heavy_and_its_exit_code_follows_from_its_problems(folder: Path) -> None:
    code = """
import sys
from iis_finetune import cli
sys.argv[1:] = ["doctor", "tiny", "--quick", "--json"]
code = cli.run()
print(sorted({"torch", "transformers", "llamafactory"} & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PL_TORCH_DISTRIBUTED_BACKEND": "nccl"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert done.stderr.strip() == "[]"
    errors = [each for each in told["problems"] if each["severity"] == "error"]
    assert done.returncode == (3 if errors else 0)
    assert "PL_TORCH_DISTRIBUTED_BACKEND" in {each["key"] for each in told["problems"]}
    names = [each["check"] for each in told["checks"]]
    assert {"devices", "torch", "companions", "llamafactory", "variables", "disk, models/", "shared memory"} <= set(
        names
    )


BAD_WORDS = {
    ("doctor", "--on", "mi50"): "--on goes with --install-plan only",
    ("doctor", "--processes", "2"): "--processes goes with --probe only",
    ("doctor", "--probe", "--fix"): "--probe and --fix are different jobs",
    ("doctor", "tyny"): "did you mean 'tiny'?",
    ("doctor", "--install-plan", "--on", "mi51"): "did you mean 'mi50'",
}


@pytest.mark.parametrize(("words", "said"), BAD_WORDS.items(), ids=" ".join)
def test_words_that_do_not_go_together_are_refused(folder: Path, words: tuple[str, ...], said: str) -> None:
    done = run(words, folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_install_plan_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    done = run(["doctor", "--install-plan", "--on", "mi50x2"], tmp_path)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert done.returncode == 0 and lines[0].endswith("--index-url https://download.pytorch.org/whl/rocm6.3")
    assert all("pip install" in line for line in lines)
