"""Where the repository is, and real data if somebody has put it there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
# The real MovieLens-1M may not be handed on: it is tested where somebody has put it, in the README's place or next to the repository.
PLACES = (ROOT / "ml-1m", ROOT.parent / "shared" / "data" / "ml-1m")
REAL = next((place for place in PLACES if place.exists()), PLACES[0])
