"""All formats of packages give the same probabilities for the same records. Packages of compiled code.

The model is compiled once, for all tests here.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle
from ham_dist.export.packages.check import TOLERANCE, generated_batches, read_fields
from ham_dist.export.packages.pt2 import CONFIG, MODEL, Pt2Model, load_pt2
from ham_dist.export.packages.registry import FORMATS
from ham_dist.export.packages.write import write_package
from ham_dist.serving import Scorer
from tests.support.live_models import as_arrays
from tests.support.package_inputs import three_records


@pytest.fixture(scope="module")
def packages(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    for name in FORMATS:
        write_package(bundle.root, name, folder / name)
    return {name: folder / name for name in FORMATS}


def run(model: Pt2Model, given: Mapping[str, np.ndarray[Any, Any]]) -> torch.Tensor:
    return model(*(torch.from_numpy(given[name]) for name in model.inputs))


def test_all_formats_agree(bundle: Bundle, packages: dict[str, Path]) -> None:
    *_, ids = generated_batches(read_fields(bundle), seed=5)
    expected = torch.from_numpy(Scorer(bundle).score_ids(as_arrays(ids)))
    assert expected.shape == (64,)
    found: dict[str, torch.Tensor] = {}
    for name, path in packages.items():
        runners = FORMATS[name].runners(bundle, path)
        report = json.loads((path / "package.json").read_text())
        assert runners.keys() == report["verified"]["max_difference"].keys()
        found |= {model: runner(ids).detach() for model, runner in runners.items()}
    assert found.keys() == {"onnx", "pt2", "ctr", "ctr_raw", "torchrec"}
    for model, probabilities in found.items():
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=TOLERANCE, msg=model)


def test_compiled_code_checks_the_ids(packages: dict[str, Path]) -> None:
    model = load_pt2(packages["pt2"])

    def nan(**changes: Any) -> list[bool]:
        return run(model, three_records(**changes)).isnan().tolist()

    assert nan() == [False, False, False]
    assert nan(user=[3, -1, 11]) == [False, True, True]
    assert nan(zip=[1 << 40, 0, 1]) == [True, False, False]
    assert nan(**{"genres.values": [1, 2, 7]}) == [False, False, True]
    assert nan(**{"genres.offsets": [0, 2, 1, 3]}) == [True, True, True]


def test_compiled_code_reads_the_weights_next_to_it(packages: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packages["pt2"], tmp_path / "copy"))
    table = load_file(copy / "tables" / "zip.safetensors")
    table["values"][29] += 1
    save_file(table, copy / "tables" / "zip.safetensors")
    before, after = (run(load_pt2(path), three_records()) for path in (packages["pt2"], copy))
    assert (before != after).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cpu": "vax"}, "compiled with cpu vax, but here"),
        ({"torch": "1.0"}, r"compiled with torch 1\.0, but here it is"),
        ({"weights": {}}, "model.json lacks"),
        ({"weights": {"a": {"file": "dense.safetensors", "tensor": "none"}}}, "lacks the tensor 'none'"),
        ({"weights": {"a": {"file": "../dense", "tensor": "none"}}}, "not a relative path"),
    ],
)
def test_other_code_never_runs(
    packages: dict[str, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(packages["pt2"], tmp_path / "copy"))
    content = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(content | change))
    with pytest.raises(BundleError, match=message):
        load_pt2(copy)
    (copy / CONFIG).write_text(json.dumps(content))
    (copy / MODEL).write_bytes((copy / MODEL).read_bytes()[:100])
    with pytest.raises(BundleError, match=r"model\.pt2: cannot be opened"):
        load_pt2(copy)
    (copy / "tables" / "zip.safetensors").unlink()
    with pytest.raises(BundleError, match="its weights cannot be read"):
        load_pt2(copy)
    (copy / CONFIG).write_text("{")
    with pytest.raises(BundleError, match="damaged"):
        load_pt2(copy)
