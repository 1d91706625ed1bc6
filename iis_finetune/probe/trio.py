"""Import one of torch, torchvision, torchaudio and print as JSON which build it is; one that cannot load ends it."""

import importlib
import json
import sys


def main(name: str) -> None:
    """Print `name, version, hip, cuda`; the last two say what torch was built for and are null for the others."""
    module = importlib.import_module(name)
    built_for = getattr(module, "version", None)
    found = {
        "name": name,
        "version": getattr(module, "__version__", None),
        "hip": getattr(built_for, "hip", None),
        "cuda": getattr(built_for, "cuda", None),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
