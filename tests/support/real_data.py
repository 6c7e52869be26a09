"""Paths of the repository and of the real MovieLens-1M, if it exists here."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
# The licence forbids including MovieLens-1M in the repository. Tests use it if it is in one of these folders.
PLACES = (ROOT / "ml-1m", ROOT.parent / "shared" / "data" / "ml-1m")
REAL = next((place for place in PLACES if place.exists()), PLACES[0])
