#!/usr/bin/env python3
"""Freeze the installed LLaMA-Factory's argument, model and template tables for machines without it.

python scripts/freeze_arguments.py            writes iis_finetune/tables/
python scripts/freeze_arguments.py --check    exit 1 when the files differ from what is installed
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from iis_finetune.arguments.catalogue import MODELS, TEMPLATES
from iis_finetune.arguments.read_classes import read_arguments
from iis_finetune.arguments.read_registers import read_models, read_templates
from iis_finetune.arguments.table import FROZEN, PACKAGES, PPO_FROZEN

PPO = Path(__file__).parent.parent / ".venv-ppo"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    only_check = parser.parse_args().check
    stale = []
    for file, text in frozen_files().items():
        if not file.is_file() or file.read_text("utf-8") != text:
            stale.append(file)
            if not only_check:
                file.write_text(text, "utf-8")
    print("\n".join(f"{'differs' if only_check else 'written'}: {file}" for file in stale) or "all frozen tables agree")
    return 1 if only_check and stale else 0


def frozen_files() -> dict[Path, str]:
    """The text of each frozen file, from what is installed."""
    folders = {name: folder(name) for name in PACKAGES}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    llamafactory = folders["llamafactory"]
    rows = {
        FROZEN: ("arguments", read_arguments(llamafactory, folders["transformers"])),
        MODELS: ("models", read_models(llamafactory)),
        TEMPLATES: ("templates", read_templates(llamafactory)),
    }
    texts = {file: as_lines(versions, key, table) for file, (key, table) in rows.items()}
    for site in PPO.glob("lib/python*/site-packages"):
        texts[PPO_FROZEN] = differences(rows[FROZEN][1], site)
    return texts


def differences(rows: Mapping[str, Mapping[str, Any]], site: Path) -> str:
    """What the second environment's table has otherwise; other words in a help are no difference."""
    other = read_arguments(*(site / name for name in PACKAGES))
    changed = {
        name: row
        for name, row in other.items()
        if name not in rows or any(row[field] != rows[name][field] for field in row if field != "help")
    }
    found = importlib.metadata.distributions(path=[str(site)])
    versions = {each.name: each.version for each in found if each.name in PACKAGES}
    missing = json.dumps(sorted(set(rows) - set(other)))
    return as_lines(versions, "arguments", changed).replace(",\n", f',\n"missing": {missing},\n', 1)


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def as_lines(versions: Mapping[str, str], key: str, rows: Mapping[str, Any]) -> str:
    """JSON with a line a row, so that a change of version reads well in a diff."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row, ensure_ascii=False)}" for name, row in rows.items())
    return f'{{"versions": {json.dumps(versions)},\n"{key}": {{\n{lines}\n}}}}\n'


if __name__ == "__main__":
    sys.exit(main())
