"""The package as a wheel: built of a copy of the sources, used in empty environments and folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import LONGEST, ROOT
from packaging.requirements import Requirement

from iis_finetune import dataset
from iis_finetune.dataset.registry import enter
from iis_finetune.errors import ProblemsFound
from iis_finetune.runs import Run

SITE = Path(sysconfig.get_path("purelib"))
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "iis_finetune", "recipes", "data", "scripts")
LARGEST_BYTES = 1_000_000
MISSING = "error: LLaMA-Factory is not installed"


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built of, with what lies about in a clone that is worked in."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "data" / "my_rows.json").write_text("[]", encoding="utf-8")
    (folder / "iis_finetune" / "tables" / "__pycache__").mkdir(exist_ok=True)
    (folder / "iis_finetune" / "tables" / "__pycache__" / "x.pyc").touch()
    return folder


def build(sources: Path, target: Path) -> Path:
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(sources)]
    subprocess.run([sys.executable, "-W", "ignore", "-m", "pip", *words], check=True, capture_output=True, timeout=300)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(sources, tmp_path_factory.mktemp("wheel"))


def names_in(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}


def environment_with(folder: Path, wheel: Path, packages: Path) -> Path:
    """A virtual environment that has the wheel, and beside it the packages of another folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    (folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/others.pth").write_text(
        f"{packages}\n"
    )
    words = ["--python", str(folder / "bin/python"), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True, timeout=300)
    return folder / "bin"


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `pip install` brought the wheel with the dependencies that it names, and no more: no torch, no trainer."""
    packages = tmp_path_factory.mktemp("packages")
    for name in required(needed_by(wheel), set()):
        for top in {Path(str(file)).parts[0] for file in metadata.files(name) or ()} - {".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(SITE / top)
    return environment_with(tmp_path_factory.mktemp("bare"), wheel, packages)


def needed_by(wheel: Path) -> list[str]:
    said = zipfile.ZipFile(wheel).read("iis_finetune-0.1.0.dist-info/METADATA").decode()
    return re.findall(r"^Requires-Dist: (.+)$", said, re.MULTILINE)


def required(lines: list[str], seen: set[str]) -> set[str]:
    """The packages that are required without an extra, and all the way down what those require."""
    for needed in map(Requirement, lines):
        if needed.name not in seen and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            seen.add(needed.name)
            required(metadata.requires(needed.name) or [], seen)
    return seen


@pytest.fixture(scope="session")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where torch and LLaMA-Factory are installed too."""
    programs = environment_with(tmp_path_factory.mktemp("whole"), wheel, SITE)
    (programs / "llamafactory-cli").write_text(
        f"#!{programs / 'python'}\nfrom llamafactory.cli import main\nmain()\n", encoding="utf-8"
    )
    (programs / "llamafactory-cli").chmod(0o755)
    return programs


def type_in(folder: Path, programs: Path, *words: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """A command as it is typed in a folder where an environment is active."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("IIS_", "PYTHON", "VIRTUAL_"))}
    environment = {**kept, "PATH": f"{programs}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "bug in iis-finetune" not in done.stderr
    return done


def test_the_wheel_holds_the_package_and_what_is_shipped_and_nothing_else(wheel: Path, sources: Path) -> None:
    names = names_in(wheel)
    assert {Path(name).parts[0] for name in names} == {"iis_finetune", "iis_finetune-0.1.0.dist-info"}
    assert [name for name in names if re.search(r"pycache|\.pyc$|test_|my_rows", name)] == []
    shipped = {name.removeprefix("iis_finetune/shipped/") for name in names if "/shipped/" in name}
    assert {f"recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml")} <= shipped
    registry = json.loads((ROOT / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    assert {f"data/{entry['file_name']}" for entry in registry.values()} <= shipped
    assert {"project/Makefile", "project/recipes/mine.yaml", "project/data/dataset_info.json"} <= shipped
    assert wheel.stat().st_size < LARGEST_BYTES


@pytest.mark.slow
def test_a_wheel_built_of_the_source_archive_is_the_same(wheel: Path, sources: Path, tmp_path: Path) -> None:
    make = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", make], cwd=sources, check=True, capture_output=True, timeout=300
    )
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert names_in(build(unpacked, tmp_path / "again")) == names_in(wheel)


def test_the_wheel_says_what_it_is_and_what_it_needs(wheel: Path) -> None:
    said = zipfile.ZipFile(wheel).read("iis_finetune-0.1.0.dist-info/METADATA").decode()
    for line in ("License-Expression: Apache-2.0", "Description-Content-Type: text/markdown", "License-File: LICENSE"):
        assert line in said
    assert not required(needed_by(wheel), set()) & {"torch", "llamafactory", "transformers", "datasets"}


def test_init_lays_out_a_project_that_passes_its_check_and_overwrites_nothing(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("mine:\n", encoding="utf-8")
    done = type_in(tmp_path, whole, "iis-finetune", "init", "a project")
    assert done.returncode == 0 and "made: a project/recipes/mine.yaml" in done.stdout
    following = done.stdout.split("next: ")[1].strip()
    checked = type_in(tmp_path, whole, "bash", "-c", following)
    assert checked.returncode == 0 and "next: iis-finetune train mine" in checked.stdout
    project = tmp_path / "a project"
    for words in (
        ["make", "check", "RECIPE=quickstart"],
        ["make", "recipes"],
        ["bash", "-n", "scripts/train_nohup.sh"],
    ):
        assert type_in(project, whole, *words).returncode == 0
    assert os.access(project / "scripts" / "train_nohup.sh", os.X_OK)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    done = type_in(tmp_path, whole, "iis-finetune", "init")
    assert "kept as it was: Makefile" in done.stdout and "next: iis-finetune check mine" in done.stdout
    assert (tmp_path / "Makefile").read_text(encoding="utf-8") == "mine:\n"
    assert "made" not in type_in(project, whole, "iis-finetune", "init").stdout
    assert before == {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    (tmp_path / "file").touch()
    done = type_in(tmp_path, whole, "iis-finetune", "init", "file")
    assert done.returncode == 2 and "'file' is no folder" in done.stderr
    done = type_in(tmp_path, whole, "iis-finetune", "init", "/proc/no_place")
    assert done.returncode == 2 and "/proc/no_place" in done.stderr and "init DIR, one that you" in done.stderr


def test_in_an_empty_folder_the_shipped_recipes_and_data_are_found(whole: Path, tmp_path: Path) -> None:
    listed = json.loads(type_in(tmp_path, whole, "iis-finetune", "recipes", "--json").stdout)["recipes"]
    assert {"quickstart", "qwen7b_lora"} <= {row["recipe"] for row in listed} and all(row["shipped"] for row in listed)
    checked = type_in(tmp_path, whole, "iis-finetune", "check", "quickstart")
    assert checked.returncode == 0 and "next: iis-finetune train quickstart" in checked.stdout
    planned = type_in(tmp_path, whole, "iis-finetune", "plan", "quickstart", "--json")
    assert planned.returncode == 0 and json.loads(planned.stdout)["steps"] == 228
    assert "600 usable" in type_in(tmp_path, whole, "iis-finetune", "data", "stats", "quickstart").stdout
    assert "200 usable" in type_in(tmp_path, whole, "iis-finetune", "data", "check", "general_test").stdout
    assert list(tmp_path.iterdir()) == []  # a look copies nothing
    split = type_in(tmp_path, whole, "iis-finetune", "data", "split", "general_test")
    assert split.returncode == 0 and (tmp_path / "data" / "general_test_train.jsonl").is_file()


def test_ones_own_recipe_and_data_come_before_the_shipped_ones(whole: Path, tmp_path: Path) -> None:
    type_in(tmp_path, whole, "iis-finetune", "init")
    assert type_in(tmp_path, whole, "iis-finetune", "recipes", "--copy", "quickstart", "quickstart").returncode == 0
    own = tmp_path / "recipes" / "quickstart.yaml"
    own.write_text(own.read_text(encoding="utf-8").replace("lora_rank: 64", "lora_rank: 32"), encoding="utf-8")
    rows = [{"instruction": f"say {n}", "input": "", "output": f"it is {n * 7}"} for n in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ("data", "add", "rows.json", "--name", "intelligence_alpaca")
    assert type_in(tmp_path, whole, "iis-finetune", *words).returncode == 0
    listed = json.loads(type_in(tmp_path, whole, "iis-finetune", "recipes", "--json").stdout)["recipes"]
    assert [row["recipe"] for row in listed if not row["shipped"]] == ["mine", "quickstart"]
    planned = json.loads(type_in(tmp_path, whole, "iis-finetune", "plan", "quickstart", "--json").stdout)
    assert planned["arguments"]["lora_rank"] == 32 and planned["steps"] == 18  # 40 rows, 16 at a time, 6 times


def test_without_llamafactory_one_sentence_says_what_to_install(bare: Path, tmp_path: Path) -> None:
    asked = [
        *(
            ["check", "quickstart"],
            ["check", "qwen0_5b_lora", "--deep"],
            ["plan", "quickstart"],
            ["train", "quickstart"],
        ),
        *(["train", "quickstart", "--smoke"], ["data", "preview", "quickstart"]),
    ]
    for words in asked:
        done = type_in(tmp_path, bare, "iis-finetune", *words)
        assert done.returncode == 3 and done.stderr.count("error:") == done.stderr.count(MISSING) == 1, words
        assert "`iis-finetune doctor --install-plan`" in done.stderr
    assert type_in(tmp_path, bare, "iis-finetune", "check", "quickstart", "--on", "cpu").returncode == 0
    assert "memory of each device" in type_in(tmp_path, bare, "iis-finetune", "plan", "quickstart").stdout
    assert type_in(tmp_path, bare, "iis-finetune", "recipes").returncode == 0
    looked = type_in(tmp_path, bare, "iis-finetune", "doctor", "--quick")
    assert looked.returncode == 3 and MISSING in looked.stderr
    lines = type_in(tmp_path, bare, "iis-finetune", "doctor", "--install-plan", "--on", "cpu").stdout
    assert "'iis-finetune[train]'" in lines
    pins = re.search(r"-c (\S+)", lines)
    assert pins and "llamafactory==0.9.5" in Path(pins[1]).read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == []
    rows = "question,answer\nwhich is first,one\nwhich is next,two\n"
    (tmp_path / "rows.csv").write_text(rows, encoding="utf-8")
    columns = "instruction=question,output=answer"
    added = type_in(tmp_path, bare, "iis-finetune", "data", "add", "rows.csv", "--columns", columns)
    assert added.returncode == 0 and "2 usable rows" in added.stdout


def test_what_comes_after_training_says_it_too(bare: Path, evaluated_run: Run, tmp_path: Path) -> None:
    project = tmp_path / "copied"
    shutil.copytree(evaluated_run.folder.parent.parent, project, symlinks=True)
    assert type_in(project, bare, "iis-finetune", "check", "tiny").stderr.count("error:") == 1  # reads its tokenizer
    for words in (["export", "last"], ["chat", "last"], ["serve", "last"], ["evaluate", "last", "--part", "7"]):
        done = type_in(project, bare, "iis-finetune", *words)
        assert done.returncode == 3 and done.stderr.count("error:") == done.stderr.count(MISSING) == 1, words


def test_data_of_ones_own_are_not_overwritten_by_what_is_copied_from_the_kit(tmp_path: Path) -> None:
    """LLaMA-Factory looks into one folder: what is trained on is copied there, with its entry."""
    data = tmp_path / "data"
    enter(data, {"little": {"file_name": "little.json"}})
    assert dataset.bring(["little", "intelligence_alpaca"], data) == ["intelligence_alpaca"]
    assert {"little", "intelligence_alpaca"} == {*dataset.read_registry(data).entries}
    assert (data / "intelligence_train.json").read_bytes() == (ROOT / "data" / "intelligence_train.json").read_bytes()
    assert dataset.bring(["intelligence_alpaca"], data) == []
    elsewhere = {"hub": {"hf_hub_url": "a/b"}, "theirs": {"file_name": "/a/b.json"}, "odd": 3}
    assert [*dataset.known(tmp_path / "none").shipped(["general_test", "no"])] == ["general_test"]
    registry = tmp_path / "clone" / "dataset_info.json"
    registry.parent.mkdir()
    registry.write_text(json.dumps({**elsewhere, "here": {"file_name": "rows.json"}}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iis_finetune.dataset.registry.SHIPPED", registry.parent)
        assert [*dataset.known(data).shipped([*elsewhere, "here"])] == ["here"]
    (data / "general_test.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ProblemsFound, match="is there already"):
        dataset.bring(["general_test"], data)
    assert (data / "general_test.json").read_text(encoding="utf-8") == "[]"


@pytest.mark.slow
def test_the_quickstarts_smoke_run_passes_in_an_environment_without_a_clone(whole: Path, tmp_path: Path) -> None:
    type_in(tmp_path, whole, "iis-finetune", "doctor", "--fix")  # as its sentence says where torchaudio cannot load
    seen = type_in(tmp_path, whole, "iis-finetune", "data", "preview", "quickstart")
    assert seen.returncode == 0 and not (tmp_path / "data").exists()
    done = type_in(tmp_path, whole, "iis-finetune", "train", "quickstart", "--smoke", seconds=LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "copied from the kit" in done.stdout
    assert (tmp_path / "data" / "intelligence_train.json").is_file()
    (made,) = (tmp_path / "runs").glob("0001-*")
    assert Run(made).export.is_dir() and Run(made).evaluation.is_dir()
