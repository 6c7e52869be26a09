"""A model repository for the Triton Inference Server, with two models of one bundle.

`ctr` is the ONNX model; it takes ids. `ctr_raw` runs ham_dist in Triton's Python backend, with the bundle in
its folder; it takes raw records, or ids if the bundle has no vocabulary.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import MANIFEST
from ham_dist.export.packages.check import Runner, read_fields
from ham_dist.export.packages.graph import OUTPUT
from ham_dist.export.packages.onnx import MODEL, MODULES, onnx_runner, write_onnx
from ham_dist.serving import RecordEncoder, Scorer

__all__ = ["MODULES", "runners", "write"]

BY_IDS, BY_RECORDS = "ctr", "ctr_raw"
"""Names of the models."""
MAX_BATCH = 1024
"""Most records that Triton puts into one batch."""
_BACKEND = Path(__file__).with_name("triton_backend.py")


def write(bundle: Bundle, folder: Path) -> None:
    """Write the model repository of a bundle.

    Raises:
        BundleError: As for `write_onnx`.
    """
    # A model of several files is a folder with the name of the file.
    onnx = folder / BY_IDS / "1" / MODEL
    onnx.mkdir(parents=True)
    write_onnx(bundle, onnx, padded=True)
    of_ids = [(field.name, "TYPE_INT64", field.multi_valued) for field in read_fields(bundle)]
    _write_config(folder, BY_IDS, "onnxruntime", of_ids, ("dynamic_batching { }",), reshape=True)

    # Its own files alone: the package may be written into the folder of the bundle.
    for name in (MANIFEST, *bundle.manifest.files):
        copy = folder / BY_RECORDS / "1" / "bundle" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.root / name, copy)
    shutil.copyfile(_BACKEND, folder / BY_RECORDS / "1" / "model.py")
    given = of_ids
    if bundle.manifest.vocabulary:
        encoder = RecordEncoder(bundle, [field.name for field in read_fields(bundle)])
        given = [(column, "TYPE_STRING", False) for column in encoder.kinds]
    more = ("dynamic_batching { }", "instance_group [ { count: 1 kind: KIND_CPU } ]")
    _write_config(folder, BY_RECORDS, "python", given, more, reshape=False)


def _write_config(
    folder: Path,
    name: str,
    backend: str,
    inputs: Sequence[tuple[str, str, bool]],
    more: Iterable[str],
    *,
    reshape: bool,
) -> None:
    """Write config.pbtxt.

    Args:
        inputs: Name and type of each input, and True if a record has several values.
        reshape: True if the model's tensors of one number for each record have no second dimension.
    """
    single = "dims: [ 1 ] reshape: { shape: [ ] }" if reshape else "dims: [ 1 ]"
    lines = [
        f"name: {json.dumps(name)}",
        f"backend: {json.dumps(backend)}",
        f"max_batch_size: {MAX_BATCH}",
        *(
            f"input [ {{ name: {json.dumps(input, ensure_ascii=False)} data_type: {kind} "
            f"{'dims: [ -1 ]' if several else single} }} ]"
            for input, kind, several in inputs
        ),
        f"output [ {{ name: {json.dumps(OUTPUT)} data_type: TYPE_FP32 {single} }} ]",
        *more,
    ]
    (folder / name / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def runners(bundle: Bundle, folder: Path) -> Mapping[str, Runner]:
    """Opens the ONNX model, and the bundle of the Python backend."""
    scorer = Scorer(folder / BY_RECORDS / "1" / "bundle", runtime="eager")

    def run(ids: Mapping[str, Ids]) -> torch.Tensor:
        given = {
            name: of_field.numpy()
            if isinstance(of_field, torch.Tensor)
            else tuple(part.numpy() for part in of_field)
            for name, of_field in ids.items()
        }
        return torch.from_numpy(scorer.score_ids(given))

    return {BY_IDS: onnx_runner(bundle, folder / BY_IDS / "1" / MODEL, padded=True), BY_RECORDS: run}
