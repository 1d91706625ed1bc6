#!/usr/bin/env python3
"""Freeze the tables of an installed LLaMA-Factory, for machines without it: one folder for each version.

python scripts/freeze_arguments.py                 what this Python has, and .venv-ppo where it is built
python scripts/freeze_arguments.py --check         exit 1 when the files differ from what is installed
python scripts/freeze_arguments.py --python PATH   what another Python has; --to FOLDER writes elsewhere
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from iis_finetune.arguments import version_of
from iis_finetune.tables import TABLES

ROOT = Path(__file__).parent.parent
PROBE = ROOT / "iis_finetune" / "probe" / "arguments.py"
PPO = ROOT / ".venv-ppo" / "bin" / "python"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--python", help="the Python that has LLaMA-Factory")
    parser.add_argument("--to", type=Path, default=TABLES / "llamafactory", help="the folder that holds the versions")
    asked = parser.parse_args()
    pythons = [asked.python] if asked.python else [sys.executable, *([str(PPO)] if PPO.is_file() else [])]
    texts = {asked.to / name: text for python in pythons for name, text in frozen_files(python).items()}
    stale = [file for file, text in texts.items() if not file.is_file() or file.read_text("utf-8") != text]
    for file in () if asked.check else stale:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(texts[file], "utf-8")
    word = "differs" if asked.check else "written"
    print("\n".join(f"{word}: {file}" for file in stale) or "all frozen tables agree")
    return 1 if asked.check and stale else 0


def frozen_files(python: str) -> dict[str, str]:
    """File below the versions' folder -> its text."""
    version = run(python, "-c", "import importlib.metadata as m; print(m.version('llamafactory'))").strip()
    # Models and templates are looked up in the current version alone.
    parts = ["arguments"] if version == version_of("ppo") else ["arguments", "models", "templates"]
    found = json.loads(run(python, str(PROBE), ",".join(["ranges", *parts])).splitlines()[-1])
    heads = {part: {"versions": found["versions"]} for part in parts}
    heads["arguments"]["ranges"] = found["ranges"]
    return {f"{version}/{part}.json": as_lines(heads[part], part, found[part]) for part in parts}


def run(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} could not be asked for its LLaMA-Factory")
    return done.stdout


def as_lines(head: Mapping[str, Any], part: str, rows: Mapping[str, Any]) -> str:
    """JSON with a line a row, so that a change of version reads well in a diff."""
    before = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row, ensure_ascii=False)}" for name, row in rows.items())
    return f"{{{before}{json.dumps(part)}: {{\n{lines}\n}}}}\n"


if __name__ == "__main__":
    sys.exit(main())
