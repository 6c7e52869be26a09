"""ONNX: `model.onnx`, with the weights in `model.onnx.data` next to it, as ONNX Runtime maps them."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import bundle_identity
from ham_dist.export.packages.check import Runner, generated_batches, read_fields
from ham_dist.export.packages.graph import OUTPUT, ServedGraph

MODULES = ("onnx", "onnxscript", "onnxruntime")
MODEL = "model.onnx"


def write(bundle: Bundle, folder: Path) -> None:
    """Write the ONNX model of a bundle.

    Raises:
        BundleError: As for `write_onnx`.
    """
    write_onnx(bundle, folder, padded=False)


def runners(bundle: Bundle, folder: Path) -> Mapping[str, Runner]:
    """Opens the model with ONNX Runtime."""
    return {"onnx": onnx_runner(bundle, folder, padded=False)}


def graph_of(bundle: Bundle, *, padded: bool) -> ServedGraph:
    """Returns the graph of a bundle's model.

    Raises:
        BundleError: The bundle is of kind `custom`, or two inputs would have the same name.
    """
    graph = ServedGraph(bundle.model(), read_fields(bundle), padded=padded)
    names = [*graph.names, OUTPUT]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BundleError(
            f"{bundle.root}: two inputs or outputs of the package would be called {twice[0]!r}. "
            "Rename the field in the recipe, and train again."
        )
    return graph


def write_onnx(bundle: Bundle, folder: Path, *, padded: bool) -> None:
    """Write MODEL and its weights into `folder`.

    Raises:
        BundleError: As for `graph_of`; or the model has an operation that ONNX lacks.
    """
    graph = graph_of(bundle, padded=padded)
    *_, example = generated_batches(graph.fields)
    with _quiet():
        try:
            program = torch.onnx.export(
                graph,
                tuple(graph.inputs(example).values()),
                input_names=graph.names,
                output_names=[OUTPUT],
                dynamic_shapes=(graph.dynamic_shapes(),),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = error.__cause__ or error
            raise BundleError(
                f"{bundle.root}: its model cannot be written as ONNX: {str(reason).strip().splitlines()[0]}\n"
                "  Use another format: pt2 or torchrec."
            ) from error
        assert program is not None, "dynamo returns a program"
        program.model.metadata_props["ham_dist.bundle"] = bundle_identity(bundle.root)
        program.save(folder / MODEL, external_data=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides messages of torch's exporter about itself: nothing in them can be changed by a caller."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def onnx_runner(bundle: Bundle, folder: Path, *, padded: bool) -> Runner:
    """Opens MODEL in `folder` with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
    graph = graph_of(bundle, padded=padded)

    def run(ids: Mapping[str, Ids]) -> torch.Tensor:
        given = {name: values.numpy() for name, values in graph.inputs(ids).items()}
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return run
