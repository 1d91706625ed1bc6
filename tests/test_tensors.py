"""The headers of safetensors files against the library that writes them."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from iis_finetune.tensors import DTYPES, read_header, read_headers


def test_a_header_tells_names_shapes_places_and_the_length_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    rows = {"block.norm.weight": numpy.arange(3, dtype="f4"), "block.ids": numpy.zeros((2, 5), "i8")}
    save_file(rows, path, metadata={"format": "np"})
    header = read_header(path)
    assert header is not None
    assert {name: each.shape for name, each in header.tensors.items()} == {
        name: each.shape for name, each in rows.items()
    }
    assert header.file_bytes == path.stat().st_size
    assert header.data_bytes == 3 * 4 + 10 * 8
    assert (header.dtype, header.modules, header.parameters(tied=False)) == ("float32", frozenset({"norm", "block"}), 3)
    norm = header.tensors["block.norm.weight"]
    assert numpy.frombuffer(path.read_bytes()[norm.begin : norm.end], "<f4").tolist() == [0.0, 1.0, 2.0]


def test_an_output_layer_that_is_tied_counts_once(tmp_path: Path) -> None:
    rows = {"model.embed_tokens.weight": numpy.zeros((7, 2), "f2"), "lm_head.weight": numpy.zeros((7, 2), "f2")}
    save_file(rows, tmp_path / "model.safetensors")
    header = read_headers(tmp_path)
    assert (header.parameters(tied=True), header.parameters(tied=False)) == (14, 28)


@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs", (2).to_bytes(8, "little") + b"[]", (9).to_bytes(8, "little") + b'{"a":{}} '],
)
def test_a_file_without_a_whole_header_has_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert read_header(path) is None
    assert read_headers(tmp_path).parameters(tied=False) is None


def test_the_table_of_dtypes_says_where_infinity_is() -> None:
    infinite = {"float64": "f8", "float32": "f4", "float16": "f2"}
    for dtype in DTYPES:
        kind = infinite.get(dtype.torch)
        if kind:
            bits = int.from_bytes(numpy.array(numpy.inf, kind).tobytes(), "little")
        else:  # bfloat16 is the upper half of float32
            bits = int.from_bytes(numpy.array(numpy.inf, "f4").tobytes()[2:], "little")
        assert (bits, dtype.bytes * 8 >= bits.bit_length()) == (dtype.exponent, True), dtype.torch
