"""The Open Inference Protocol over gRPC, and gRPC's health service."""

import logging
import socket
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from ham_dist import __version__
from ham_dist.serving.server.batcher import Scored
from ham_dist.serving.server.grpc_messages import SERVICE, message
from ham_dist.serving.server.refusal import Refused
from ham_dist.serving.server.service import Service
from ham_dist.serving.server.tensors import (
    OUTPUT,
    PLATFORM,
    Tensor,
    check_head,
    from_bytes,
    from_list,
    model_metadata,
    require_output,
    values_of,
)

log = logging.getLogger(__name__)

_CONTENTS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Field of InferTensorContents that has the values of a datatype."""
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_InferResponse = message("ModelInferResponse")


class GrpcServer:
    """Serves a service over gRPC.

    Args:
        service: The model in service.
        bound: A socket whose address gRPC shares.
    """

    def __init__(self, service: Service, bound: socket.socket) -> None:
        self._service = service
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", service.options.max_body_bytes),
                ("grpc.so_reuseport", 1),
            ]
        )
        methods: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": not service.draining},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: {"name": PLATFORM, "version": __version__},
            "ModelMetadata": self._model_metadata,
        }
        handlers = {name: _handler(name, _plain(name, answer)) for name, answer in methods.items()}
        handlers["ModelInfer"] = _handler("ModelInfer", self._infer)
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        host, port = bound.getsockname()[:2]
        self._server.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{port}")

    async def start(self) -> None:
        """Starts to serve."""
        await self._server.start()

    async def stop(self) -> None:
        """Answers everything that was accepted, then ends."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._service.options.drain_seconds)

    def _model_ready(self, request: Any) -> dict[str, Any]:
        self._service.require_served(request.name, request.version)
        return {"ready": not self._service.draining}

    def _model_metadata(self, request: Any) -> dict[str, Any]:
        return model_metadata(self._service.require_served(request.name, request.version), request.name)

    async def _infer(self, request: Any, context: Any) -> Any:
        started, status = perf_counter(), 200
        try:
            model = self._service.require_served(request.model_name, request.model_version)
            require_output([output.name for output in request.outputs])
            meaning = request.parameters["values"].string_param if "values" in request.parameters else "auto"
            tensors = _tensors(request, self._service.options.max_rows)
            scored = await self._service.score(model, values_of(tensors, model, meaning), request.ByteSize())
            return _answer(scored, request)
        except Refused as refused:
            status = refused.status
            await context.abort(_CODES[status], refused.message)
        except Exception:
            status = 500
            log.exception("ModelInfer failed")
            await context.abort(
                grpc.StatusCode.INTERNAL, "internal error; the server's log has its traceback"
            )
        finally:
            self._service.metrics.request("grpc", status, perf_counter() - started)


def _handler(name: str, answer: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=message(f"{name}Request").FromString,
        response_serializer=message(f"{name}Response").SerializeToString,
    )


def _plain(name: str, answer: Callable[[Any], dict[str, Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """A method whose response has the fields that `answer` returns."""
    response = message(f"{name}Response")

    async def method(request: Any, context: Any) -> Any:
        try:
            return response(**answer(request))
        except Refused as refused:
            await context.abort(_CODES[refused.status], refused.message)

    return method


def _tensors(request: Any, max_rows: int) -> list[Tensor]:
    """The inputs of a request, which are all in `raw_input_contents` or all in `contents`."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Refused(
            400,
            f"raw_input_contents: has {len(raw):,} tensors; expected {len(request.inputs):,}, as `inputs`",
        )
    tensors = []
    for place, item in enumerate(request.inputs):
        count = check_head(item.name, item.datatype, list(item.shape))
        if raw:
            tensors.append(from_bytes(item.name, item.datatype, count, raw[place], max_rows))
            continue
        values: list[Any] = list(getattr(item.contents, _CONTENTS[item.datatype]))
        if item.datatype == "BYTES":
            try:
                values = [text.decode("utf-8") for text in values]
            except UnicodeDecodeError:
                raise Refused(400, f"input {item.name[:80]!r}: has a value that is not UTF-8") from None
        tensors.append(from_list(item.name, item.datatype, count, values))
    return tensors


def _answer(scored: Scored, request: Any) -> Any:
    rows = len(scored.probabilities)
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": [rows]}
    answer: dict[str, Any] = {
        "model_name": request.model_name, "model_version": scored.version, "id": request.id
    }  # fmt: skip
    if request.raw_input_contents:
        answer["raw_output_contents"] = [scored.probabilities.astype("<f4").tobytes()]
    else:
        output["contents"] = {"fp32_contents": scored.probabilities.tolist()}
    return _InferResponse(outputs=[output], **answer)
