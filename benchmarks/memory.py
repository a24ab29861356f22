"""Memory that a run needs beyond its inputs and results.

Measured in a process of its own by the operating system's count of resident pages,
so that scratch memory of a kernel counts like a tensor. A server imports the library
and forks for every measurement; it computes nothing itself, for a fork that inherits
a pool of threads hangs.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from subquad.benchmarks.registry import Case, Options, Run, entries

# Freed memory goes back to the system at once, or it would be found again unnoticed.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OPENBLAS_NUM_THREADS": "1",
}
_WARM_UP_LENGTH = 256
# The reason begins so if a run ended its process, as one without memory does.
ENDED = "the process ended"


class MemoryServer:
    """Measures on request; see :func:`serve_memory`."""

    def __init__(self, threads: int) -> None:
        """Start the process."""
        self._threads = threads
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **_ENVIRONMENT},
        )

    def extra_bytes(
        self, prepare: str, length: int, arguments: Mapping[str, Any]
    ) -> int | str:
        """Peak memory beyond inputs and results, or why it is not known.

        Args:
            prepare: ``"module:function"`` of a function that takes a length and
                ``arguments`` and returns a Run.
            length: Of the run that is measured, after a short one.
            arguments: JSON values.
        """
        request = {
            "prepare": prepare,
            "length": length,
            "arguments": dict(arguments),
            "threads": self._threads,
        }
        requests, answers = self._process.stdin, self._process.stdout
        if requests is None or answers is None:
            return "no server"
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            return "the measuring process ended"
        extra: int | str = json.loads(answer)
        return extra

    def case_bytes(self, case: Case, contender: str, options: Options) -> int | str:
        """The same of a case that its entry makes with these options."""
        labels = dict(case.labels)
        arguments = {
            "entry": case.entry,
            "labels": labels,
            "contender": contender,
            "options": dataclasses.asdict(options),
        }
        return self.extra_bytes(f"{__name__}:prepare_case", int(labels["L"]), arguments)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def serve_memory(threads: int) -> Iterator[MemoryServer]:
    """A server whose runs use so many threads."""
    server = MemoryServer(threads)
    try:
        yield server
    finally:
        server.close()


def peak_extra_bytes(run: Run) -> int:
    """Peak resident memory during a run beyond what there was and its results.

    Raises:
        OSError: The system does not tell.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = _resident("VmRSS")
    results = run()
    peak = _resident("VmHWM")
    sizes = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in results}
    return peak - before - sum(storage.nbytes() for storage in sizes.values())


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def prepare_case(
    length: int,
    entry: str,
    labels: Mapping[str, str | int],
    contender: str,
    options: Mapping[str, Sequence[Any]],
) -> Run:
    """The run of a contender in the case with these labels, but another length."""
    chosen = Options(**{name: tuple(values) for name, values in options.items()})
    sized = dataclasses.replace(chosen, lengths=(length,))
    labels = {**labels, "L": length}
    for case in entries()[entry].cases(sized):
        if dict(case.labels) == labels:
            (found,) = (c for c in case.contenders if c.name == contender)
            return found.build(case.inputs(), case.backward)
    raise LookupError(f"no case {labels} in {entry}")


def _measure(request: dict[str, Any]) -> int:
    torch.set_num_threads(request["threads"])
    module, name = request["prepare"].split(":")
    prepare: Callable[..., Run] = getattr(importlib.import_module(module), name)
    arguments = request["arguments"]
    # Code and pools of threads are loaded by a small run.
    prepare(_WARM_UP_LENGTH, **arguments)()
    return peak_extra_bytes(prepare(request["length"], **arguments))


def _serve() -> None:
    entries()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answer: int | str
            try:
                answer = _measure(json.loads(line))
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps(f"{ENDED} with status {status}"), flush=True)


if __name__ == "__main__":
    _serve()
