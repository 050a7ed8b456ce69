"""Opened Core ML programs: with Core ML on a Mac, with the evaluator elsewhere; in chunks, and with state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from edgediff.errors import BackendError, unknown
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.manifest import Artifact, Graph, TensorSpec

if TYPE_CHECKING:
    from edgediff.mil import Program

MAIN = "main"
INTEGERS = {"int64": "int32"}
_OPEN: WeakValueDictionary[tuple[str, int], Program] = WeakValueDictionary()  # alive while a runner is


class Model(Protocol):
    """One function, loaded. A state is the backend's own object for all states of a package."""

    def predict(self, inputs: dict[str, Array], state: Any = None) -> dict[str, Array]: ...

    def make_state(self) -> Any: ...

    def read_state(self, state: Any, name: str) -> Array: ...

    def write_state(self, state: Any, name: str, value: Array) -> None: ...


class EvaluatedModel:
    """One function, evaluated with PyTorch."""

    def __init__(self, program: Program, function: str, threads: int | None) -> None:
        self._program, self._function, self._threads = program, function, threads

    def predict(self, inputs: dict[str, Array], state: dict[str, Array] | None = None) -> dict[str, Array]:
        """Outputs by name. Raises BackendError for inputs that do not fit."""
        from edgediff.backends.eager import torch_threads

        with torch_threads(self._threads):
            return self._program.run(self._function, state, **inputs)

    def make_state(self) -> dict[str, Array]:
        return self._program.make_state(self._function)

    def read_state(self, state: dict[str, Array], name: str) -> Array:
        return state[name]

    def write_state(self, state: dict[str, Array], name: str, value: Array) -> None:
        state[name] = value


class PlainRunner:
    """One function that keeps nothing."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises BackendError for inputs that do not fit."""
        return self._model.predict(inputs)


class HeldRunner:
    """One function whose cached features are states. See `backends.StatefulRunner`."""

    def __init__(
        self, model: Model, key: str, graph: Graph, states: Mapping[str, str], sizes: Mapping[str, int], batch: int
    ) -> None:
        """`key` names the package in a memory, `sizes` are the first axes of its states."""
        self._model, self._key, self._sizes, self._batch, self.states = model, key, sizes, batch, states
        self._outputs = [spec.name for spec in graph.outputs]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All inputs in and all outputs out, as if there were no states; nothing is kept."""
        memory = {self._key: (state := self._model.make_state())}
        for tensor, name in self.states.items():
            if tensor in inputs:
                value = np.concatenate([inputs[tensor]] * (self._sizes[name] // self._batch)).astype(np.float16)
                self._model.write_state(state, name, value)
        crossing = {name: value for name, value in inputs.items() if name not in self.states}
        found = self.run_held(crossing, memory)
        for tensor in self._outputs:
            if tensor in self.states:
                value = self._model.read_state(state, self.states[tensor])
                found[tensor] = np.array(value[-self._batch :], np.float32)
        return {name: found[name] for name in self._outputs}

    def run_held(self, inputs: dict[str, Array], memory: dict[str, Any]) -> dict[str, Array]:
        """What crosses in, what crosses out; the rest is in the package's state, one per memory."""
        if self._key not in memory:
            memory[self._key] = self._model.make_state()
        return self._model.predict(inputs, memory[self._key])


class ChunkedRunner:
    """A function in several packages, one after the other."""

    def __init__(self, chunks: Sequence[tuple[Model, Sequence[str]]], graph: Graph) -> None:
        """`chunks` are the models, each with the names of its inputs."""
        self._chunks, self._outputs = chunks, [spec.name for spec in graph.outputs]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises BackendError for inputs that do not fit."""
        known = dict(inputs)
        for model, names in self._chunks:
            if missing := [name for name in names if name not in known]:
                raise BackendError(f"input '{missing[0]}' is missing; given were {sorted(inputs)}", code="run")
            known.update(model.predict({name: known[name] for name in names}))
        return {name: known[name] for name in self._outputs}


def open_model_runner(folder: Path, graph: Graph, artifact: Artifact, batch: int, load: Any) -> Runner:
    """The runner of a graph at a batch size. `load(path, function, program)` opens one function.

    Raises BackendError for a package that cannot be read, lacks the function, or whose ends are not the manifest's.
    """
    paths, function = _locate(folder, artifact, batch)
    programs = [open_program(path) for path in paths]
    for path, program in zip(paths, programs, strict=True):
        if function not in program.functions:
            message = f"{unknown('function', function, program.functions)}; build the bundle again"
            raise BackendError(message, where=str(path), code="signature")
    _check_ends(programs, function, graph, artifact.states, batch, paths[0])
    models = [load(path, function, program) for path, program in zip(paths, programs, strict=True)]
    if len(models) > 1:
        names = [tuple(program.inputs(function)) for program in programs]
        return ChunkedRunner(list(zip(models, names, strict=True)), graph)
    if artifact.states:
        sizes = {name: int(kind.shape[0] or 0) for name, kind in programs[0].function(function).states.items()}
        return HeldRunner(models[0], str(paths[0]), graph, artifact.states, sizes, batch)
    return PlainRunner(models[0])


def open_program(path: Path) -> Program:
    """The program of a package, which the runners of its functions share."""
    from edgediff import mil

    key = (str(path.resolve()), path.stat().st_mtime_ns if path.exists() else 0)
    program = _OPEN.get(key)
    if program is None:
        program = _OPEN[key] = mil.load(path)
    return program


def _locate(folder: Path, artifact: Artifact, batch: int) -> tuple[list[Path], str]:
    """Packages and function of a graph at a batch size."""
    paths, function = [folder / file for file in (artifact.file, *artifact.chunks)], artifact.function or MAIN
    others = [file for file in artifact.data if re.search(rf"_batch{batch}(_chunk\d)?\.mlpackage$", file)]
    if others:
        return [folder / file for file in others], function
    if function != MAIN:
        named = f"{function}_batch{batch}"
        return paths, named if named in open_program(paths[0]).functions else function
    return paths, function


def _check_ends(
    programs: Sequence[Program], function: str, graph: Graph, states: Mapping[str, str], batch: int, path: Path
) -> None:
    """Inputs and outputs are the graph's, less its states; between chunks, what one puts out and another takes."""
    have_in, have_out = (
        {k: v for one in programs for k, v in getattr(one, side)(function).items()} for side in ("inputs", "outputs")
    )
    handed = have_out.keys() & have_in.keys() if len(programs) > 1 else set()

    def compare(specs: Sequence[TensorSpec], have: Mapping[str, Any]) -> None:
        between = handed - {spec.name for spec in specs}
        want = {
            spec.name: (INTEGERS.get(spec.dtype, spec.dtype), spec.sized(batch))
            for spec in specs
            if spec.name not in states
        }
        found: dict[str, Any] = {name: (kind.dtype, kind.shape) for name, kind in have.items() if name not in between}
        if found != want:
            message = f"function '{function}' has {found} where the manifest says {want}; build the bundle again"
            raise BackendError(message, where=str(path), code="signature")

    compare(graph.inputs, have_in)
    compare(graph.outputs, have_out)
    known = programs[0].function(function).states
    if missing := sorted(set(states.values()) - known.keys()):
        message = f"function '{function}' has no state '{missing[0]}', which the manifest names; build the bundle again"
        raise BackendError(message, where=str(path), code="signature")
