"""What goes of a run to others: files by a list of names, a card of their own, no folder of this machine, no secret."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ..arguments import WHOLE, trained_with
from ..errors import Misused, Place, Problem, ProblemsFound
from ..hub import RemoteFile
from ..models import called
from ..plan.after import Trained
from ..runs import Run, provenance_of
from ..tables import read
from . import IN_PROSE, card

Kind = Literal["adapter", "export", "gguf"]
CARD, HEAD_ENDS = "README.md", "\n# "
SETTINGS = ("*config.json", "Modelfile*")  # the files that name folders; in all others the same letters are data
SET_TO = r"""(?m)("\w*(?:path|file)"\s*:\s*"|^(?:FROM|ADAPTER)\s+"?){}(?![\w.-])"""
RECIPE = re.compile("```yaml\n.*?```", re.DOTALL)
BLOCK_BYTES, OVERLAP = 1 << 20, 512
SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "PASS", "_PWD", "CREDENTIALS")  # how variables end
SHORTEST_SECRET = 12  # of their values
Secrets = Mapping[bytes, tuple[re.Pattern[bytes], str]]  # by the mark that is looked for first: patterns are slow


class Parcel(Struct, frozen=True):
    """What is given away of a run, and the empty folder in which it is laid out."""

    run: Run
    trained: Trained
    kind: Kind
    folder: Path

    @property
    def renamed(self) -> dict[str, str]:
        """The folders of this machine that a run's files name, and what others call them."""
        models = {self.trained.weights.model, str(provenance_of(self.run).model), *self.trained.weights.adapters}
        names = {model: called(model) for model in models if Path(model).is_absolute()}
        return {**names, str(self.run.folder.resolve()): self.run.name}


def pack(parcel: Parcel, licence: str | None, environment: Mapping[str, str]) -> dict[RemoteFile, str]:
    """Lay out the files that may go, each with its hashes and what was made or changed for others.

    Raises Misused for what is not there yet, ProblemsFound for every secret with its file and line.
    """
    chosen = {path.name: path for path in _chosen(parcel)}
    notes = {CARD: "the card", **{name: _lay(path, parcel) for name, path in chosen.items()}}
    _write(parcel.folder / CARD, _card(parcel, licence), parcel, IN_PROSE)
    secrets, packed, problems = _secrets(parcel, environment), {}, []
    for name, note in notes.items():
        file, found = examine(parcel.folder / name, secrets)
        packed[file] = note
        where = str(chosen.get(name, name))
        problems += [Problem(f"{name} holds {what}", "take it out", Place(where, line)) for what, line in found.items()]
    if problems:
        raise ProblemsFound(problems)
    return packed


def _chosen(parcel: Parcel) -> list[Path]:
    run, table = parcel.run, read("push.toml")
    whole = trained_with(parcel.trained.arguments)["finetuning_type"] in WHOLE
    rule = table["kinds"]["export" if whole and parcel.kind == "adapter" else parcel.kind]
    folder = {"adapter": run.result, "export": run.export, "gguf": run.export / "gguf"}[parcel.kind]
    export = f"iis-finetune export {run.number:04d}"
    if not any(folder.glob(rule["needs"])):
        gguf = " --gguf q8_0" if parcel.kind == "gguf" else ""
        raise Misused(f"{run.name} has no {rule['title']} yet", f"{export}{gguf}", "--what")
    if parcel.kind == "adapter" and len(parcel.trained.weights.adapters) > 1:
        what = f"the adapter of {run.name} stands on another one and is no use alone"
        raise Misused(what, f"{export}, then --what export", "--what")
    named = {path for pattern in (*table["shared"], *rule["files"]) for path in folder.glob(pattern)}
    return sorted(path for path in named if path.is_file())


def _card(parcel: Parcel, licence: str | None) -> str:
    """A card made now; that of an export is kept, which tells how it was proven, under a head made now."""
    kind = parcel.kind if parcel.trained.weights.adapters or parcel.kind != "adapter" else "export"
    fresh, own = card(parcel.trained, parcel.run, kind=kind, licence=licence), parcel.run.export / CARD
    if parcel.kind != "export" or not own.is_file():
        return fresh
    kept = own.read_text(encoding="utf-8").partition(HEAD_ENDS)[2]
    kept = RECIPE.sub(lambda _: "".join(RECIPE.findall(fresh)), kept)
    return f"{fresh.partition(HEAD_ENDS)[0]}{HEAD_ENDS}{kept}" if kept else fresh


def _lay(path: Path, parcel: Parcel) -> str:
    """Link a file, or write it with other names in it; which."""
    there = parcel.folder / path.name
    if any(path.match(each) for each in SETTINGS):
        return _write(there, path.read_bytes().decode(errors="surrogateescape"), parcel, SET_TO)
    there.symlink_to(path.resolve())
    return ""


def _write(there: Path, text: str, parcel: Parcel, where: str) -> str:
    """Write a text with names in place of this machine's folders; which."""
    told = ""
    for folder, name in sorted(parcel.renamed.items(), reverse=True):  # what lies in another folder comes before it
        for written in {folder, json.dumps(folder)[1:-1]}:
            new = r"\g<1>" + name.replace("\\", r"\\")
            text, count = re.subn(where.format(re.escape(written)), new, text)
            told = f"'{name}' in place of a folder of this machine" if count else told
    there.write_bytes(text.encode(errors="surrogateescape"))
    return told


def _secrets(parcel: Parcel, environment: Mapping[str, str]) -> Secrets:
    """The forms of the table, the values of variables that hold secrets here, and the folders of this machine."""
    home = environment.get("HOME", "").rstrip("/")
    folders = {*parcel.renamed, str(parcel.run.folder.resolve().parent.parent), home, f"{home}/"}
    forms = {each: rf"{re.escape(each)}(?:(?<=/)|(?![\w-]))" for each in folders if each.count("/") > 1}
    rows = [(row["mark"], row["pattern"], row["name"]) for row in read("push.toml")["secrets"]]
    rows += [(folder, form, "a folder of this machine") for folder, form in forms.items()]
    rows += [
        (value, re.escape(value), f"the value of {name}")
        for name, value in environment.items()
        if name.endswith(SECRET_NAMES) and len(value) >= SHORTEST_SECRET
    ]
    return {mark.encode(): (re.compile(pattern.encode()), name) for mark, pattern, name in rows}


def examine(path: Path, secrets: Secrets) -> tuple[RemoteFile, dict[str, int]]:
    """Read a file once: its hashes as the hubs state them, and the first secret of each kind in it by its line."""
    size, end, tail, found = path.stat().st_size, 0, b"", dict[str, int]()
    sha256, git_sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            sha256.update(block)
            git_sha1.update(block)
            window, begin = tail + block, end - len(tail)
            for mark, (pattern, name) in secrets.items():
                if mark in window and (match := pattern.search(window)):
                    found.setdefault(name, begin + match.start())
            end, tail = end + len(block), window[-OVERLAP:]
    lines = {name: 1 + path.read_bytes()[:at].count(b"\n") for name, at in found.items()}
    return RemoteFile(path.name, size, sha256.hexdigest(), git_sha1.hexdigest()), lines
