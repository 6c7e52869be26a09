"""The heads of Criteo's and Avazu's logs if they exist here, else generated lines in their formats.

Their licences forbid including them in the repository.
"""

from pathlib import Path

import numpy as np

from ham_dist.data.recipe.load import load_recipe
from ham_dist.data.synthetic.criteo_text import write_criteo_file
from tests.support.real_data import ROOT

SHARED = ROOT.parent / "shared" / "data"
# By recipe: the file here, its name in the recipe, and its number of samples.
HEADS = {
    "criteo-kaggle": (SHARED / "criteo-kaggle" / "train_8000.txt", "train.txt", 8000),
    "avazu": (SHARED / "avazu" / "train_8999.csv", "train", 8999),
}
_MADE_ROWS = 4000


def raw_logs(name: str, folder: Path) -> tuple[Path, int]:
    """A raw folder for the recipe `name`, and its number of samples."""
    source, file, rows = HEADS[name]
    folder.mkdir()
    if source.is_file():
        (folder / file).symlink_to(source)
        return folder, rows
    if name == "avazu":
        _write_like_avazu(folder / file)
    else:
        write_criteo_file(folder / file, _MADE_ROWS)
    return folder, _MADE_ROWS


def _write_like_avazu(path: Path) -> None:
    """Writes a header and _MADE_ROWS lines; clicks depend on the site."""
    random = np.random.default_rng(0)
    columns = load_recipe("avazu").samples.columns
    cells = {
        column: [f"{value:08x}" for value in (random.pareto(1, _MADE_ROWS) * 7).astype(int) % 500]
        for column in columns
    }
    cells["id"] = [str(10**19 + row) for row in range(_MADE_ROWS)]
    cells["hour"] = [f"141021{hour:02d}" for hour in random.integers(24, size=_MADE_ROWS)]
    cells["click"] = [
        str(int(random.random() < 0.1 + 0.4 * (int(site, 16) % 2))) for site in cells["site_id"]
    ]
    path.write_text("\n".join([",".join(columns), *map(",".join, zip(*cells.values(), strict=True))]) + "\n")
