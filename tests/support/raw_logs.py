"""The heads of Criteo's and Avazu's logs where somebody has put them (they may not be handed on), and lines in their formats elsewhere."""

from pathlib import Path

import numpy as np

from ham_dist.data.recipe.load import load_recipe
from ham_dist.data.synthetic.criteo_text import write_criteo_file
from tests.support.real_data import ROOT

SHARED = ROOT.parent / "shared" / "data"
# Name of the recipe: its file here, as the recipe calls it, and how many samples the file has.
HEADS = {
    "criteo-kaggle": (SHARED / "criteo-kaggle" / "train_8000.txt", "train.txt", 8000),
    "avazu": (SHARED / "avazu" / "train_8999.csv", "train", 8999),
}
_MADE_ROWS = 4000


def raw_logs(name: str, folder: Path) -> tuple[Path, int]:
    """A raw folder for the recipe `name`, and how many samples lie in it."""
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
    """A header and _MADE_ROWS lines; the site says something of the click."""
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
