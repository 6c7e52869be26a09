"""Tensors of the Open Inference Protocol as records, and back.

Ids are integer tensors named after fields, (n,); a multi-valued field has two: NAME.values, and NAME.offsets,
(n + 1,), where record i has values[offsets[i] : offsets[i + 1]]. Raw values are tensors named after the raw
columns, (n,): BYTES for text (empty for a missing value), integers, FP32 and FP64.
Source: https://github.com/kserve/open-inference-protocol (tensor data, binary tensor data extension).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ham_dist.serving.server.model import ServedModel, Values
from ham_dist.serving.server.refusal import Refused, shown

OUTPUT = "probability"
"""Name of the output tensor, FP32 (n,)."""
PLATFORM = "ham_dist"

_INTEGERS: Mapping[str, np.dtype[Any]] = {
    f"{kind}{bits}": np.dtype(f"<{kind[0].lower()}{bits // 8}")
    for kind in ("INT", "UINT")
    for bits in (8, 16, 32, 64)
}
_FLOATS: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
_TYPES = {**_INTEGERS, **_FLOATS}
DATATYPES = (*_TYPES, "BYTES")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a request.

    Attributes:
        name: Its name.
        datatype: One of DATATYPES.
        values: (n,) numbers, or a list of n texts.
    """

    name: str
    datatype: str
    values: Any


def check_head(name: Any, datatype: Any, shape: Any) -> int:
    """Returns the number of values of a tensor with this name, type and shape.

    Raises:
        Refused: One of them is not supported.
    """
    if not isinstance(name, str):
        raise Refused(400, "inputs: a tensor has no name; expected text")
    where = f"input {name[:80]!r}"
    if datatype not in DATATYPES:
        raise Refused(
            400, f"{where}: has datatype {shown(datatype)!r}; expected one of {', '.join(DATATYPES)}"
        )
    sizes: list[Any] = shape if isinstance(shape, list) else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise Refused(400, f"{where}: has shape {shown(shape)}; expected [n]")
    if len(sizes) != 1 and (len(sizes) != 2 or sizes[1] != 1):
        raise Refused(400, f"{where}: has shape {shown(shape)}; expected [n], or [n, 1]")
    return int(sizes[0])


def from_list(name: str, datatype: str, count: int, data: Any) -> Tensor:
    """Returns a tensor whose values are a list, as in JSON.

    Raises:
        Refused: The list does not fit the type or the shape.
    """
    where = f"input {name[:80]!r}"
    if not isinstance(data, list):
        raise Refused(400, f"{where}: has no list `data`; expected {count:,} values")
    if data and all(isinstance(each, list) and len(each) == 1 for each in data):
        data = [each[0] for each in data]  # of shape [n, 1]
    if len(data) != count:
        raise Refused(400, f"{where}: has {len(data):,} values; its shape has {count:,}")
    if datatype == "BYTES":
        if not all(isinstance(each, str) or each is None for each in data):
            raise Refused(400, f"{where}: has a value that is not text; expected text for BYTES")
        return Tensor(name, datatype, data)
    allowed = (int,) if datatype in _INTEGERS else (int, float)
    if not all(type(each) in allowed for each in data):
        raise Refused(400, f"{where}: has a value of another type; expected numbers of type {datatype}")
    try:
        return Tensor(name, datatype, np.array(data, _TYPES[datatype]))
    except OverflowError:
        raise Refused(400, f"{where}: has a number outside of {datatype}. Give a wider datatype") from None


def from_bytes(name: str, datatype: str, count: int, data: bytes | memoryview, max_rows: int) -> Tensor:
    """Returns a tensor whose values are little-endian bytes.

    Raises:
        Refused: The bytes do not fit the type or the shape.
    """
    where = f"input {name[:80]!r}"
    if datatype == "BYTES":
        return Tensor(name, datatype, _texts(where, count, bytes(data), max_rows))
    kind = _TYPES[datatype]
    if len(data) != count * kind.itemsize:
        raise Refused(
            400,
            f"{where}: has {len(data):,} bytes; expected {count * kind.itemsize:,} for {count:,} values",
        )
    return Tensor(name, datatype, np.frombuffer(data, kind))


def _texts(where: str, count: int, data: bytes, max_rows: int) -> list[str]:
    """Texts, each after its length in 4 bytes."""
    if count > max_rows:
        raise Refused(413, f"{where}: has {count:,} values; expected at most {max_rows:,}. Send less")
    texts, start = [], 0
    for number in range(count):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or end > len(data):
            raise Refused(400, f"{where}: ends within value {number:,} (from 0); its shape has {count:,}")
        try:
            texts.append(data[start + 4 : end].decode("utf-8"))
        except UnicodeDecodeError:
            raise Refused(400, f"{where}: value {number:,} (from 0) is not UTF-8. Encode it so") from None
        start = end
    if start != len(data):
        raise Refused(
            400, f"{where}: has {len(data) - start:,} bytes after its {count:,} values; expected none"
        )
    return texts


def values_of(tensors: Sequence[Tensor], model: ServedModel, meaning: Any = "auto") -> Values:
    """Returns the records of a request.

    Args:
        tensors: Its inputs; those that the model does not read are ignored.
        model: The version that will score them.
        meaning: `ids`, `raw`, or `auto`: raw if any tensor is BYTES, FP32 or FP64.
    Raises:
        Refused: A tensor is there twice, tensors of raw values differ in length, or `meaning` is another one.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        raise Refused(400, "inputs: two tensors have the same name; expected each once")
    if meaning not in ("auto", "ids", "raw"):
        raise Refused(400, f"parameters: values = {shown(meaning)!r}; expected 'ids', 'raw' or 'auto'")
    raw = (
        any(tensor.datatype not in _INTEGERS for tensor in tensors) if meaning == "auto" else meaning == "raw"
    )
    return _raw_values(by_name, model) if raw else _ids(by_name, model)


def _ids(tensors: Mapping[str, Tensor], model: ServedModel) -> Values:
    ids: dict[str, Any] = {
        field.name: tensors[field.name].values
        for field in model.scorer.order.singles
        if field.name in tensors
    }
    for field in model.scorer.order.several:
        # The scorer names the fields that are absent.
        found = [tensors[name].values for name in _names_of(field.name) if name in tensors]
        if len(found) == 1:
            raise Refused(
                400, f"inputs: of {' and '.join(_names_of(field.name))} one is absent; expected both"
            )
        if found:
            ids[field.name] = tuple(found)
    return Values(ids=ids)


def _names_of(several: str) -> tuple[str, str]:
    """Names of the two tensors of a multi-valued field."""
    return f"{several}.values", f"{several}.offsets"


def _raw_values(tensors: Mapping[str, Tensor], model: ServedModel) -> Values:
    encoder = model.scorer.encoder
    read = [tensor for name, tensor in tensors.items() if encoder is not None and name in encoder.kinds]
    columns = [
        tensor.values if tensor.datatype == "BYTES" else tensor.values.tolist()
        for tensor in read or tensors.values()
    ]
    names = [tensor.name for tensor in read or tensors.values()]
    for name, column in zip(names, columns, strict=True):
        if len(column) != len(columns[0]):
            raise Refused(
                400,
                f"input {name[:80]!r}: has {len(column):,} values and {names[0][:80]!r} "
                f"{len(columns[0]):,}; expected as many",
            )
    return Values(records=[dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])


def model_metadata(model: ServedModel, name: str) -> dict[str, Any]:
    """Returns the model's metadata: its inputs are ids, which every bundle takes."""
    order = model.scorer.order
    names = [field.name for field in order.singles]
    names += [name for field in order.several for name in _names_of(field.name)]
    inputs = [{"name": each, "datatype": "INT64", "shape": [-1]} for each in names]
    return {
        "name": name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1]}],
    }


def require_output(names: Sequence[Any]) -> None:
    """Checks the outputs that a request names.

    Raises:
        Refused: One of them is not OUTPUT.
    """
    if wrong := [name for name in names if name != OUTPUT]:
        raise Refused(400, f"outputs: {shown(wrong[0], 80)!r} is no output; expected {OUTPUT!r}")
