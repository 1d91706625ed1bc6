"""Time and memory of data clean and data split: python benchmarks/near_rows.py [--rows 10000 100000 1000000]."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataset import words

from iis_finetune import dataset

LENGTH = 150  # words, about 1 KB a row with its keys
EXACT, NEAR = 20, 10  # every so many rows repeat an earlier one, word for word or with one word changed
TARGETS = {("exact", 1_000_000): (60, 1024), ("near", 1_000_000): (1800, 5120), ("split", 1_000_000): (1800, 5120)}


def write_rows(file: Path, count: int) -> None:
    source, known = random.Random(1), words(2)
    frequent = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(known))))
    earlier: list[list[str]] = [known[:LENGTH]]
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            text = source.choices(known, cum_weights=frequent, k=LENGTH)
            if number % EXACT == 0 or number % NEAR == 1:
                text = list(earlier[source.randrange(len(earlier))])
            if number % NEAR == 1:
                text[source.randrange(LENGTH)] = f"changed{number}"
            elif number % 100 == 2:
                earlier.append(text)
            row = {"instruction": " ".join(text[:70]), "input": "", "output": " ".join(text[70:])}
            out.write(json.dumps(row) + "\n")


@contextmanager
def silent(_what: str) -> Iterator[Callable[[float], None]]:
    yield lambda _share: None


def measure(work: str, folder: Path) -> dict[str, Any]:
    """One verb in this process: seconds, peak memory and what it found."""
    start, cpu = time.perf_counter(), time.process_time()
    if work == "split":
        found = str(dataset.split("rows", folder, dataset.Cut(0.1), silent).rows)
    else:
        kinds = ("exact",) if work == "exact" else ("exact", "near")
        cleaned = dataset.clean("rows", folder, dataset.Wash(kinds, name=work), silent)
        found = ", ".join(f"{len(rows)} {kind}" for kind, rows in cleaned.found.items() if rows)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "memory_mib": used, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--work", nargs="+", default=["exact", "near", "split"])
    given = parser.parse_args()
    print(f"{'rows':>9} {'MB':>6} {'work':>6} {'seconds':>8} {'cpu s':>7} {'us a row':>8} {'MiB':>6}", end=" ")
    print(f"{'limits':>14}  found")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in given.rows:
            file = folder / "rows.jsonl"
            write_rows(file, count)
            for work in given.work:
                for made in set(folder.iterdir()) - {file}:
                    made.unlink()
                (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": file.name}}), "utf-8")
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    got = pool.apply(measure, (work, folder))
                limits = "{} s, {} MiB".format(*TARGETS[work, count]) if (work, count) in TARGETS else ""
                size = file.stat().st_size / 1e6
                print(f"{count:>9} {size:>6.0f} {work:>6} {got['seconds']:>8.1f}", end=" ")
                print(f"{got['cpu']:>7.1f} {got['cpu'] / count * 1e6:>8.0f} {got['memory_mib']:>6.0f}", end=" ")
                print(f"{limits:>14}  {got['found']}", flush=True)


if __name__ == "__main__":
    main()
