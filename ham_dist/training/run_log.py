"""The log of a run: metrics.jsonl and TensorBoard for programs, log.txt and the terminal for people."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console

from ham_dist.io.atomic import write_text
from ham_dist.io.console import open_console, text
from ham_dist.io.printable import printable
from ham_dist.io.progress import Advance, progress
from ham_dist.io.untrusted import parse_json
from ham_dist.training.appender import FULL, Appender
from ham_dist.training.run_folder import RunFolder

TENSORBOARD_BYTES = 1 << 16
"""Free bytes on the disk below which no TensorBoard events are written."""


class Steps(Protocol):
    """Counts the finished steps of an epoch; `RunLog.progress` returns one."""

    def step(self, samples: int) -> None:
        """Count a finished step on a global batch of `samples` rows."""


class RunLog:
    """The log of one run. All ranks make the same calls; only rank 0 writes.

    Lines are appended, so a resumed run continues the same files. While the disk is full, lines are kept in
    memory and training continues.

    Attributes:
        folder: The run folder, with metrics.jsonl, log.txt and tensorboard/.
    Args:
        is_first: True on rank 0.
        console: Terminal for people; standard error by default, so that standard output contains only the
            run's result.
        clock: Seconds, for progress.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        is_first: bool,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._is_first = is_first
        self._console = console or open_console(stderr=True)
        self._clock = clock
        self._events: Any = None
        if is_first:
            _keep_lines(folder.metrics, lambda entry: True)
            self._metrics = Appender(folder.metrics)
            self._text = Appender(folder.log)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # else the error that ended the run is reported
                raise

    def close(self) -> None:
        """Write what is buffered and close the files.

        Raises:
            OSError: The disk has no room for it.
        """
        if self._is_first:
            with suppress(OSError):
                self._close_events()
            try:
                self._text.close()
            finally:
                self._metrics.close()

    def _close_events(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            events.close()

    def metrics(self, stage: str, epoch: int, step: int, **values: Any) -> None:
        """Write a line of metrics.jsonl, and its numbers as TensorBoard scalars `<stage>/<name>` at `step`.

        Args:
            values: Numbers (also tensors of one element), strings, or lists of them. A number that is not
                finite is written as null.
        """
        entry = {
            "stage": stage,
            "epoch": epoch,
            "step": step,
            **{name: _plain(value) for name, value in values.items()},
        }
        if self._is_first:
            self._metrics.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
            self._to_tensorboard(entry)

    def say(self, line: str) -> None:
        """Write a line for people: to log.txt with the time, and to the terminal."""
        if self._is_first:
            self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(line)}\n")
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(text(line))

    def truncate_after(self, stage: str, epoch: int) -> None:
        """Remove the lines of `stage` after `epoch` from metrics.jsonl: a resumed run repeats these epochs.

        TensorBoard's events are written again from the remaining lines.

        Args:
            epoch: The last epoch in the checkpoint; -1 if it contains none.
        """
        if not self._is_first:
            return
        self._metrics.close()
        dropped, kept = _keep_lines(
            self.folder.metrics, lambda entry: entry["stage"] != stage or entry["epoch"] <= epoch
        )
        self._metrics = Appender(self.folder.metrics)
        if dropped:
            self._close_events()
            shutil.rmtree(self.folder.tensorboard, ignore_errors=True)
            for entry in kept:
                self._to_tensorboard(entry)

    @contextmanager
    def progress(self, stage: str, epoch: int, total_steps: int) -> Iterator[Steps]:
        """Show the progress of an epoch, with samples per second and the time left.

        On a terminal this is a bar, else a line from time to time and one at the end.

            with log.progress("pretrain", epoch, len(batches)) as progress:
                for batch in batches:
                    ...
                    progress.step(samples)
        """
        if not self._is_first:
            yield _Silent()
            return
        title = f"{stage} epoch {epoch}"
        options: Any = {"rows": "samples", "console": self._console, "clock": self._clock}
        with progress(title, total_steps, self._print, **options) as advance:
            yield _Advancing(advance)

    def _to_tensorboard(self, entry: dict[str, Any]) -> None:
        # The events only repeat metrics.jsonl, so they are skipped when the disk is full: TensorBoard's
        # writer thread would end with a traceback.
        if shutil.disk_usage(self.folder.path).free < TENSORBOARD_BYTES:
            return
        try:
            self._add_scalars(entry)
        except OSError as error:
            if error.errno not in FULL:
                raise
            with suppress(OSError):
                self._close_events()

    def _add_scalars(self, entry: dict[str, Any]) -> None:
        if self._events is None:
            # TensorBoard takes a second to import and is needed on one rank only.
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.folder.tensorboard))
        for name, value in entry.items():
            if name not in ("stage", "epoch", "step") and isinstance(value, int | float):
                self._events.add_scalar(f"{entry['stage']}/{name}", value, entry["step"])


class _Silent:
    def step(self, samples: int) -> None:
        pass


class _Advancing:
    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def step(self, samples: int) -> None:
        self._advance(1, samples)


def _keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> tuple[int, list[dict[str, Any]]]:
    """Keep only the lines for which `keep` is true; incomplete and damaged lines are removed too.

    Returns:
        The number of removed lines, and the entries that remain.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.split("\n")[:-1]
    kept = [(line, entry) for line in lines if (entry := _entry(line)) is not None and keep(entry)]
    if text != (whole := "".join(f"{line}\n" for line, _ in kept)):
        write_text(path, whole)
    return len(lines) - len(kept), [entry for _, entry in kept]


def _entry(line: str) -> dict[str, Any] | None:
    """The entry in a line of metrics.jsonl; None if the line is damaged."""
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    match entry:
        case {"stage": str(), "epoch": int()}:
            return dict(entry)
    return None


def _plain(value: Any) -> Any:
    """`value` as JSON: tensors and numpy numbers as plain numbers, numbers that are not finite as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
