"""AOTInductor: `model.pt2` has compiled code without weights, which are in safetensors files next to it.

The code runs on CPUs with the instructions of the machine that compiled it, with the same version of torch.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file

from ham_dist.errors import BundleError
from ham_dist.export.aligned import map_tensors
from ham_dist.export.bundle import Bundle
from ham_dist.export.manifest import DENSE, RelativeName, TableEntry, mistakes, table_path
from ham_dist.export.packages.check import Runner, generated_batches
from ham_dist.export.packages.graph import ServedGraph
from ham_dist.export.packages.onnx import graph_of
from ham_dist.export.parts import FIRST_ORDER, TABLES
from ham_dist.io.atomic import write_json
from ham_dist.io.untrusted import inside, read_json
from ham_dist.serving.runtimes.code_key import cpu_of_this_machine
from ham_dist.serving.runtimes.internals import constants_read, open_package, write_package

MODEL, CONFIG = "model.pt2", "model.json"
_ADVICE = "Copy the package again from where it was written, or write it again."


class Weight(BaseModel):
    """The place of a constant of the code."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    file: RelativeName
    """A safetensors file."""
    tensor: str
    """A tensor in it."""


class Pt2Config(BaseModel):
    """The content of model.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    inputs: tuple[str, ...]
    """Names of the inputs, in their order, as in an ONNX package."""
    weights: dict[str, Weight]
    """The constants to set before the first run, by name. A run without one ends the process."""
    torch: str
    """Version of torch that compiled the code."""
    cpu: str
    """Instructions of the machine that compiled the code."""


def write(bundle: Bundle, folder: Path) -> None:
    """Write the compiled model of a bundle, its weights, and CONFIG.

    Raises:
        BundleError: The bundle is of kind `custom`, two inputs would have the same name, or the model cannot
            be compiled.
    """
    graph = graph_of(bundle, padded=False)
    *_, example = generated_batches(graph.fields)
    inputs = tuple(graph.inputs(example).values())
    try:
        with torch.no_grad():
            program = torch.export.export(
                graph, inputs, dynamic_shapes=(graph.dynamic_shapes(),), strict=False
            )
        write_package(program, folder / MODEL, fold=False)
    except Exception as error:  # errors of torch's compiler and of the C++ compiler have no common class
        raise BundleError(
            f"{bundle.root}: its model cannot be compiled: {next(iter(str(error).splitlines()), error)}\n"
            "  Install a C++ compiler (g++), or use another format."
        ) from error
    weights = _write_weights(bundle, graph, folder)
    config = Pt2Config(
        inputs=tuple(graph.names),
        weights={name: weights[name] for name in sorted(constants_read(program))},
        torch=torch.__version__,
        cpu=cpu_of_this_machine(),
    )
    write_json(folder / CONFIG, config.model_dump(mode="json"))


def _write_weights(bundle: Bundle, graph: ServedGraph, folder: Path) -> dict[str, Weight]:
    """Copy the files of tables and dense weights. Returns the place of each tensor of the graph, by name."""
    model, places = graph.model, dict[str, Weight]()
    for kind, entries, fields in (
        (TABLES, bundle.manifest.tables, model.fields),
        (FIRST_ORDER, bundle.manifest.first_order, model.first_order_fields),
    ):
        by_field = {entry.field: entry for entry in entries}
        for place, field in enumerate(fields):
            path = table_path(kind, field)
            _copy_table(bundle, by_field[field], folder / path)
            for tensor in map_tensors(folder / path):
                places[f"model.{kind}.{place}.{tensor}"] = Weight(file=path, tensor=tensor)
    # Not the bundle's file: that lacks the constants which a model computes from its settings.
    dense = dict(model.interaction.named_parameters()) | dict(model.interaction.named_buffers())
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in dense.items()}, folder / DENSE)
    return places | {f"model.interaction.{name}": Weight(file=DENSE, tensor=name) for name in dense}


def _copy_table(bundle: Bundle, table: TableEntry, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if len(table.files) == 1:
        shutil.copyfile(bundle.root / table.files[0].file, path)
    else:  # of an earlier format version
        save_file(bundle.stored(table).stored, path)


def runners(bundle: Bundle, folder: Path) -> Mapping[str, Runner]:
    """Opens the compiled model, as a server would."""
    graph, model = graph_of(bundle, padded=False), load_pt2(folder)
    return {"pt2": lambda ids: model(*graph.inputs(ids).values())}


class Pt2Model:
    """A compiled model that reads mapped weights. Calls take the inputs in the order of `inputs`."""

    def __init__(self, config: Pt2Config, root: Path) -> None:
        self.inputs = config.inputs
        files = {weight.file for weight in config.weights.values()}
        try:
            tensors = {file: map_tensors(inside(root, file)) for file in files}
            # The code reads these without holding them.
            self._weights = {name: tensors[at.file][at.tensor] for name, at in config.weights.items()}
        except KeyError as error:
            raise BundleError(f"{root}: lacks the tensor {error}. {_ADVICE}") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{root}: its weights cannot be read: {error}. {_ADVICE}") from None
        try:
            self._model = open_package(root / MODEL)
        except (RuntimeError, OSError) as error:
            raise BundleError(f"{root / MODEL}: cannot be opened: {error}. {_ADVICE}") from None
        if missing := sorted(set(self._model.get_constant_fqns()) - self._weights.keys()):
            raise BundleError(f"{root / MODEL}: reads {', '.join(missing)}, which {CONFIG} lacks. {_ADVICE}")
        self._model.load_constants(self._weights, check_full_update=True, user_managed=True)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Returns the probabilities, (B,)."""
        found: torch.Tensor = self._model(*inputs)
        return found


def load_pt2(folder: str | Path) -> Pt2Model:
    """Opens a package that `ham-dist package --format pt2` wrote. It runs the code in the package.

    Raises:
        BundleError: It is damaged, or was compiled by another version of torch or for another CPU, on which
            the code could end the process.
    """
    root = Path(folder)
    try:
        config = Pt2Config.model_validate(read_json(root / CONFIG))
    except ValidationError as error:
        raise BundleError(f"{root / CONFIG}: {mistakes(error)}\n  {_ADVICE}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{root / CONFIG}: damaged: {error}. {_ADVICE}") from None
    for what, found, here in (
        ("torch", config.torch, torch.__version__),
        ("cpu", config.cpu, cpu_of_this_machine()),
    ):
        if found != here:
            raise BundleError(
                f"{root}: compiled with {what} {found}, but here it is {here}.\n"
                "  Write the package on a machine like this one."
            )
    return Pt2Model(config, root)
