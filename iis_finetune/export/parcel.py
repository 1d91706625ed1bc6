"""What goes of a run to others: files by a list of names, a card of their own, no folder of this machine, no secret."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ..arguments import WHOLE, trained_with
from ..errors import Misused, Place, Problem, ProblemsFound
from ..hub import RemoteFile
from ..models import called
from ..plan.after import Trained
from ..runs import Run, provenance_of, write
from ..tables import read
from . import card

Kind = Literal["adapter", "export", "gguf"]
CARD, HEAD_ENDS = "README.md", "\n# "
NOT_TEXT = (".safetensors", ".bin", ".gguf", ".model", ".tiktoken")
BLOCK_BYTES, OVERLAP = 1 << 20, 512
SECRET_NAMES, SHORTEST_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD"), 12  # how such variables end; their values


class Parcel(Struct, frozen=True):
    """What is given away of a run, and the empty folder in which it is laid out."""

    run: Run
    trained: Trained
    kind: Kind
    folder: Path

    @property
    def holds(self) -> Kind:
        """What lies in it: a training of all weights makes a whole model."""
        whole = trained_with(self.trained.arguments)["finetuning_type"] in WHOLE
        return "export" if whole and self.kind == "adapter" else self.kind

    @property
    def renamed(self) -> dict[str, str]:
        """The folders of this machine that a run's files name, each with what others call it; the longest first."""
        models = (
            self.trained.weights.model,
            provenance_of(self.run).model,
            self.trained.arguments["model_name_or_path"],
        )
        names = {str(model): called(str(model)) for model in models if model and Path(model).is_absolute()}
        names |= {str(self.run.folder.resolve()): self.run.name}
        return dict(sorted(names.items(), key=lambda pair: -len(pair[0])))


class Piece(Struct, frozen=True):
    """A file with its hashes, and what was made or changed for those who get it."""

    file: RemoteFile
    note: str = ""


class Secret(Struct, frozen=True):
    """`mark` is looked for first: a pattern is slow in gigabytes."""

    name: str
    mark: bytes
    pattern: re.Pattern[bytes]


def pack(parcel: Parcel, licence: str | None, environment: Mapping[str, str]) -> list[Piece]:
    """Lay out the files that may go: links, and copies where a text names a folder of this machine.

    Raises Misused for what is not there yet, ProblemsFound for every secret with its file and line.
    """
    chosen = {path.name: path for path in _chosen(parcel)}
    notes = {CARD: "the card", **{name: _lay(path, parcel) for name, path in chosen.items()}}
    _write(parcel.folder / CARD, _card(parcel, licence), parcel)
    secrets, pieces, problems = _secrets(parcel, environment), [], []
    for name, note in notes.items():
        digested, found = examine(parcel.folder / name, secrets)
        where = str(chosen.get(name, name))
        problems += [Problem(f"{name} holds {what}", "take it out", Place(where, line)) for line, what in found.items()]
        pieces.append(Piece(digested, note))
    if problems:
        raise ProblemsFound(problems)
    return pieces


def _chosen(parcel: Parcel) -> list[Path]:
    run, rule = parcel.run, read("push.toml")["kinds"][parcel.holds]
    folder = {"adapter": run.result, "export": run.export, "gguf": run.export / "gguf"}[parcel.kind]
    if not any(folder.glob(rule["needs"])):
        gguf = " --gguf q8_0" if parcel.kind == "gguf" else ""
        raise Misused(f"{run.name} has no {rule['title']} yet", f"iis-finetune export {run.number:04d}{gguf}", "--what")
    if parcel.kind == "adapter" and len(parcel.trained.weights.adapters) > 1:
        what = f"the adapter of {run.name} stands on another one and is no use alone"
        raise Misused(what, f"iis-finetune export {run.number:04d}, then --what export", "--what")
    named = {path for pattern in (*read("push.toml")["shared"], *rule["files"]) for path in folder.glob(pattern)}
    return sorted(path for path in named if path.is_file())


def _card(parcel: Parcel, licence: str | None) -> str:
    """A card made now; that of an export is kept, which tells how it was proven, under a head made now."""
    fresh, own = card(parcel.trained, parcel.run, kind=parcel.holds, licence=licence), parcel.run.export / CARD
    if parcel.kind != "export" or not own.is_file():
        return fresh
    head, kept = fresh.partition(HEAD_ENDS)[0], own.read_text(encoding="utf-8").partition(HEAD_ENDS)[2]
    return f"{head}{HEAD_ENDS}{kept}" if kept else fresh


def _lay(path: Path, parcel: Parcel) -> str:
    """Link or copy a file; what was changed in it."""
    there = parcel.folder / path.name
    if path.suffix not in NOT_TEXT and (told := _write(there, path.read_text(encoding="utf-8"), parcel)):
        return told
    there.unlink(missing_ok=True)
    there.symlink_to(path.resolve())
    return ""


def _write(there: Path, text: str, parcel: Parcel) -> str:
    """Write a text with names in place of this machine's folders; which ones."""
    changed = []
    for folder, name in parcel.renamed.items():
        for written in (folder, json.dumps(folder)[1:-1]):
            if written in text:
                text = text.replace(written, name)
                changed.append(name)
    write(there, text)
    return f"'{changed[0]}' in place of a folder of this machine" if changed else ""


def _secrets(parcel: Parcel, environment: Mapping[str, str]) -> list[Secret]:
    """The forms of the table, the values of variables that hold secrets here, and the folders of this machine."""
    root = parcel.run.folder.resolve().parent.parent
    literal = {each: "a folder of this machine" for each in (*parcel.renamed, str(root)) if each.count("/") > 1}
    for name, value in environment.items():
        if name.endswith(SECRET_NAMES) and len(value) >= SHORTEST_SECRET:
            literal[value] = f"the value of {name}"
    rows = [(row["name"], row["mark"], row["pattern"]) for row in read("push.toml")["secrets"]]
    rows += [(name, text, re.escape(text)) for text, name in literal.items()]
    return [Secret(name, mark.encode(), re.compile(pattern.encode())) for name, mark, pattern in rows]


def examine(path: Path, secrets: Sequence[Secret]) -> tuple[RemoteFile, dict[int, str]]:
    """Read a file once: its hashes as both hubs state them, and the secrets in it by line."""
    size, begin, tail, found = path.stat().st_size, 0, b"", dict[int, str]()
    sha256, git_sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            sha256.update(block)
            git_sha1.update(block)
            window = tail + block
            for secret in secrets:
                if secret.mark in window and (match := secret.pattern.search(window)):
                    found.setdefault(begin - len(tail) + match.start(), secret.name)
            begin, tail = begin + len(block), window[-OVERLAP:]
    file = RemoteFile(path.name, size, sha256.hexdigest(), git_sha1.hexdigest())
    return file, {_line_at(path, at): name for at, name in found.items()}


def _line_at(path: Path, position: int) -> int:
    with path.open("rb") as stream:
        return 1 + stream.read(position).count(b"\n")
