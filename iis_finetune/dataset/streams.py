"""Stream the rows of data files, with the line each one starts on, without holding a file in memory."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from .findings import Fault, Row
from .sources import Source

Progress = Callable[[float], None]

# `datasets` fixes a file's columns and types by what its first read of 10 MiB holds (packaged_modules/json, 4.0.0).
FIRST_TABLE_BYTES = 10 << 20
CHUNK_CHARACTERS = 1 << 22
LONGEST_ROW_CHARACTERS = 64 << 20
JSON = json.JSONDecoder()
BOM = b"\xef\xbb\xbf"
SPACE = re.compile(r"\s*")
CSV_CHUNK_ROWS = 10_000  # as `datasets` reads them, each with types of its own


def read_rows(path: Path, file_type: str, progress: Progress | None = None) -> Iterator[Row]:
    """The rows of one file, numbered from 1; never raises for what the file holds, but yields a Fault as value."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
    if file_type in {"json", "csv", "text"} and head.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield Row(1, 1, Fault("encoding", "UTF-16"))
        return
    readers = {"json": json_reader(head), "csv": csv_rows, "text": text_rows}
    rows = readers.get(file_type, table_rows)(path)
    try:
        yield from _reporting(rows, path, progress) if progress else rows
    except UnicodeDecodeError:
        yield encoding_fault(path)
    except ImportError as error:
        yield Row(1, None, Fault("package", f"{path.suffix} files are read by {error.name}"))


def _reporting(rows: Iterator[Row], path: Path, progress: Progress) -> Iterator[Row]:
    """Tell how much of a file has been read, guessed from the rows' own length, every 2,000 rows."""
    size = max(path.stat().st_size, 1)
    for seen, row in enumerate(rows, 1):
        yield row
        if seen % 2000 == 0:
            progress(min(1.0, seen * _typical_bytes(row.value) / size))


def _typical_bytes(value: Any) -> int:
    return sum(len(str(item)) for item in value.values()) + 20 if isinstance(value, dict) else 100


def json_reader(head: bytes) -> Callable[[Path], Iterator[Row]]:
    """Lines when the first line is a value of its own; else one array, or values one after another."""
    bare = head.removeprefix(BOM).lstrip()
    if bare.startswith(b"["):
        return json_array
    try:
        json.loads(bare.split(b"\n", 1)[0])
    except ValueError:
        try:
            JSON.raw_decode(bare.decode("utf-8", "ignore"))
        except ValueError:
            return json_lines
        return json_values
    return json_lines


def is_lines(source: Source) -> bool:
    """Whether a source's first file is JSON that goes to pyarrow's reader; an array goes through pandas."""
    with source.files[0].open("rb") as file:
        return source.file_type == "json" and not file.read(4096).lstrip().startswith(b"[")


def json_lines(path: Path) -> Iterator[Row]:
    from orjson import JSONDecodeError, loads

    number = offset = 0
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            first_table = offset < FIRST_TABLE_BYTES
            offset += len(line)
            try:
                value = loads(line)
            except JSONDecodeError:
                if not line.strip():
                    continue
                value = _second_look(line)
            number += 1
            yield Row(number, line_number, value, first_table)


def _second_look(line: bytes) -> Any:
    """A line the fast parser refused: the value if LLaMA-Factory takes it all the same, else the fault."""
    try:
        value = json.loads(line.removeprefix(BOM).decode("utf-8"))
    except UnicodeDecodeError:
        return Fault("encoding", guess_encoding(line))
    except json.JSONDecodeError as error:
        return Fault("json", f"{error.msg} at column {error.colno}")
    except RecursionError:
        return Fault("json", "nested too deeply")
    halves = any("\ud800" <= letter <= "\udfff" for letter in json.dumps(value, ensure_ascii=False))
    return Fault("surrogate") if halves else value


def json_array(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        window, number = _Window(file), 0
        if not window.takes("["):
            yield Row(1, 1, Fault("bom"))
            return
        more = not window.takes("]")
        while more:
            row = window.row(number := number + 1)
            yield row._replace(value={"text": row.value}) if isinstance(row.value, str) else row
            more = not isinstance(row.value, Fault) and window.takes(",")
        if number and not isinstance(row.value, Fault) and not window.takes("]"):
            yield Row(number, window.line, Fault("json", "a comma or the closing ] is missing after this row"))


def json_values(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        window, number, fine = _Window(file), 0, True
        while fine and window.peek():
            row = window.row(number := number + 1)
            yield row
            fine = not isinstance(row.value, Fault)


class _Window:
    """A sliding window over a JSON text, so that a file of any size is decoded value by value."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at, self.line = file, "", 0, 1

    def peek(self) -> str:
        """The next character that is no space, or nothing at the end."""
        while True:
            self._move(SPACE.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._more(CHUNK_CHARACTERS):
                return self.text[self.at : self.at + 1]

    def takes(self, mark: str) -> bool:
        found = self.peek() == mark
        self.at += found
        return found

    def row(self, number: int) -> Row:
        self.peek()
        while True:
            line = self.line
            try:
                value, end = JSON.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self._is_cut(error) and self._more(max(CHUNK_CHARACTERS, len(self.text) - self.at)):
                    continue
                self._move(error.pos)
                return Row(number, self.line, Fault("json", error.msg))
            except RecursionError:
                return Row(number, line, Fault("json", "nested too deeply"))
            self._move(end)
            return Row(number, line, value)

    def _move(self, at: int) -> None:
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the decoder may have stopped only because the window ends there."""
        near_end = error.pos > len(self.text) - 20 or error.msg.startswith("Unterminated")
        return near_end and len(self.text) - self.at < LONGEST_ROW_CHARACTERS

    def _more(self, characters: int) -> bool:
        added = self.file.read(characters)
        if added:
            self.text, self.at = self.text[self.at :] + added, 0
        return bool(added)


def text_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            yield Row(number, number, {"text": line.rstrip("\n")})


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows as pandas types them for LLaMA-Factory: a column that holds only numbers or truth values is no text."""
    import pandas  # type: ignore[import-untyped]

    places = _csv_places(path)
    try:
        with pandas.read_csv(path, chunksize=CSV_CHUNK_ROWS, encoding="utf-8-sig") as chunks:
            for chunk in chunks:
                columns = len(chunk.columns)
                if not isinstance(
                    chunk.index, pandas.RangeIndex
                ):  # pandas takes the first cells of long rows for names
                    yield Row(1, 2, Fault("csv_cells", f"{columns + chunk.index.nlevels} cells for {columns} columns"))
                    return
                for cells in chunk.astype(object).where(chunk.notna(), None).to_dict("records"):
                    number, line = next(places, (0, 0))
                    yield Row(number, line, cells)
    except pandas.errors.EmptyDataError:
        return
    except pandas.errors.ParserError as error:
        said = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        detail = f"{said[3]} cells for {said[1]} columns" if said else " ".join(str(error).split())
        number, line = next((place for place in places if said and place[1] == int(said[2])), (1, 1))
        yield Row(number, line, Fault("csv_cells", detail))


def _csv_places(path: Path) -> Iterator[tuple[int, int]]:
    """Number and last line of each row; pandas does not say them."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        next(reader, None)
        yield from enumerate((reader.line_num for cells in reader if any(cell.strip() for cell in cells)), 1)


def table_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet or Arrow file."""
    from pyarrow import ArrowInvalid, memory_map  # type: ignore[import-untyped]

    try:
        with memory_map(str(path)) as file:
            values = (value for batch in _batches(file, path.suffix) for value in batch.to_pylist())
            for number, value in enumerate(values, 1):
                yield Row(number, None, value)
    except (ArrowInvalid, OSError) as error:
        yield Row(1, None, Fault("unreadable", str(error).splitlines()[0][:120]))


def _batches(file: Any, suffix: str) -> Iterator[Any]:
    import pyarrow as arrow
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    if suffix == ".parquet":
        return ParquetFile(file).iter_batches(1000)  # type: ignore[no-any-return]
    try:
        return iter(arrow.ipc.open_stream(file))
    except arrow.ArrowInvalid:
        opened = arrow.ipc.open_file(file)
        return (opened.get_batch(index) for index in range(opened.num_record_batches))


def encoding_fault(path: Path) -> Row:
    """The first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return Row(number, number, Fault("encoding", guess_encoding(line)))
    return Row(1, 1, Fault("encoding", "LATIN1"))


def guess_encoding(line: bytes) -> str:
    """GBK when the bytes make Chinese in it, else LATIN1, which takes any bytes."""
    try:
        text = line.decode("gb18030")
    except UnicodeDecodeError:
        return "LATIN1"
    return "GBK" if sum("\u4e00" <= letter <= "\u9fff" for letter in text) >= 2 else "LATIN1"


def data_files_hash(source: Source) -> dict[str, str]:
    """SHA-256 of each file of a source, by the file's path."""
    hashes = {}
    for path in source.files:
        with path.open("rb") as file:
            hashes[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
