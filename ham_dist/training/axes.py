"""Checks a model's `axes()` by slicing random weights at random columns."""

from collections.abc import Mapping

import torch

from ham_dist.config.schema import ModelSettings
from ham_dist.errors import ConfigError, SlicingError
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import build_interaction
from ham_dist.training.rotation import rotate_interaction
from ham_dist.training.slicing import slice_interaction

CHECKED_ROWS, CHECKED_MASKS = 8, 3
"""Rows of the batch, and number of masks, that `check_axes` compares."""
LARGEST_DIFFERENCE = 1e-9
"""Largest difference allowed between two float64 logits that are the same sums in another order; relative to
the largest logit if that is above 1."""


def check_axes(settings: ModelSettings, dims: Mapping[str, int]) -> None:
    """Check, before training, that a model's `axes()` describe its weights.

    Slices random columns of random weights. The state of the caller's random generator does not change.

    Args:
        settings: Settings of the model.
        dims: d_j of every field in the supernet.
    Raises:
        SlicingError: The sliced model cannot be built, or its logits are not those of the masked model.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        wide = build_interaction(settings, dims).double().eval()
        for weight in wide.parameters():
            weight.copy_(0.3 * torch.randn_like(weight))
        for values in wide.buffers():
            if values.is_floating_point():
                values.copy_(torch.rand_like(values) + 0.5)  # BatchNorm's variances are positive
        total = sum(wide.dims.values())
        for _ in range(CHECKED_MASKS):
            _check_cut(wide, settings, torch.randn(CHECKED_ROWS, total, dtype=torch.float64))


def _random_mask(wide: Interaction) -> torch.Tensor:
    """Return a random mask (D,) under which one field has no column."""
    bands, parts = wide.bands(), []
    for field, dim in wide.dims.items():
        part = (torch.rand(dim) < 0.5).double()
        if bands is not None:
            part.zero_()
            part[bands[field][int(torch.randint(len(bands[field]), ()))]] = 1.0
        parts.append(part)
    if len(parts) > 1:
        parts[int(torch.randint(len(parts), ()))].zero_()
    mask = torch.cat(parts)
    if not mask.any():
        mask[0] = 1.0
    return mask


def check_rotation(settings: ModelSettings, dims: Mapping[str, int]) -> None:
    """Check, before training, that the model's logits do not change if its tables are rotated.

    Rotates random weights by random rotations. The state of the caller's random generator does not change.

    Args:
        settings: As in `check_axes`.
        dims: As in `check_axes`.
    Raises:
        ConfigError: The model multiplies columns by each other, or does not tell that it does not.
        SlicingError: The logits change.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build_interaction(settings, dims).double().eval()
        if not model.is_linear_in_columns:
            raise ConfigError(
                f'search.rotate = true: model.name = "{settings.name}" does not read its columns by linear '
                "maps only, so its logits would change; expected a model such as fm, deepfm or autoint.\n"
                "  Set search.rotate = false."
            )
        axes = {
            field: torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]
            for field, dim in model.dims.items()
        }
        batch = torch.randn(CHECKED_ROWS, sum(dims.values()), dtype=torch.float64)
        before = model(batch)
        rotate_interaction(model, axes)
        difference = float((model(batch @ torch.block_diag(*axes.values())) - before).abs().max())
        if not difference <= LARGEST_DIFFERENCE * max(1.0, float(before.abs().max())):
            raise SlicingError(
                f'model.name = "{settings.name}": logits of {type(model).__name__} change by '
                f"{difference:.1e} when its columns and the weights in its axes() are rotated.\n"
                "  Set its is_linear_in_columns to False, or correct its axes()."
            )


def _check_cut(wide: Interaction, settings: ModelSettings, batch: torch.Tensor) -> None:
    """Compare the model under one random mask with the sliced model over the open columns."""
    mask = _random_mask(wide)
    parts = mask.split(list(wide.dims.values()))
    columns = {field: torch.nonzero(part).flatten() for field, part in zip(wide.dims, parts, strict=True)}
    name = f'model.name = "{settings.name}"'
    try:
        sliced = slice_interaction(wide, settings, columns).eval()
    except (RuntimeError, IndexError, KeyError) as error:
        raise SlicingError(
            f"{name}: {type(wide).__name__} cannot be sliced by its axes(): {error}\n"
            "  axes() must name every dimension of every weight that runs over columns or fields, "
            "in the order of `dims`."
        ) from error
    masked = wide(batch, mask)
    scale = LARGEST_DIFFERENCE * max(1.0, float(masked.abs().max()))
    found_of = {"its sliced model": sliced(batch[:, mask.bool()])}
    if wide.bands() is None:
        found_of["the model with the mask multiplied into the columns"] = wide(batch * mask)
    for what, found in found_of.items():
        difference = float((found - masked).abs().max())
        if not difference <= scale:
            raise SlicingError(
                f"{name}: logits of {type(wide).__name__} under a random mask differ by {difference:.1e} "
                f"from those of {what}.\n"
                "  Correct its axes(), or how forward() applies the mask."
            )
