"""Stream the rows of data files, with the line each one starts on, without holding a file in memory."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ..tables import read
from .faults import Fault, Row

Reader = Callable[[BinaryIO], Iterator[Row]]

# `datasets` fixes a file's columns and types by what its first read holds: 10 MiB of JSON (packaged_modules/json,
# 4.0.0), 10,000 rows of CSV (packaged_modules/csv).
FIRST_TABLE_BYTES = 10 << 20
CSV_ROWS = 10_000
CHUNK_CHARACTERS = 1 << 22
LONGEST_ROW_CHARACTERS = 64 << 20
JSON = json.JSONDecoder()
BOM = b"\xef\xbb\xbf"
SPACE = re.compile(r"\s*")
LABELS = {word: word.lower() == "true" for each in ("true", "false") for word in (each, each.title(), each.upper())}
DELIMITERS = {";": ";", "\t": "\\t", "|": "|"}  # that CSV files in the wild use, as they are written in a command


def read_rows(file: BinaryIO, file_type: str) -> Iterator[Row]:
    """The rows of one file, numbered from 1; never raises for what the file holds, but yields a Fault as value."""
    head = file.read(1 << 20)
    file.seek(0)
    try:
        if file_type in {"parquet", "arrow"}:
            yield from _table_rows(file, file_type)
        elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
            yield Row(1, 1, Fault("encoding"))
        else:
            reader = _json_reader(head) if file_type == "json" else csv_rows if file_type == "csv" else text_rows
            yield from reader(file)
    except UnicodeDecodeError:
        yield _encoding_fault(Path(file.name))
    except ModuleNotFoundError as error:
        yield Row(1, None, Fault("package", str(error.name)))


def _json_reader(head: bytes) -> Reader:
    """Lines when the first line is a value of its own; else one array, or values one after another."""
    text = _begin(head)
    if text.startswith("["):
        return (lambda _: iter([Row(1, 1, Fault("bom"))])) if head.startswith(BOM) else json_text
    with suppress(ValueError, RecursionError):
        JSON.raw_decode(text)
        return json_lines if is_lines(head) else json_text
    return json_lines


def is_lines(head: bytes) -> bool:
    """Whether the first line of a JSON text is a value of its own."""
    with suppress(ValueError, RecursionError):
        json.loads(_begin(head).split("\n", 1)[0])
        return True
    return False


def _begin(head: bytes) -> str:
    return head.removeprefix(BOM).decode("utf-8", "ignore").lstrip()


def json_lines(file: BinaryIO) -> Iterator[Row]:
    from orjson import JSONDecodeError, loads

    number = offset = 0
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
        yield Row(number, line_number, value, first_table, reads_dates=True)


def _second_look(line: bytes) -> Any:
    """A line the fast parser refused: the value if LLaMA-Factory takes it all the same, else the fault."""
    try:
        value = json.loads(line.removeprefix(BOM).decode("utf-8"))
    except UnicodeDecodeError:
        return Fault("encoding")
    except json.JSONDecodeError as error:
        return Fault("json", f"{error.msg} at column {error.colno}")
    except RecursionError:
        return Fault("json", "nested too deeply")
    halves = any("\ud800" <= letter <= "\udfff" for letter in json.dumps(value, ensure_ascii=False))
    return Fault("surrogate") if halves else value


def json_text(file: BinaryIO) -> Iterator[Row]:
    """The items of one array, or values one after another."""
    with TextIOWrapper(file, "utf-8") as text:
        window, number, value = _Window(text), 0, None
        array = window.takes("[")
        more = not window.takes("]") if array else bool(window.peek())
        while more:
            row = window.row(number := number + 1)
            value = {"text": row.value} if array and isinstance(row.value, str) else row.value
            yield row._replace(value=value, reads_dates=not array)
            more = not isinstance(value, Fault) and (window.takes(",") if array else bool(window.peek()))
        if array and number and not isinstance(value, Fault) and not window.takes("]"):
            yield Row(number, window.line, Fault("json", "a comma or the closing ] is missing after this row"))


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


def text_rows(file: BinaryIO) -> Iterator[Row]:
    with TextIOWrapper(file, "utf-8") as text:
        for number, line in enumerate(text, 1):
            yield Row(number, number, {"text": line.rstrip("\n")})


def csv_rows(file: BinaryIO) -> Iterator[Row]:
    """Rows with the types that pandas gives them, as LLaMA-Factory reads CSV."""
    from pandas import read_csv
    from pandas.errors import EmptyDataError, ParserError

    header, number = file.readline(), 0
    file.seek(0)
    if other := [mark for mark in DELIMITERS if mark.encode() in header and b"," not in header]:
        yield Row(1, 1, Fault("delimiter", DELIMITERS[other[0]]))
        return
    try:
        with read_csv(file, chunksize=CSV_ROWS) as tables:
            for values, first_table in _typed(tables):
                number += 1
                yield Row(number, None, values, first_table)
    except EmptyDataError:
        return
    except ParserError as error:
        yield _long_row(file) or Row(number + 1, None, _unreadable(error))


def _typed(tables: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Rows, and whether their types fit the first table's: where that has texts, later numbers become texts too."""
    from pandas import RangeIndex
    from pandas.api.types import is_numeric_dtype
    from pandas.errors import ParserError

    first: set[str] | None = None
    for table in tables:
        if not isinstance(table.index, RangeIndex):
            raise ParserError("cells without a column, which pandas takes for the names of the rows")
        texts = {name for name in table.columns if not is_numeric_dtype(table[name])}
        first = texts if first is None else first
        for name in first - texts:
            table[name] = table[name].map(str, na_action="ignore")
        for values in table.astype(object).where(table.notna(), None).to_dict("records"):
            yield values, texts <= first


def texts(file: BinaryIO, delimiter: str = ",", quoted: bool = True) -> Iterator[Row]:
    """The rows of a table with every cell as text, but the labels of KTO; with the line that each ends on."""
    csv.field_size_limit(LONGEST_ROW_CHARACTERS)
    labels = read("row_formats.toml")["columns"]["kto_tag"]
    with TextIOWrapper(file, "utf-8-sig", newline="") as text:
        table = csv.DictReader(
            text, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        )
        try:
            for number, cells in enumerate(table, 1):
                value: Any = {name: LABELS.get(cell, cell) if name in labels else cell for name, cell in cells.items()}
                if surplus := cells.get(None):
                    columns = len(table.fieldnames or ())
                    value = Fault("csv_cells", f"{columns + len(surplus)} cells for {columns} columns")
                yield Row(number, table.line_num, value)
        except csv.Error as error:
            yield Row(0, table.line_num + 1, Fault("quote", str(error)))


def _long_row(file: BinaryIO) -> Row | None:
    """The first row with more cells than the header."""
    file.seek(0)
    with suppress(csv.Error):
        return next((row for row in texts(file) if isinstance(row.value, Fault)), None)
    return None


def _table_rows(file: BinaryIO, file_type: str) -> Iterator[Row]:
    from pyarrow import ArrowInvalid

    try:
        values = (value for batch in _batches(file, file_type) for value in batch.to_pylist())
        for number, value in enumerate(values, 1):
            yield Row(number, None, value)
    except (ArrowInvalid, OSError) as error:
        yield Row(1, None, _unreadable(error))


def _batches(file: BinaryIO, file_type: str) -> Iterator[Any]:
    """An Arrow file may be written as a stream or with an index."""
    from pyarrow import ArrowInvalid, ipc
    from pyarrow.parquet import ParquetFile

    if file_type == "parquet":
        return iter(ParquetFile(file).iter_batches(1000))
    try:
        return iter(ipc.open_stream(file))
    except ArrowInvalid:
        opened = ipc.open_file(file)
        return map(opened.get_batch, range(opened.num_record_batches))


def _unreadable(error: Exception) -> Fault:
    return Fault("unreadable", str(error).splitlines()[0][:120])


def _encoding_fault(path: Path) -> Row:
    """The first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return Row(0, number, Fault("encoding"))
    return Row(0, 1, Fault("encoding"))
