"""One bundle with all codecs, a multi-valued field, a removed field and first-order tables."""

import pytest

from ham_dist.export.bundle import Bundle, open_bundle
from tests.support.live_models import DIMS, ROWS, live_model
from tests.support.raw_bundle import RECIPE, write_raw_bundle

COUNTS = ROWS | {"zip": 30}
CODECS = {"user": "int8", "gone": "fp16", "genres": "int4", "age": "int6", "zip": "fp32"}


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    recipe = {
        **RECIPE,
        "samples": {"file": "films.csv", "columns": [*COUNTS, "rating"]},
        "fields": RECIPE["fields"] | {"zip": {"kind": "categorical"}},
    }
    live = live_model("deepfm", "table", counts=COUNTS, dims=DIMS | {"zip": 3})
    folder = tmp_path_factory.mktemp("mixed")
    return open_bundle(write_raw_bundle(folder, recipe, live, COUNTS, precision=CODECS))
