"""The identity of a run: ties checkpoints to the run and to the settings that determine its results."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ham_dist.errors import OtherRunError

FORMAT = "ham_dist run"

FREE = ("checkpoint.", "ranks.", "data.path", "search.tolerance")
"""Settings that do not change a run's results. The data is compared with data.json, wherever it is stored."""

RAISABLE = {
    f"{stage}.{name}": stage
    for stage, names in {
        "pretrain": ("max_epochs", "patience"),
        "search": ("epochs", "patience"),
        "retrain": ("max_epochs", "patience"),
    }.items()
    for name in names
}
"""Settings that only decide when a stage ends, by key, with their stage: if one is raised before the stage
has ended, the result is the same as with the larger value from the start."""


@dataclass(frozen=True)
class RunIdentity:
    """The identity of one run, kept in its folder's identity.json; the targets of a run share its id.

    Attributes:
        id: Random, 32 hexadecimal digits.
        settings: The run's settings as JSON values, by dotted key.
        earlier: The run began with a version without identities: its first checkpoints contain none.
    """

    id: str
    settings: Mapping[str, Any]
    earlier: bool = False

    @property
    def determining(self) -> dict[str, Any]:
        """The settings that determine the run's results."""
        return {
            key: value
            for key, value in self.settings.items()
            if not key.startswith(FREE) and key not in RAISABLE
        }

    def mark(self) -> dict[str, Any]:
        """Returns the JSON value that each checkpoint of the run contains as `run`."""
        return {"id": self.id, "settings": self.determining}

    def require_own(self, place: str, values: Mapping[str, Any]) -> None:
        """Check that the checkpoint `place`, with the content `values`, belongs to this run.

        Raises:
            OtherRunError: It is a checkpoint of another run, or of this run with other settings.
        """
        mark = values.get("run")
        if mark is None and self.earlier:
            return
        if not isinstance(mark, dict) or mark.get("id") != self.id:
            found = mark.get("id") if isinstance(mark, dict) else None
            raise OtherRunError(
                f"{place}: is a checkpoint of another run (id {found or 'missing'}, this run has {self.id}). "
                "Remove it, or put the checkpoints of this run back"
            )
        settings = mark.get("settings")
        if not isinstance(settings, dict) or not self.determining.keys() & settings.keys():
            raise OtherRunError(
                f"{place}: has no settings to compare with those of the run. "
                "Remove it; --resume then uses the checkpoint before it"
            )
        if changed := changed_settings(self.determining, settings):
            raise OtherRunError(
                f"{place}: was written with other settings than those of the run:{listed(changed)}\n"
                "  Put the old values back, or start another run with another --run-dir"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the content of identity.json."""
        return {"format": FORMAT, "id": self.id, "earlier": self.earlier, "settings": dict(self.settings)}

    @staticmethod
    def from_json(value: Any) -> "RunIdentity":
        """Returns the identity of which `value` is the JSON; the inverse of `to_json`.

        Raises:
            ValueError: `value` is not the content of an identity.json.
        """
        match value:
            case {
                "format": "ham_dist run",
                "id": str(id),
                "earlier": bool(earlier),
                "settings": dict(settings),
            } if settings:
                return RunIdentity(id, settings, earlier)
        raise ValueError("holds no identity of a run")


class Change(NamedTuple):
    """A setting that differs from the run's; as text: `seed = 5, but the run has 0`."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} = {_show(self.new)}, but the run has {_show(self.old)}"


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Returns the settings in both `old` and `new` whose values differ."""
    return [Change(key, value, new[key]) for key, value in old.items() if key in new and new[key] != value]


def listed(changes: Iterable[object]) -> str:
    """Returns the changes as lines of a message, the first on a new line."""
    return "".join(f"\n  {change}" for change in changes)


def _show(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
