"""What the kit knows as data: the files beside this one, each read once."""

import json
from functools import cache
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent
SHIPPED = TABLES.parent / "shipped"  # recipes and data that are found behind one's own, and a project to begin with


@cache
def read(name: str) -> Any:
    """A table by its file's name, `machine.toml` or `rules.json`; all readers share it, so none writes."""
    text = (TABLES / name).read_text("utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    import tomllib  # 10 ms that a recipe without a slip need not pay

    return tomllib.loads(text)
