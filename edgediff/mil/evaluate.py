"""Programs, loaded and run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from edgediff.errors import BackendError, did_you_mean, unknown
from edgediff.mil import ops_math, ops_nn, ops_shape
from edgediff.mil.blobs import Array
from edgediff.mil.constants import CONSTEXPR
from edgediff.mil.package import FLOATS, Package, ValueType, open_package, value_type
from edgediff.mil.registry import MOVES, OPERATIONS

Precision = Literal["fp16", "fp32"]
FAMILIES = (ops_math, ops_nn, ops_shape)  # importing them fills the table
CACHE_BYTES = 6 << 30
WRITE_STATE = {"write_state", "coreml_update_state"}


@dataclass(frozen=True)
class Step:
    """One operation: what it reads (argument -> name or list of names), what it makes, what nobody reads after it."""

    kind: str
    name: str
    inputs: dict[str, str | list[str]]
    outputs: tuple[tuple[str, ValueType], ...]
    done: tuple[str, ...]


class Function:
    """One function of a program, read and ready to run."""

    def __init__(self, package: Package, name: str) -> None:
        self.name, self._package = name, package
        block = package.block(name)
        self.inputs = {one.name: value_type(one.type) for one in package.function(name).inputs}
        self.states = {
            one.name: value_type(one.type)
            for one in package.function(name).inputs
            if one.type.WhichOneof("type") == "stateType"
        }
        self.messages: dict[str, Any] = {}  # constants, and what makes compressed ones, by name
        self.constexpr: dict[str, tuple[Any, int]] = {}
        operations = []
        for message in block.operations:
            if message.type == "const":
                self.messages[message.outputs[0].name] = message.attributes["val"]
            elif message.type.startswith("constexpr_"):
                for index, output in enumerate(message.outputs):
                    self.constexpr[output.name] = (message, index)
            else:
                operations.append(message)
        self.outputs = tuple(block.outputs)
        self.steps = self._order(operations)
        self.output_types = {name: kind for step in self.steps for name, kind in step.outputs if name in self.outputs}
        self.output_types.update({name: self.inputs[name] for name in self.outputs if name in self.inputs})

    def _order(self, operations: list[Any]) -> tuple[Step, ...]:
        last: dict[str, int] = {}
        reads: list[dict[str, str | list[str]]] = []
        for index, message in enumerate(operations):
            if message.type not in OPERATIONS and message.type not in WRITE_STATE:
                raise self._unknown(message)
            if message.blocks:
                raise BackendError(f"operation '{message.type}' has blocks of its own", code="op", where=self._where)
            found: dict[str, str | list[str]] = {}
            for key, argument in message.inputs.items():
                names = [
                    self._bound(one, f"{message.outputs[0].name if message.outputs else index}.{key}.{place}")
                    for place, one in enumerate(argument.arguments)
                ]
                found[key] = names if key == "values" else names[0]
                last.update(dict.fromkeys(names, index))
            reads.append(found)
        kept = {*self.outputs, *self.inputs}
        ends: dict[int, list[str]] = {}
        for name, index in last.items():
            if name not in kept and name not in self.messages and name not in self.constexpr:
                ends.setdefault(index, []).append(name)
        return tuple(
            Step(
                message.type,
                message.outputs[0].name if message.outputs else message.type,
                reads[index],
                tuple((one.name, value_type(one.type)) for one in message.outputs),
                tuple(ends.get(index, ())),
            )
            for index, message in enumerate(operations)
        )

    def _bound(self, argument: Any, name: str) -> str:
        """The name of what an argument is bound to; a value written in place gets a name of its own."""
        if argument.WhichOneof("binding") == "name":
            bound: str = argument.name
            return bound
        self.messages[f"%{name}"] = argument.value
        return f"%{name}"

    def _unknown(self, message: Any) -> BackendError:
        place = message.outputs[0].name if message.outputs else "?"
        hint = did_you_mean(message.type, OPERATIONS)
        text = f"operation '{message.type}' (for '{place}' of function '{self.name}') is not known to the evaluator"
        return BackendError(text + hint, where=self._where, code="unknown_op")

    @property
    def _where(self) -> str:
        return str(self._package.path)


class Program:
    """A loaded package. Weights are read when they are first used, and kept as fp32 up to `cache_bytes`."""

    def __init__(self, package: Package, precision: Precision, cache_bytes: int) -> None:
        self.package, self.precision = package, precision
        self._functions: dict[str, Function] = {}
        self._constants: dict[tuple[str, ...], Any] = {}
        self._room = cache_bytes
        self.unrounded: frozenset[str] = frozenset()  # kinds of operations whose results are left in fp32

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the functions."""
        return self.package.functions

    def function(self, name: str | None = None) -> Function:
        """One function; None is the default one. Raises BackendError for an unknown name or operation."""
        name = name or self.package.default_function
        if name not in self.functions:
            message = f"{unknown('function', name, self.functions)}"
            raise BackendError(message, where=str(self.package.path), code="function")
        if name not in self._functions:
            self._functions[name] = Function(self.package, name)
        return self._functions[name]

    def inputs(self, function: str | None = None) -> dict[str, ValueType]:
        """Type and shape of every input; those that are states are among `states`."""
        one = self.function(function)
        return {name: kind for name, kind in one.inputs.items() if name not in one.states}

    def outputs(self, function: str | None = None) -> dict[str, ValueType]:
        """Type and shape of every output."""
        one = self.function(function)
        return {name: one.output_types[name] for name in one.outputs}

    def make_state(self, function: str | None = None) -> dict[str, Array]:
        """Zeros for every state of a function: what `MLModel.makeState()` gives."""
        states = self.function(function).states
        return {name: np.zeros([size or 0 for size in kind.shape], kind.dtype) for name, kind in states.items()}

    def run(
        self, /, function: str | None = None, state: dict[str, Array] | None = None, **inputs: Array
    ) -> dict[str, Array]:
        """Outputs by name, as numpy arrays of the declared types.

        `state` (from `make_state`) is changed in place. Inputs are converted to the declared type. Raises
        BackendError for inputs that are missing, unknown or of another shape.
        """
        one = self.function(function)
        values = self._feed(one, inputs)
        held = state if state is not None else self.make_state(one.name)
        if missing := sorted(set(one.states) - set(held)):
            raise BackendError(f"state {missing} is missing; make_state('{one.name}') gives it", code="run")
        values.update({name: torch.from_numpy(np.array(held[name], np.float32)) for name in one.states})
        with torch.inference_mode():
            for step in one.steps:
                self._step(one, step, values)
            found = {name: self._get(one, name, values).numpy() for name in one.outputs}
        for name, kind in one.states.items():
            held[name] = values[name].numpy().astype(kind.dtype)
        return {name: np.array(value, one.output_types[name].dtype) for name, value in found.items()}

    def _feed(self, one: Function, inputs: dict[str, Array]) -> dict[str, Tensor]:
        wanted = [name for name in one.inputs if name not in one.states]
        for name in inputs:
            if name not in wanted:
                message = f"function '{one.name}' has no input '{name}'{did_you_mean(name, wanted)}"
                raise BackendError(message, code="run")
        values: dict[str, Tensor] = {}
        for name in wanted:
            kind = one.inputs[name]
            if name not in inputs:
                raise BackendError(f"input '{name}' is missing; given were {sorted(inputs)}", code="run")
            array = np.asarray(inputs[name])
            if len(array.shape) != len(kind.shape) or any(
                want not in (None, have) for have, want in zip(array.shape, kind.shape, strict=True)
            ):
                message = f"input '{name}' has shape {array.shape}, function '{one.name}' wants {kind.shape}"
                raise BackendError(message, code="run")
            tensor = torch.from_numpy(np.array(array, "float32" if kind.dtype in FLOATS else kind.dtype))
            values[name] = self._rounded(tensor, kind.dtype)
        return values

    def _step(self, one: Function, step: Step, values: dict[str, Tensor]) -> None:
        arguments: dict[str, Any] = {
            key: [self._get(one, name, values) for name in bound]
            if isinstance(bound, list)
            else self._get(one, bound, values)
            for key, bound in step.inputs.items()
        }
        if step.kind in WRITE_STATE:
            target = step.inputs["input" if step.kind == "write_state" else "state"]
            update = arguments["data" if step.kind == "write_state" else "value"]
            values[str(target)] = self._rounded(update, one.states[str(target)].dtype)
            results: list[Tensor] = [values[str(target)]] * len(step.outputs)
        else:
            try:
                made = OPERATIONS[step.kind](**arguments)
            except BackendError:
                raise
            except Exception as error:  # torch raises many kinds
                message = f"operation '{step.kind}' (it makes '{step.name}') failed: {error}"
                raise BackendError(message, where=str(self.package.path), code="op") from error
            results = made if isinstance(made, list) else [made]
        for (name, kind), result in zip(step.outputs, results, strict=True):
            if len(result.shape) != len(kind.shape) or any(
                want not in (None, have) for have, want in zip(result.shape, kind.shape, strict=True)
            ):
                message = (
                    f"operation '{step.kind}' made '{name}' with shape {tuple(result.shape)}, declared {kind.shape}"
                )
                raise BackendError(message, where=str(self.package.path), code="op")
            exact = step.kind in MOVES or step.kind in self.unrounded
            values[name] = result if exact else self._rounded(result, kind.dtype)
        for name in step.done:
            values.pop(name, None)

    def _rounded(self, value: Tensor, dtype: str) -> Tensor:
        """fp16 results are rounded to it and held as fp32."""
        if dtype == "float16" and self.precision == "fp16":
            return value.half().float()
        return value

    def _get(self, one: Function, name: str, values: dict[str, Tensor]) -> Any:
        if name in values:
            return values[name]
        key = (one.name, name)
        if key in self._constants:
            return self._constants[key]
        value, mark = self._constant(one, name)
        if mark is not None and mark in self._constants:
            return self._constants[mark]
        size = value.numel() * value.element_size() if isinstance(value, Tensor) else 0
        if size <= self._room:
            self._room -= size
            self._constants[mark or key] = value
        return value

    def _constant(self, one: Function, name: str) -> tuple[Any, tuple[str, ...] | None]:
        """A constant for the operations: floats as fp32 tensors. The mark is where its weights lie: functions
        that share weights share the loaded ones."""
        if name in one.constexpr:
            message, index = one.constexpr[name]
            found = self._decompress(one, message)
            return _as_tensor(found[index] if isinstance(found, tuple) else found), None
        if name not in one.messages:
            message = f"function '{one.name}' reads '{name}', which nothing makes"
            raise BackendError(message, where=str(self.package.path), code="damaged")
        message = one.messages[name]
        mark = None
        if message.WhichOneof("value") == "blobFileValue":
            blob = message.blobFileValue
            shape = value_type(message.type).shape
            mark = ("blob", blob.fileName, str(blob.offset), str(shape))
            if mark in self._constants:
                return self._constants[mark], mark
        return _as_tensor(self.package.value(message)), mark

    def _decompress(self, one: Function, message: Any) -> Any:
        arguments: dict[str, Any] = {}
        for key, value in message.attributes.items():
            if key != "name":
                arguments[key] = self.package.value(value)
        for key, argument in message.inputs.items():
            bound = argument.arguments[0]
            if bound.WhichOneof("binding") == "value":
                arguments[key] = self.package.value(bound.value)
            elif bound.name in one.constexpr:
                maker, index = one.constexpr[bound.name]
                found = self._decompress(one, maker)
                arguments[key] = found[index] if isinstance(found, tuple) else found
            elif bound.name in one.messages:
                arguments[key] = self.package.value(one.messages[bound.name])
            else:
                text = f"compressed weight '{message.outputs[0].name}' reads '{bound.name}', which nothing makes"
                raise BackendError(text, where=str(self.package.path), code="damaged")
        if message.type not in CONSTEXPR:
            text = f"operation '{message.type}' is not known to the evaluator{did_you_mean(message.type, CONSTEXPR)}"
            raise BackendError(text, where=str(self.package.path), code="unknown_op")
        try:
            return CONSTEXPR[message.type](**arguments)
        except (ValueError, IndexError, KeyError, TypeError) as error:
            text = f"compressed weight '{message.outputs[0].name}' cannot be decompressed: {error}"
            raise BackendError(text, where=str(self.package.path), code="damaged") from error


def load(path: str | Path, *, precision: Precision = "fp16", cache_bytes: int = CACHE_BYTES) -> Program:
    """The program of an `.mlpackage`. `precision` is said in the package's docstring; `cache_bytes` bounds the
    weights that are kept as fp32 between runs (the rest is read again each time).

    Raises BackendError: `missing`, `damaged`, `kind`; MissingLibrary without coremltools.
    """
    if precision not in ("fp16", "fp32"):
        raise BackendError(unknown("precision", precision, ("fp16", "fp32")), code="precision")
    return Program(open_package(path), precision, cache_bytes)


def _as_tensor(value: Any) -> Any:
    """Floats of any width as fp32, other numbers as they are, strings untouched."""
    if isinstance(value, str | list):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, np.float32))
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))
