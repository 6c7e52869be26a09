"""Every codec against a decoder in NumPy that reads the stored bytes."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ham_dist.errors import BundleError
from ham_dist.export.codecs import codec as codec_module
from ham_dist.export.codecs.codec import VALUES, Codec, TableRows
from ham_dist.export.codecs.fp16 import FP16
from ham_dist.export.codecs.int4 import INT4
from ham_dist.export.codecs.int6 import INT6
from ham_dist.export.codecs.int8 import INT8
from ham_dist.export.codecs.registry import CODECS, codec_of, register_codec

CODES = (INT8, INT6, INT4)
NUMBERS = st.floats(-1e6, 1e6, width=32)


@st.composite
def tables(draw: st.DrawFn) -> torch.Tensor:
    """(C, d): any numbers, some columns constant; C and d may be 1, and C 0."""
    rows, dim = draw(st.integers(0, 70)), draw(st.integers(1, 16))
    seed = draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    spread = draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e4]))
    table = random.standard_normal((rows, dim)) * spread + draw(st.sampled_from([0.0, 1.0, -7.5]))
    if draw(st.booleans()):
        table[:, draw(st.integers(0, dim - 1))] = draw(NUMBERS)
    if rows and draw(st.booleans()):
        table[draw(st.integers(0, rows - 1))] = draw(arrays(np.float32, dim, elements=NUMBERS))
    return torch.from_numpy(table.astype(np.float32))


def stored_of(codec: Codec, table: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = TableRows([table])
    fitted = codec.fit(rows)
    return {**fitted, VALUES: codec.encode(rows.rows(0, len(table)), fitted)}


def codes_of(stored: Mapping[str, torch.Tensor], bits: int, rows: int) -> np.ndarray[Any, Any]:
    """Codes by the bits of each column's bytes, least significant first; (rows, d)."""
    values, dim = stored[VALUES].numpy(), len(stored["scale"])
    of_column = (
        values.reshape(len(values), values.shape[1] // dim, dim)
        .transpose(2, 0, 1)
        .reshape(dim, values.size // dim)
    )
    each_bit = np.unpackbits(of_column, axis=1, bitorder="little").reshape(
        dim, 8 * values.size // dim // bits, bits
    )
    return (each_bit << np.arange(bits)).sum(axis=2).T[:rows]


@pytest.mark.parametrize("codec", CODES, ids=lambda codec: codec.name)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(table=tables(), ids=st.lists(st.integers(0, 69), max_size=9))
def test_each_number_becomes_the_nearest_of_its_columns_levels(
    codec: Codec, table: torch.Tensor, ids: list[int]
) -> None:
    stored = stored_of(codec, table)
    scale, offset = (stored[name].numpy().astype(np.float64) for name in ("scale", "offset"))
    decoded = codec.decode(stored, torch.arange(len(table))).numpy()
    by_bits = codes_of(stored, codec.bits, len(table)).astype(np.float32)
    assert np.array_equal(decoded, by_bits * stored["scale"].numpy() + stored["offset"].numpy())
    levels = scale[:, None] * np.arange(2**codec.bits) + offset[:, None]
    nearest = np.abs(table.numpy()[:, :, None].astype(np.float64) - levels).min(axis=2, initial=math.inf)
    rounding = 2**-22 * (np.abs(levels).max(axis=1) + 2**8 * scale)
    assert (np.abs(decoded - table.numpy().astype(np.float64)) <= nearest + rounding).all()
    if codec is INT8 and len(table):
        low, high = table.numpy().min(axis=0), table.numpy().max(axis=0)
        assert np.array_equal(stored["offset"].numpy(), low)
        assert (nearest <= (high.astype(np.float64) - low) / 510 + rounding).all()
    some = torch.tensor([one for one in ids if one < len(table)], dtype=torch.int64)
    assert torch.equal(codec.decode(stored, some), torch.from_numpy(decoded)[some])


@pytest.mark.parametrize("codec", [INT6, INT4], ids=lambda codec: codec.name)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(table=tables().filter(len))
def test_clipping_is_at_least_as_good_as_the_whole_range(codec: Codec, table: torch.Tensor) -> None:
    numbers = table.double()
    low, high = numbers.amin(dim=0), numbers.amax(dim=0)
    step = (high - low) / (2**codec.bits - 1)
    levels = low + ((numbers - low) / step.clamp(min=1e-300)).round() * step
    found = codec.round_trip(table, codec.fit(TableRows([table]))).double()
    whole, clipped = (levels - numbers).square().sum(dim=0), (found - numbers).square().sum(dim=0)
    rounding = len(table) * (2**-21 * torch.maximum(low.abs(), high.abs())).square()
    assert (clipped <= whole * (1 + 1e-3) + rounding).all()


def test_clipping_halves_the_error_of_a_column_with_a_large_number() -> None:
    column = torch.randn(5001, 1, generator=torch.Generator().manual_seed(0))
    column[-1] = 30.0
    error = (INT4.round_trip(column, INT4.fit(TableRows([column]))) - column)[:-1].square().mean()
    whole_range = ((30.0 + 3.7) / 15) ** 2 / 12
    assert error < whole_range / 2


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_constant_columns_are_exact(codec: Codec) -> None:
    table = torch.tensor([[0.5, -3.0, 0.0]]).repeat(7, 1)
    assert torch.equal(codec.round_trip(table, codec.fit(TableRows([table]))), table)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_numbers_that_are_not_finite_are_refused(codec: Codec, number: float) -> None:
    table = torch.tensor([[1.0, number], [0.0, 1.0]])
    with pytest.raises(BundleError, match="holds numbers that are not finite, in rows 0 to 1"):
        stored_of(codec, table)


def test_numbers_that_a_codec_cannot_hold_are_refused() -> None:
    with pytest.raises(BundleError, match=r"holds 70000, but the largest number in fp16 is 65504"):
        FP16.encode(torch.tensor([[-70000.0]]), {})
    with pytest.raises(BundleError, match=r"spread over 6e[+]38, too much for int8"):
        INT8.fit(TableRows([torch.tensor([[3e38], [-3e38]])]))


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 9, 16, 100])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 63, 1000])
def test_bytes(rows: int, dim: int) -> None:
    columns = math.ceil(dim / 8) * 64
    assert codec_of("fp32").stored_bytes(rows, dim) == 4 * rows * dim
    assert codec_of("fp16").stored_bytes(rows, dim) == 2 * rows * dim
    assert INT8.stored_bytes(rows, dim) == columns + rows * dim
    assert INT6.stored_bytes(rows, dim) == columns + math.ceil(rows / 4) * 3 * dim
    assert INT4.stored_bytes(rows, dim) == columns + math.ceil(rows / 2) * dim


@pytest.mark.parametrize(("codec", "share"), [(INT8, 0.26), (INT6, 0.20), (INT4, 0.14)])
def test_share_of_fp32_at_narrow_dims(codec: Codec, share: float) -> None:
    dims = (1, 1, 2, 2, 3, 4, 4, 5, 6, 8)
    stored = sum(codec.stored_bytes(1000, dim) for dim in dims)
    assert stored <= share * sum(4 * 1000 * dim for dim in dims)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_parts_and_blocks_do_not_matter(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(333, 3, generator=torch.Generator().manual_seed(1))
    fitted = codec.fit(TableRows([table]))
    whole = codec.encode(table, fitted)
    monkeypatch.setattr(codec_module, "BLOCK_NUMBERS", 3 * 64)
    parts = TableRows(list(table.split([1, 100, 7, 225])))
    assert len(list(parts.blocks())) == 6
    for name, values in codec.fit(parts).items():
        assert torch.equal(values, fitted[name])
    assert torch.equal(torch.cat([codec.encode(block, fitted) for block in parts.blocks()]), whole)
    assert torch.equal(parts.take(torch.tensor([0, 1, 107, 108, 332])), table[[0, 1, 107, 108, 332]])
    assert torch.equal(parts.sample(34), table[::10])


def test_names_are_registered_once() -> None:
    with pytest.raises(BundleError, match="'int8': is already registered"):
        register_codec(INT8)
    with pytest.raises(BundleError, match="'int7': expected one of fp32, fp16, int8, int6, int4"):
        codec_of("int7")
