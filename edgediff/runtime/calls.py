"""The network calls of one picture: what each is fed, what it carries on, and what it must not put out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np

from edgediff.errors import BackendError, BundleError, did_you_mean
from edgediff.runtime.engine import Array, Runner, StatefulRunner, held_states
from edgediff.runtime.manifest import BATCH, SCALE, Condition, Graph, Manifest, Program, TensorSpec
from edgediff.runtime.steps import StepRow

NEWEST = (1.0,)


class Calls:
    """The network calls of one picture, with what they carry: one set of carries in batched mode, one per
    prompt in sequential mode. Holds buffers, so it serves one picture only."""

    def __init__(
        self,
        manifest: Manifest,
        program: Program,
        runners: Mapping[str, Runner],
        given: Mapping[str, Array],
        guidance: float | None = None,
    ) -> None:
        """`given` are the conditions that stay the same in every row, by input name: one row for the prompt, or
        two (empty, prompt) when some row is guided. `guidance` is the asked scale (None: the program's own)."""
        self.graphs, self.conditions, self.runners, self.given = manifest.graphs, manifest.conditions, runners, given
        self.rows, self.batched, self.seconds = program.rows, program.mode == "batched", 0.0
        own = program.guidance.scale if program.guidance is not None else 1.0
        self.scale = own if guidance is None else guidance
        self.depth = _depths(program)
        self.stores: tuple[dict[str, list[Array]], dict[str, list[Array]]] = ({}, {})
        self.memories: tuple[dict[str, Any], dict[str, Any]] = ({}, {})  # of runners that keep carries themselves
        self.differences: list[Array] = []
        self.held = max((len(row.held.weights) for row in self.rows if row.held is not None), default=0)
        self.ready: dict[tuple[str, int, int], _Call] = {}

    def predict(self, index: int, row: StepRow, latent: Array) -> Array | None:
        """e_i [1, *latent] float32, or None for a held row."""
        self.seconds = 0.0
        name, guidance = self.rows[index].graph, self.rows[index].guidance
        if name is None:
            return None
        try:
            if guidance is None:
                return check_finite(self._alone(index, name, latent, row.timestep))
            scale = self.scale if guidance == SCALE else float(guidance)
            return check_finite(self._guided(index, name, latent, row.timestep, scale))
        except BadCall as error:
            where = f"row {index} (graph '{name}', timestep {row.timestep:g})"
            raise error.named(where) from None

    def _alone(self, index: int, name: str, latent: Array, timestep: float) -> Array:
        """The prompt's side, with the differences that guided rows left where the row holds them."""
        output, held = self._call(index, name, 1, 1, latent, timestep), self.rows[index].held
        if held is None:
            return output
        times = np.float32(self.scale - 1.0) if held.times == "scale_minus_one" else np.float32(1.0)
        for weight, difference in zip(held.weights, self.differences, strict=False):
            output = output + np.float32(weight) * times * difference
        return output

    def _guided(self, index: int, name: str, latent: Array, timestep: float, scale: float) -> Array:
        if self.batched:
            both = self._call(index, name, 2, 0, latent, timestep)
            negative, positive = both[:1], both[1:]
        else:
            negative = self._call(index, name, 1, 0, latent, timestep)
            positive = self._call(index, name, 1, 1, latent, timestep)
        output: Array = positive - negative
        if self.held:
            self.differences.insert(0, output.copy())
            del self.differences[self.held :]
        output *= scale
        output += negative
        return output

    def _call(self, row: int, name: str, batch: int, side: int, latent: Array, timestep: float) -> Array:
        call = self.ready.get((name, batch, side))
        if call is None:
            memory = self.memories[0 if self.batched else side]
            call = _Call(self.runners[name], self.graphs[name], self.conditions, self.given, batch, side, memory)
            self.ready[name, batch, side] = call
        store = self.stores[0 if self.batched else side]
        inputs = call.feed(latent, timestep)
        for carry, tensor, spec in call.reads:
            inputs[tensor] = _carried(store, carry, spec, batch, self.rows[row].mix.get(carry, NEWEST))
        start = time.perf_counter()
        outputs = call.run(inputs)
        self.seconds += time.perf_counter() - start
        for carry, tensor in call.writes:
            past = store.setdefault(carry, [])
            past.insert(0, call.own(pick_output(outputs, tensor)))
            del past[self.depth.get(carry, 1) :]
        value = call.own(pick_output(outputs, call.output))
        if value.shape[0] != batch or value.shape[1:] != latent.shape[1:]:
            raise BadCall("output", f"put out the shape {value.shape}, not {(batch, *latent.shape[1:])}")
        return value if value.dtype == np.float32 else value.astype(np.float32)


class _Call:
    """One graph for one side (0 negative, 1 prompt) or both (batch 2): what can be looked up before the first
    row, the inputs that stay, and the buffers that every row fills."""

    def __init__(
        self,
        runner: Runner,
        graph: Graph,
        conditions: Mapping[str, Condition],
        given: Mapping[str, Array],
        batch: int,
        side: int,
        memory: dict[str, Any],
    ) -> None:
        """`memory` is where a runner that keeps carries itself keeps them."""
        specs, held = {spec.name: spec for spec in graph.inputs}, held_states(runner)
        sources = {spec.name: conditions[spec.name].source for spec in graph.free_inputs()}
        self.latent = next(specs[name] for name, source in sources.items() if source == "latent")
        self.batch, self.output = batch, graph.free_outputs()[0].name
        self.run = partial(cast(StatefulRunner, runner).run_held, memory=memory) if held else runner.run
        crossing = [item for item in graph.carries_in.items() if item[1] not in held]
        self.reads = [(carry, tensor, specs[tensor]) for carry, tensor in crossing]
        self.writes = [item for item in graph.carries_out.items() if item[1] not in held]
        self.inputs: dict[str, Array] = {}
        time = next((specs[name] for name, source in sources.items() if source == "timestep"), None)
        self.timestep = None if time is None else np.zeros(time.sized(batch), time.dtype)
        if time is not None and self.timestep is not None:
            self.inputs[time.name] = self.timestep
        self.sample = np.empty(self.latent.sized(batch), self.latent.dtype) if batch == 2 else None
        for name, value in given.items():
            if name in specs:
                part = value if batch == 2 and BATCH in specs[name].shape else value[-1:] if side else value[:1]
                self.inputs[name] = np.ascontiguousarray(part, dtype=specs[name].dtype)

    def feed(self, latent: Array, timestep: float) -> dict[str, Array]:
        """The inputs of a row, without its carries. At batch 1 in float32 the latent itself goes in."""
        if self.timestep is not None:
            self.timestep.fill(timestep)
        if self.sample is None:
            self.inputs[self.latent.name] = np.asarray(latent, self.latent.dtype)
        else:
            self.sample[...] = latent
            self.inputs[self.latent.name] = self.sample
        return self.inputs

    def own(self, value: Array) -> Array:
        """A runner that passes its sample on returns our buffer, which the next row overwrites."""
        shared = self.sample is not None and np.may_share_memory(value, self.sample)
        return value.copy() if shared else value


class BadCall(Exception):
    """Something wrong in a call; whoever knows the row and the graph names them."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    def named(self, where: str) -> BackendError | BundleError:
        kind = BundleError if self.code.startswith("carry") else BackendError
        return kind(f"{where} {self.message}", code=self.code)


def _depths(program: Program) -> dict[str, int]:
    """Carry -> how many of its past values some row mixes; 1 for the others."""
    depths: dict[str, int] = {}
    for row in program.rows:
        for carry, weights in row.mix.items():
            depths[carry] = max(depths.get(carry, 1), len(weights))
    return depths


def _carried(store: dict[str, list[Array]], carry: str, spec: TensorSpec, batch: int, mix: tuple[float, ...]) -> Array:
    """A carry, mixed from its past values, at the batch of this call."""
    past = store.get(carry, [])
    if len(past) < len(mix):
        raise BadCall("carry_before_write", f"reads carry '{carry}' before any row writes it")
    values = [_at_batch(value, carry, spec, batch) for value in past[: len(mix)]]
    if mix == NEWEST:
        total = values[0]
    else:
        total = values[0] * np.float32(mix[0])
        for weight, value in zip(mix[1:], values[1:], strict=True):
            total += np.float32(weight) * value
    return total if total.dtype == spec.dtype else total.astype(spec.dtype)


def _at_batch(value: Array, carry: str, spec: TensorSpec, batch: int) -> Array:
    """A row of the prompt alone keeps the prompt's half."""
    if BATCH not in spec.shape or value.shape[axis := spec.shape.index(BATCH)] == batch:
        return value
    if batch == 2:
        raise BadCall("carry", f"is guided, but carry '{carry}' was written without guidance")
    return value.take([1], axis=axis) if axis else value[1:]


def find_tensor(tensors: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    message = f"there is no tensor '{name}'{did_you_mean(name, [t.name for t in tensors])}"
    raise BundleError(message, code="tensor")


def pick_output(outputs: dict[str, Array], name: str) -> Array:
    if name not in outputs:
        raise BadCall("output", f"did not return '{name}'{did_you_mean(name, outputs)}")
    return outputs[name]


def check_finite(value: Array) -> Array:
    good = np.isfinite(value)
    if not good.all():
        raise BadCall(
            "non_finite",
            f"put out {value.size - int(good.sum())} of {value.size} values that are NaN or infinite; a precision "
            "that overflows does that (try fp32 for this graph), and so do damaged weights",
        )
    return value
