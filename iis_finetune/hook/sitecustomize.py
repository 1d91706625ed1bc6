"""Python imports this at the start of every training process; it waits for transformers' trainer and adds to it.

Only processes that have this folder on their path and `IIS_RUN` in their environment are touched.
"""

import importlib.util
import os
import sys
from pathlib import Path


def _next_in_line() -> None:
    """Run the sitecustomize that this one hides (a distribution's, a virtual environment's)."""
    here = Path(__file__).parent.resolve()
    for folder in sys.path:
        file = Path(folder or ".") / "sitecustomize.py"
        if file.is_file() and file.parent.resolve() != here:
            spec = importlib.util.spec_from_file_location("sitecustomize", file)
            if spec and spec.loader:
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
            return


_next_in_line()
if os.environ.get("IIS_RUN"):
    import iis_training_hook  # type: ignore[import-not-found] # beside this file, on the training's path only

    iis_training_hook.wait_for_trainer()
