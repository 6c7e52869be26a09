"""All formats of packages give the same probabilities for the same records."""

from pathlib import Path

import torch

from ham_dist.export.bundle import Bundle
from ham_dist.export.packages.check import TOLERANCE, generated_batches, read_fields
from ham_dist.export.packages.registry import FORMATS
from ham_dist.export.packages.write import write_package
from ham_dist.serving import Scorer


def test_all_formats_agree(bundle: Bundle, tmp_path: Path) -> None:
    *_, ids = generated_batches(read_fields(bundle), seed=5)
    given = {
        name: of_field.numpy()
        if isinstance(of_field, torch.Tensor)
        else tuple(part.numpy() for part in of_field)
        for name, of_field in ids.items()
    }
    expected = torch.from_numpy(Scorer(bundle).score_ids(given))
    assert expected.shape == (64,)
    found: dict[str, torch.Tensor] = {}
    for name, package in FORMATS.items():
        report = write_package(bundle.root, name, tmp_path / name)
        runners = package.runners(bundle, tmp_path / name)
        assert runners.keys() == report["verified"]["max_difference"].keys()
        found |= {model: run(ids).detach() for model, run in runners.items()}
    assert found.keys() >= {"onnx", "ctr", "ctr_raw", "torchrec"}
    for model, probabilities in found.items():
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=TOLERANCE, msg=model)
