"""Set-up's decisions, its stamp, its words when something is missing; `make` itself does the real installation."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

import pytest
import setup
import setup_plan
import setup_steps
from ruamel.yaml import YAML
from test_machine import NEW_SMI, grow, program, write

from iis_finetune.machine import Device, Machine
from iis_finetune.wheels import EXTRAS, PLACEHOLDER, RECORD, TRIO, Accelerator, read_table, record_of, write_record

ROOT = Path(__file__).parent.parent
TABLE = read_table()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, _, version in pins}


def host(accelerator: Accelerator, *architectures: str, driver: str | None = None) -> Machine:
    """A machine with these cards; those of other families than the first one's are left out, as detection does it."""
    vendor = "amd" if accelerator == "rocm" else "nvidia"
    cards = [Device(n, "a card", vendor, name, 32.0) for n, name in enumerate(architectures)]  # type: ignore[arg-type]
    chosen = tuple(card for card in cards if card.arch == architectures[0])
    others = tuple((card, "another family") for card in cards if card not in chosen)
    return Machine("here", accelerator, chosen, others, driver=driver)


CPU = host("cpu")


# ---- which builds for which card


@pytest.mark.parametrize(
    ("found", "torch"),
    [
        (CPU, "2.13.0+cpu"),
        (host("cuda", "sm_90", driver="580.95.05"), "2.13.0+cu130"),
        (host("cuda", "sm_70", driver="580.95.05"), "2.13.0+cu126"),
        (host("cuda", "sm_90", "sm_70", driver="580.95.05"), "2.13.0+cu126"),  # the oldest card decides
        (host("cuda", "sm_86", driver="550.54.14"), "2.13.0+cu126"),
        (host("rocm", "gfx906", "gfx906"), "2.9.1+rocm6.3"),
        (host("rocm", "gfx900", "gfx906"), "2.9.1+rocm6.3"),
        (host("rocm", "gfx906", "gfx803"), "2.9.1+rocm6.3"),  # no build is known for the other one
        (host("rocm", "gfx1100"), "2.13.0+rocm7.2"),
    ],
)
def test_each_card_gets_the_build_that_has_kernels_for_it(found: Machine, torch: str) -> None:
    assert setup_plan.the_one_row(found).torch == torch


def test_every_row_is_one_matching_trio_from_one_index() -> None:
    pairs = {"2.13": ("0.28", "2.11"), "2.12": ("0.27", "2.11"), "2.9": ("0.24", "2.9")}
    for row in TABLE:
        torch, torchvision, torchaudio = (getattr(row, name) for name in TRIO)
        assert len({version.partition("+")[2] for version in (torch, torchvision, torchaudio)}) == 1, row
        short = [version.rpartition(".")[0] for version in (v.split("+")[0] for v in (torch, torchvision, torchaudio))]
        assert tuple(short[1:]) == pairs[short[0]], row
        assert row.index.endswith("/" + row.torch.partition("+")[2]) or (
            row.device_extra and "repo.amd.com" in row.index
        )
        assert row.source
        assert row.date


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (host("rocm", "gfx906", "gfx1100"), "ARCH=gfx906"),
        (host("rocm", "gfx803"), "gfx803"),
        (host("rocm"), "amdgpu"),
        (host("cuda", "sm_86", driver="470.1"), "driver 470"),
    ],
)
def test_a_card_without_one_known_build_is_refused_with_the_way_out(found: Machine, words: str) -> None:
    with pytest.raises(setup_plan.SetUpFailed, match=words) as caught:
        setup_plan.the_one_row(found)
    assert "fix:" in str(caught.value)


def test_two_devices_bring_deepspeed_and_one_does_not() -> None:
    request = setup_plan.Request()
    assert setup_plan.make_plan(request, host("rocm", "gfx906", "gfx906")).extras == ("deepspeed",)
    assert setup_plan.make_plan(request, host("rocm", "gfx906")).extras == ()


# ---- finding the cards: the machine's own detection, on a bare Python


def found_by(root: Path, **request: str) -> tuple[str, list[str]]:
    found = setup_plan.find_machine(setup_plan.Request(**request), root)  # type: ignore[arg-type]
    return found.accelerator, [card.arch for card in found.devices]


@pytest.mark.parametrize(
    ("fixture", "request_", "expected"),
    [
        ("a_two_mi50", {}, ("rocm", ["gfx906", "gfx906"])),
        ("b_mi50_beside_renoir", {}, ("rocm", ["gfx906"])),
        ("strix_halo", {}, ("rocm", ["gfx1151"])),
        ("renoir", {}, ("cpu", [])),
        ("unserved", {}, ("cpu", [])),
        ("unserved", {"accelerator": "rocm"}, ("rocm", [])),
        ("unserved", {"architecture": "gfx906"}, ("rocm", ["gfx906"])),
        ("a_two_mi50", {"accelerator": "cpu"}, ("cpu", [])),
        ("a_two_mi50", {"accelerator": "cuda"}, ("cuda", [])),
        ("e_mixed", {"architecture": "gfx1151"}, ("rocm", ["gfx1151"])),
    ],
)
def test_torch_is_for_the_cards_that_are_here_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixture: str, request_: dict[str, str],
    expected: tuple[str, list[str]],
) -> None:  # fmt: skip
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")  # what hides a card from a shell does not change what is installed
    assert found_by(grow(tmp_path, fixture), **request_) == expected


def test_beside_nvidia_cards_the_amd_ones_are_chosen_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = grow(grow(tmp_path / "root", "nvidia"), "a_two_mi50")
    write(tmp_path, "nvidia-smi", "")
    program(tmp_path / "nvidia-smi", NEW_SMI)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert found_by(root) == ("cuda", ["sm_86", "sm_86"])
    assert found_by(root, accelerator="rocm") == ("rocm", ["gfx906", "gfx906"])


def test_an_nvidia_driver_without_its_program_is_found_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\n"
    write(tmp_path, "proc/driver/nvidia/version", line)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = setup_plan.find_machine(setup_plan.Request(), tmp_path)
    assert (found.accelerator, found.driver) == ("cuda", "550.54.14")
    assert setup_plan.the_one_row(found).torch == "2.13.0+cu126"


def test_detection_needs_nothing_but_python() -> None:
    code = "import sys; sys.path[:0] = sys.argv[1:]; from setup_plan import *; print(find_machine(Request()))"
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT), str(ROOT / "scripts")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stdout.startswith("Machine(name='here'"), answer.stderr


# ---- the index


@pytest.fixture
def refusing_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "rocm6.3" / "torch").mkdir(parents=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_index_that_answers_is_the_only_one_that_the_gfx906_pin_comes_from(mirror: str) -> None:
    source = setup_plan.where_torch_comes_from(setup_plan.the_one_row(host("rocm", "gfx906")), mirror)
    pins = ["torch==2.9.1+rocm6.3", "torchvision==0.24.1+rocm6.3", "torchaudio==2.9.1+rocm6.3"]
    assert source.arguments() == ["--index-url", f"{mirror}/rocm6.3", *pins]


def test_without_the_index_cpu_takes_torch_from_pips_own(
    refusing_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source = setup_plan.where_torch_comes_from(setup_plan.the_one_row(CPU), f"http://127.0.0.1:{refusing_port}")
    assert source.arguments() == ["torch==2.13.0"]
    assert source.index is None
    said = capsys.readouterr().out
    assert f"http://127.0.0.1:{refusing_port}/cpu cannot be reached" in said
    assert "refused" in said


def test_without_the_index_cuda_takes_the_whole_trio_from_pips_own(refusing_port: int) -> None:
    row = setup_plan.the_one_row(host("cuda", "sm_90", driver="580.95.05"))
    source = setup_plan.where_torch_comes_from(row, f"http://127.0.0.1:{refusing_port}")
    assert source.arguments() == ["torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0"]


def test_without_the_index_rocm_stops_and_says_what_to_do(refusing_port: int) -> None:
    with pytest.raises(setup_plan.SetUpFailed, match="IIS_TORCH_INDEX") as caught:
        setup_plan.where_torch_comes_from(
            setup_plan.the_one_row(host("rocm", "gfx906")), f"http://127.0.0.1:{refusing_port}"
        )
    assert "TORCH=keep" in str(caught.value)


def test_an_index_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        problem = setup_plan.index_problem(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=1)
    assert problem == "no answer within 1 s"
    assert time.monotonic() - began < 5
    assert setup_plan.INDEX_SECONDS <= 15


# ---- the stamp


def finished(venv: Path, plan: setup_plan.Plan) -> None:
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "bin" / "python").touch()
    (venv / setup_steps.STARTED).write_text(json.dumps(plan.identity(venv)))
    record = {"request": asdict(plan.request), "inputs_sha256": plan.inputs_sha256}
    write_record(venv, record)


@pytest.fixture
def cpu_plan() -> setup_plan.Plan:
    return setup_plan.make_plan(setup_plan.Request("cpu"), CPU)


def test_the_same_inputs_are_done_at_once_and_the_stamp_is_renewed(tmp_path: Path, cpu_plan: setup_plan.Plan) -> None:
    venv = tmp_path / ".venv"
    finished(venv, cpu_plan)
    os.utime(venv / RECORD, (1, 1))
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "scripts" / "setup.py"), "--venv", str(venv)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert time.monotonic() - began < 2
    assert (venv / RECORD).stat().st_mtime > 1


@pytest.mark.parametrize("change", ["constraints", "extra", "torch", "moved", "no interpreter"])
def test_any_other_input_is_not_done(tmp_path: Path, cpu_plan: setup_plan.Plan, change: str) -> None:
    venv = tmp_path / ".venv"
    finished(venv, cpu_plan)
    plan = cpu_plan
    if change == "constraints":
        for name in ("constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        with (tmp_path / "constraints.txt").open("a") as file:
            file.write("another==1\n")
        plan = setup_plan.make_plan(cpu_plan.request, CPU, tmp_path)
    elif change == "extra":
        plan = setup_plan.make_plan(setup_plan.Request("cpu", extras=("deepspeed",)), CPU)
    elif change == "torch":
        plan = setup_plan.make_plan(cpu_plan.request, host("rocm", "gfx906"))
    elif change == "moved":
        venv = venv.rename(tmp_path / "moved")
    else:
        (venv / "bin" / "python").unlink()
    assert setup.is_done(tmp_path / ".venv", record_of(tmp_path / ".venv"), cpu_plan) == (
        change in {"constraints", "extra", "torch"}
    )
    assert not setup.is_done(venv, record_of(venv), plan)


def test_what_the_command_line_leaves_out_stays_as_it_was() -> None:
    recorded = {"request": asdict(setup_plan.Request("rocm", "index", "gfx906", ("deepspeed",)))}
    assert setup.read_request([], recorded)[0] == setup_plan.Request("rocm", "index", "gfx906", ("deepspeed",))
    assert setup.read_request(["--accel", "cpu"], recorded)[0] == setup_plan.Request("cpu", extras=("deepspeed",))
    both = setup.read_request(["--extra", "bitsandbytes"], recorded)[0]
    assert both.extras == ("bitsandbytes", "deepspeed")


def test_someone_elses_environment_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("mine")
    command = [sys.executable, str(ROOT / "scripts" / "setup.py"), "--accel", "cpu", "--venv", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 3
    assert "was not made by this set-up" in answer.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["pyvenv.cfg"]


def test_half_installed_packages_are_dropped_and_whole_ones_stay(tmp_path: Path) -> None:
    site = tmp_path / "lib/python3.11/site-packages"
    for name in ("whole-1.dist-info", "half-1.dist-info", "~orch"):
        (site / name).mkdir(parents=True)
    (site / "whole-1.dist-info" / "RECORD").touch()
    setup_steps.drop_half_installed(tmp_path)
    assert [folder.name for folder in site.iterdir()] == ["whole-1.dist-info"]


def test_the_kit_and_what_its_quick_verbs_import_are_compiled_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(setup_steps, "ROOT", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    site = "lib/python3.11/site-packages"
    for name in ("iis_finetune", f"{site}/typer", f"{site}/torch"):
        write(tmp_path, f"{name}/module.py", "")
    steps = setup_steps.Steps(tmp_path)
    setup_steps.compile_the_quick(steps)
    compiled = {path.parents[1].name for path in tmp_path.rglob("module.*.pyc")}
    assert compiled == {"iis_finetune", "typer"}
    write(tmp_path, f"{site}/rich/broken.py", "no python at all")
    setup_steps.compile_the_quick(steps)
    assert "set-up goes on" in capsys.readouterr().out


def test_a_failed_step_names_itself_its_command_its_last_lines_and_the_fix(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no space left'); raise SystemExit(4)"]
    with pytest.raises(setup_plan.SetUpFailed) as caught:
        setup_steps.Steps(tmp_path).run("the wheels", command, "make room")
    said = str(caught.value)
    for words in ("step failed: the wheels", sys.executable, "ended with 4", "no space left", "fix: make room"):
        assert words in said


OF_ANOTHER_TORCH = """\
#!/bin/sh
case "$*" in
*uninstall*) ;;
*locate_file*) echo "{venv}/lib" ;;
*" torchvision" | *" torchaudio") echo "OSError: libc10_cuda.so: cannot open" >&2; exit 1 ;;
esac
"""


def test_companions_of_another_torch_are_told_calmly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/python", OF_ANOTHER_TORCH.format(venv=tmp_path))
    cured = setup_steps.check_and_cure(setup_steps.Steps(tmp_path))
    assert cured == {"torchvision_removed": True, "torchaudio_placeholder": True}
    said = capsys.readouterr().out
    notes = [line for line in said.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and all("text models" in line for line in notes)
    assert "error" not in said.replace("OSError", "") and "removed" not in said


def test_keep_without_a_torch_is_refused(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    command = [str(tmp_path / "bare/bin/python"), str(ROOT / "scripts" / "setup.py"), "--torch", "keep"]
    answer = subprocess.run([*command, "--venv", str(tmp_path / "new")], capture_output=True, text=True, check=False)
    assert answer.returncode == 3
    assert "TORCH=keep, but" in answer.stderr
    assert not (tmp_path / "new").exists()


def test_an_older_python_can_read_the_file_far_enough_to_be_told() -> None:
    source = (ROOT / "scripts" / "setup.py").read_text()
    ast.parse(source, feature_version=(3, 8))
    check, _, rest = source.partition("raise SystemExit(3)")
    assert "sys.version_info < (3, 11)" in check
    assert "import tomllib" not in check
    assert "from iis_finetune" in rest


# ---- one place of versions


def test_everything_that_is_required_is_pinned_and_torch_is_not() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.split(r"[=<>\[]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    pinned = constraints()
    assert names - set(pinned) == set()
    assert not set(TRIO) & (set(pinned) | names)
    required = {"llamafactory": "0.9.5", "transformers": "5.5.4", "peft": "0.18.1", "trl": "0.24.0"}
    required |= {"accelerate": "1.11.0", "datasets": "4.0.0"}
    assert {name: pinned[name] for name in required} == required
    assert all(re.fullmatch(r"[\w.+]+", version) for version in pinned.values())


def test_conda_users_get_the_same_pins() -> None:
    text = (ROOT / "environment.yml").read_text()
    environment = YAML(typ="safe").load(text)
    (from_pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert from_pip == ["-c constraints.txt", "-e .[train,dev]"]
    for row in (setup_plan.the_one_row(CPU), TABLE[1], setup_plan.the_one_row(host("rocm", "gfx906"))):
        assert f"pip install {' '.join(row.requirements())} --index-url {row.index}\n" in text


# ---- the text-only placeholder


def in_child(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PLACEHOLDER)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_the_placeholder_can_be_imported_like_torchaudio() -> None:
    answer = in_child(
        "import importlib.util, torchaudio, torchaudio.functional, torchaudio.transforms\n"
        "assert importlib.util.find_spec('torchaudio') and torchaudio.__spec__ and torchaudio.__version__\n"
        "print(torchaudio.__file__)"
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(str(PLACEHOLDER))


@pytest.mark.parametrize(
    "use",
    [
        "import torchaudio; torchaudio.load('a.wav')",
        "import torchaudio; torchaudio.functional.resample(1, 2, 3)",
        "import torchaudio; torchaudio.transforms.Resample()",
        "from torchaudio import load",
        "import torchaudio.compliance.kaldi",
    ],
)
def test_every_use_of_the_placeholder_says_what_is_missing(use: str) -> None:
    last = in_child(use).stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: torchaudio")
    assert "audio needs a torchaudio built for the installed torch" in last
    assert "make setup" in last


# ---- make, and the nohup script


# fmt: off
TARGETS = [
    "help", "setup", "train", "plan", "check", "recipes", "runs", "doctor", "test", "test-slow", "test-all", "lint",
    "clean", "download", "evaluate", "export", "chat", "serve", "report", "status", "watch", "logs", "stop",
    "resume", "schema", "models", "setup-ppo",
]
# fmt: on

RECORDING_KIT = '#!/bin/bash\nprintf "%s\\n" "$@" >>"${RECORDING:?}"\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, with a space in its path, that is set up already; its kit writes down how it is called."""
    folder = tmp_path / "a project"
    (folder / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copytree(ROOT / "iis_finetune/tables", folder / "iis_finetune/tables")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    kit = folder / ".venv/bin/iis-finetune"
    kit.write_text(RECORDING_KIT)
    kit.chmod(0o755)
    (folder / ".venv" / RECORD).touch()
    monkeypatch.setenv("RECORDING", str(tmp_path / "calls"))
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # `make test` hands its own flags and level down; a person's shell does not.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60, env=environment
    )


def test_make_alone_lists_every_target(project: Path) -> None:
    listed = [line.split()[0] for line in make(project).stdout.splitlines()[1:]]
    assert sorted(listed) == sorted(TARGETS)


def test_make_passes_names_and_arguments_as_they_are(project: Path) -> None:
    answer = make(project, "train", "RECIPE=my recipe's.yaml", "ARGS=lora_rank=8 'run_name=a b'", "BACKGROUND=1")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == ""
    calls = (project.parent / "calls").read_text().splitlines()
    assert calls == ["train", "my recipe's.yaml", "--background", "lora_rank=8", "run_name=a b"]


def test_make_train_without_a_recipe_says_so(project: Path) -> None:
    assert "make train RECIPE=quickstart" in make(project, "train").stderr


@pytest.mark.parametrize("target", [t for t in TARGETS if t not in {"help", "clean"}])
def test_every_target_sets_up_first_when_its_inputs_are_newer(project: Path, target: str) -> None:
    os.utime(project / ".venv" / RECORD, (1, 1))
    assert "scripts/setup.py" in make(project, "--dry-run", target, "RECIPE=quickstart").stdout


def nohup(project: Path, kit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (project / ".venv/bin/iis-finetune").write_text(kit)
    command = ["scripts/train_nohup.sh", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=30)


def test_nohup_training_has_a_session_a_log_and_a_pid_file_of_its_own(project: Path) -> None:
    kit = '#!/bin/bash\n[[ $1 == check ]] || { echo "$@"; exec sleep 60; }\n'
    answer = nohup(project, kit, "quickstart", "lora_rank=8")
    assert answer.returncode == 0, answer.stderr
    (pid_file,) = (project / "logs").glob("quickstart-*.pid")
    pid = int(pid_file.read_text())
    try:
        assert os.getsid(pid) == pid
        assert f"process {pid}" in answer.stdout
        log = pid_file.with_suffix(".log")
        assert f"tail -f 'logs/{log.name}'" in answer.stdout
        deadline = time.monotonic() + 10
        while not log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert log.read_text() == "train quickstart lora_rank=8\n"
    finally:
        os.kill(pid, 15)


def test_nohup_training_starts_nothing_when_the_recipe_is_wrong(project: Path) -> None:
    answer = nohup(project, '#!/bin/bash\n[[ $1 == check ]] && { echo "error: no" >&2; exit 2; }\n', "wrong")
    assert answer.returncode == 2
    assert answer.stderr == "error: no\n"
    assert not list((project / "logs").glob("*.pid"))


def test_the_extras_of_set_up_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*EXTRAS} == {*extras} - {"train", "dev"}
    assert all(extras[name] == [{"gguf": "llama-cpp-python"}.get(name, name)] for name in EXTRAS)
    request = setup.read_request([word for name in EXTRAS for word in ("--extra", name)], None)[0]
    assert request.extras == tuple(sorted(EXTRAS))
