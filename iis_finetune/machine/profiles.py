"""The machines that `--on` names (`tables/profiles.toml`), however their names are spelled."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from ..errors import COMMAND_LINE, Place, Problem, ProblemsFound
from ..tables import read
from .knowledge import Row, cell
from .records import Device, Machine, Vendor

CPU_COUNT = 16  # an assumption: profiles describe cards, and only OMP_NUM_THREADS follows from it
# Nothing else may be left out of a name: a word that is not understood is another card.
IGNORED = re.compile(r"amd|nvidia|radeon|instinct|geforce|tesla|graphics|gpu|[\s_.,()/+-]")
SERIES = re.compile(r"^(rx|rtx|gtx)(?=\d)")
SIZED = re.compile(r"(.+?)(?:[\s_(-]+(\d+) ?g(?:i?b)?|: ?(\d+) ?(?:g(?:i?b)?)?)\)?")
COUNTED = re.compile(r"(?!\d{1,3} ?x)(.+?) ?x ?([1-9]\d{0,3})|([1-9]\d{0,2}) ?x ?(.+)")  # 4090x8 or 8x4090
MEASURED = re.compile(r"\s*(?<!\d)(\d{1,4}) ?[张块片卡路]\s*")  # the words that Chinese counts cards with


@cache
def profiles() -> Mapping[str, Row]:
    """Name -> row, in the table's order."""
    return {row["name"]: row for row in read("profiles.toml")["profile"]}


def profile(text: str) -> Machine:
    """The machine that `--on NAME[xN]` names; raises ProblemsFound with near names when there is none."""
    wanted = _latin(text)
    row, count = _row(wanted), 1
    if row is None and (several := COUNTED.fullmatch(wanted)):
        row, count = _row(several[1] or several[4]), int(several[2] or several[3])
    if row is None or (row["architecture"] == "cpu" and count > 1):
        raise ProblemsFound([_unknown(text)])
    name = row["name"] + (f"x{count}" if count > 1 else "")
    if row["architecture"] == "cpu":
        return Machine(name, "cpu", cpu_count=CPU_COUNT, memory_gib=row["memory_gib"], cpu_flags=("avx2",))
    amd = row["architecture"].startswith("gfx")
    integrated = cell(row["architecture"], "integrated") is not None
    vendor: Vendor = "amd" if amd else "nvidia"
    one = Device(0, row["device"], vendor, row["architecture"], row["memory_gib"], integrated=integrated)
    devices = tuple(replace(one, index=number) for number in range(count * row.get("dies", 1)))
    return Machine(name, "rocm" if amd else "cuda", devices, cpu_count=CPU_COUNT, cpu_flags=("avx2",))


def _latin(text: str) -> str:
    """A name with the words and signs of the table: `两张ＭＩ５０` is 2x mi50, `4090笔记本×2` is 4090 laptop x2."""
    for word, meant in read("profiles.toml")["words"].items():
        text = text.replace(word, meant)
    text = unicodedata.normalize("NFKC", text).lower().strip()
    text = MEASURED.sub(lambda found: f" x{found[1]}" if found.start() else f"{found[1]}x ", text)
    return text.partition(":")[0] if text.startswith("gfx") else text  # rocminfo says gfx906:sramecc+:xnack-


def _plain(text: str) -> str:
    """As names are compared: `AMD Radeon RX 9070` is rx9070, `Strix Halo` is strixhalo, `sm_8.6` is sm86."""
    return IGNORED.sub("", text.lower())


@cache
def _spellings() -> Mapping[str, Row]:
    """Plain name -> row: of the machine, of its card, without the series (4090), of architectures (the first)."""
    rows, loose = profiles().values(), dict[str, Row]()
    for row in rows:
        called = (row["name"], row.get("device", row["name"]), row["architecture"], *row.get("also", ()))
        names = [_plain(each) for each in called]
        for name in (*names, *(SERIES.sub("", each) for each in names)):
            loose.setdefault(name, row)
    return loose | {_plain(row["name"]): row for row in rows}


def _row(wanted: str) -> Row | None:
    """The row so spelled, also with its memory behind it, as in a100 80gb."""
    spelled, sized = _spellings(), SIZED.fullmatch(wanted)
    if _plain(wanted) in spelled or sized is None:
        return spelled.get(_plain(wanted))
    row, gb = spelled.get(_plain(sized[1])), int(sized[2] or sized[3])
    if row is None or 0.88 * gb <= row["memory_gib"] * row.get("dies", 1) <= gb:  # drivers keep a part of the memory
        return row
    return profiles().get(f"{row['name']}-{gb}gb")


def _unknown(text: str) -> Problem:
    import difflib

    plain, rows = _plain(SIZED.sub(r"\1", _latin(text))), _spellings()
    near = [each for each in rows if plain and each.startswith(plain)] + difflib.get_close_matches(plain, rows, n=5)
    names = list(dict.fromkeys(f"'{rows[each]['name']}' ({rows[each]['memory_gib']} GiB)" for each in near))[:3]
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    fix = f"{hint}`iis-finetune machines` lists them all ('mi50x2' is two of a card)"
    return Problem(f"unknown machine {text!r}", fix, Place(file=COMMAND_LINE, key="--on"))
