"""Started as a child: train, merge and compare each cell of the table in one process, one JSON line a cell."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml
from llamafactory.train.tuner import export_model, run_exp

from iis_finetune.probe import parity


def do(cell: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(cell["environment"])
    run_exp(yaml.safe_load(Path(cell["arguments"]).read_text(encoding="utf-8")))
    gc.collect()
    spec = cell["comparison"]
    converted = Path(cell["output"]) / "pissa_converted"
    if converted.is_dir():  # known only after the training
        spec["adapters"] = [str(converted)]
        spec["arguments"]["adapter_name_or_path"] = str(converted)
    export_model(dict(spec["arguments"]))
    return {"found": parity.compare(spec)}


for cell in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    try:
        done = do(cell)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a cell that fails must not take the others with it
        traceback.print_exc()
        done = {"failed": f"{type(error).__name__}: {error}"}
    with Path(sys.argv[2]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"cell": cell["cell"], **done}) + "\n")
