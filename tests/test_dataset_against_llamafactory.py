"""The kit's verdict on every data file of the table against LLaMA-Factory's own loader, in one child process."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_cases import CASES

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("llamafactory_loader.py")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int | str]:
    folder = tmp_path_factory.mktemp("loader")
    keys = ("name", "stage", "suffix", "entry", "generate")
    asked = [
        {key: getattr(case, key) for key in keys} | {"body": base64.b64encode(case.body).decode()} for case in CASES
    ]
    (folder / "cases.json").write_text(json.dumps(asked), "utf-8")
    placeholder = Path(__file__).parents[1] / "iis_finetune" / "hook" / "torchaudio_placeholder"
    paths = [str(path) for path in (placeholder, *os.environ.get("PYTHONPATH", "").split(os.pathsep)) if str(path)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    command = [sys.executable, str(CHILD), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int | str] = json.loads((folder / "verdicts.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_llamafactory_does_what_the_table_says(case: object, verdicts: dict[str, int | str]) -> None:
    name, kept = case.name, case.kept  # type: ignore[attr-defined]
    real = verdicts[name]
    assert (real if isinstance(real, int) else "stops") == kept, real
