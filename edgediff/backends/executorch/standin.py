"""Programs whose delegate the runtime here has not, computed by what this machine has: Core ML's pieces by our
evaluator (`edgediff.mil`), those of Ethos-U by Arm's reference model of TOSA, which is the form that Vela compiles.

What is read is the `.pte` itself: its instructions, its values, its weights; operators outside a delegate are
PyTorch's. So a program is checked as it was written. A chip's order of adding up, its speed, and for Ethos-U what Vela
makes of TOSA, are not in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from edgediff.backends._output import ERR, OUT, hear_output
from edgediff.errors import BackendError, unknown
from edgediff.plugins import import_or_explain

SHARED = b"CMJR"  # before a reference to a package that several methods share
TYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    11: torch.bool,
}


def tosa_file(folder: Path, compiled: bytes) -> Path:
    """Where the TOSA program lies that Vela made these bytes from."""
    return folder / f"{hashlib.sha256(compiled).hexdigest()}.tosa"


class Piece(Protocol):
    """A piece of a delegate: `inputs` tensors, then places for its outputs, which it does not write itself."""

    inputs: int

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]: ...


class StandInProgram:
    """A `.pte`, read: the part of ExecuTorch's `Program` that a runner needs.

    `tosa` is the folder of what Vela was given. Raises BackendError for a file that is no program.
    """

    def __init__(self, path: Path, tosa: Path) -> None:
        from executorch.exir._serialize._program import deserialize_pte_binary

        self._path, self._tosa = path, tosa
        try:
            self._file = deserialize_pte_binary(path.read_bytes())
        except Exception as error:  # the reader raises many kinds
            message = f"is no program that ExecuTorch can read: {error}; build the bundle again"
            raise BackendError(message, where=str(path), code="load") from error
        self._plans = {plan.name: plan for plan in self._file.program.execution_plan}

    @property
    def method_names(self) -> set[str]:
        return set(self._plans)

    def metadata(self, name: str) -> Signature:
        plan = self._plans[name]
        return Signature(*(tuple(TensorInfo(plan.values[i].val) for i in side) for side in (plan.inputs, plan.outputs)))

    def load_method(self, name: str) -> StandInMethod:
        """Raises BackendError for a delegate without stand-in, or a piece that is not there."""
        plan = self._plans[name]
        pieces = [self._piece(one) for one in plan.delegates]
        buffers = [buffer.storage for buffer in self._file.program.constant_buffer]
        return StandInMethod(plan, pieces, buffers, self._path)

    def _piece(self, delegate: Any) -> Piece:
        payload = bytes(self._file.program.backend_delegate_data[delegate.processed.index].data)
        makers = {"CoreMLBackend": self._core_ml, "EthosUBackend": self._ethos_u}
        if delegate.id not in makers:
            message = f"{unknown('delegate', delegate.id, makers)}: nothing here stands in for it"
            raise BackendError(message, where=str(self._path), code="delegate")
        return makers[delegate.id](payload)

    def _core_ml(self, payload: bytes) -> Piece:
        """A package, or the function of one that several methods share."""
        function = None
        if payload.startswith(SHARED):
            reference = json.loads(payload[len(SHARED) :].decode())
            function = str(reference["functionName"])
            named = self._file.named_data
            assert named is not None
            payload = bytes(named.buffers[named.pte_data[reference["key"]].buffer_index])
        return _CoreML(payload, function)

    def _ethos_u(self, payload: bytes) -> Piece:
        """Raises BackendError without the TOSA program that Vela was given."""
        import_or_explain("tosa_reference_model", needed_by="ethos-u")
        file = tosa_file(self._tosa, payload)
        if not file.is_file():
            message = (
                f"has a piece for Ethos-U whose TOSA program '{file.parent.name}/{file.name}' is not in the bundle: "
                "it runs on the device alone; build the bundle again to check it here"
            )
            raise BackendError(message, where=str(self._path), code="delegate")
        return _Tosa(file)


class _CoreML:
    """One function of a Core ML package that lies in a program."""

    def __init__(self, payload: bytes, function: str | None) -> None:
        from executorch.backends.apple.coreml import executorchcoreml

        from edgediff import mil

        self._folder = tempfile.TemporaryDirectory(prefix="edgediff-")  # weights are read when they are used
        executorchcoreml.unflatten_directory_contents(payload, self._folder.name)
        facts = json.loads(next(Path(self._folder.name).rglob("metadata.json")).read_text(encoding="utf-8"))
        ends = facts["methods"][function] if function else facts
        self._inputs, self._outputs, self._function = ends["inputNames"], ends["outputNames"], function
        self._program = mil.load(next(Path(self._folder.name).rglob("*.mlpackage")))
        self.inputs = len(self._inputs)

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        kinds = self._program.inputs(self._function)
        given = {
            name: tensor.numpy().astype(kinds[name].dtype, copy=False)
            for name, tensor in zip(self._inputs, tensors, strict=False)
        }
        found = self._program.run(self._function, None, **given)
        return [torch.from_numpy(found[name]) for name in self._outputs]


class _Tosa:
    """A TOSA program."""

    def __init__(self, file: Path) -> None:
        from tosa.TosaGraph import TosaGraph

        self._graph, self._file = file.read_bytes(), file
        self.inputs = int(TosaGraph.GetRootAs(self._graph, 0).Regions(0).Blocks(0).InputsLength())

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        import tosa_reference_model

        arrays = [tensor.numpy() for tensor in tensors[: self.inputs]]
        with hear_output(OUT, ERR):  # it remarks upon every program that its version can read
            found, status = tosa_reference_model.run(
                self._graph, arrays, verbosity="NONE", initialize_variable_tensor_from_numpy=True
            )
        if status != tosa_reference_model.GraphStatus.TOSA_VALID:
            message = f"Arm's reference model of TOSA refuses it: {str(status).rpartition('.')[2]}"
            raise BackendError(message, where=self._file.name, code="run")
        return [torch.from_numpy(one) for one in found]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a program, by the names that the runtime's own metadata has."""

    spec: Any

    def dtype(self) -> int:
        return int(self.spec.scalar_type)

    def sizes(self) -> list[int]:
        return list(self.spec.sizes)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a method, by the names that the runtime's own metadata has."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def num_inputs(self) -> int:
        return len(self.inputs)

    def num_outputs(self) -> int:
        return len(self.outputs)

    def input_tensor_meta(self, index: int) -> TensorInfo:
        return self.inputs[index]

    def output_tensor_meta(self, index: int) -> TensorInfo:
        return self.outputs[index]


class StandInMethod:
    """One method, run instruction by instruction in memory laid out as the program plans it: a tensor that only names
    another one's bytes has no instruction of its own."""

    def __init__(self, plan: Any, pieces: list[Piece], buffers: list[bytes], path: Path) -> None:
        self._plan, self._pieces, self._path = plan, pieces, path
        self._steps = [step.instr_args for chain in plan.chains for step in chain.instructions]
        arenas = [torch.zeros(size, dtype=torch.uint8) for size in plan.non_const_buffer_sizes]
        constants = [torch.frombuffer(bytearray(one), dtype=torch.uint8) if one else None for one in buffers]
        self._values = [self._value(one.val, arenas, constants) for one in plan.values]

    def execute(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        for index, tensor in zip(self._plan.inputs, tensors, strict=True):
            self._values[index].copy_(tensor)
        with torch.no_grad():
            for step in self._steps:
                self._run(step)
        return [self._values[index].clone() for index in self._plan.outputs]

    def _value(self, one: Any, arenas: list[Any], constants: list[Any]) -> Any:
        """A tensor in its place, or a plain value. Lists of tensors and of whole numbers hold indices of values."""
        kind = type(one).__name__
        if kind == "Tensor":
            type_ = TYPES[one.scalar_type]
            if one.allocation_info is None:
                return constants[one.data_buffer_idx].view(type_).reshape(one.sizes)
            start = one.allocation_info.memory_offset
            count = math.prod(one.sizes) * type_.itemsize
            return arenas[one.allocation_info.memory_id][start : start + count].view(type_).reshape(one.sizes)
        if kind in ("Int", "Double", "Bool", "String"):
            (plain,) = vars(one).values()
            return float(plain) if kind == "Double" else plain
        return None if kind == "Null" else one

    def _run(self, step: Any) -> None:
        kind = type(step).__name__
        if kind == "DelegateCall":
            piece, values = self._pieces[step.delegate_index], [self._values[index] for index in step.args]
            for made, place in zip(piece(values), values[piece.inputs :], strict=True):
                place.copy_(made.reshape(place.shape))
        elif kind == "KernelCall":
            self._kernel(step)
        elif kind == "MoveCall":
            self._values[step.move_to] = self._values[step.move_from]
        elif kind != "FreeCall":
            message = f"has an instruction '{kind}', which is not for programs without branches"
            raise BackendError(message, where=str(self._path), code="run")

    def _kernel(self, step: Any) -> None:
        """An operator that writes into an argument, which comes once more after all arguments."""
        named = self._plan.operators[step.op_index]
        packet = getattr(getattr(torch.ops, named.name.partition("::")[0]), named.name.partition("::")[2], None)
        writes, makes = (getattr(packet, word, None) for word in (named.overload or "default", "default"))
        operator = writes or makes
        if operator is None:
            message = f"runs operator '{named.name}.{named.overload}', of which PyTorch knows nothing"
            raise BackendError(message, where=str(self._path), code="run")
        arguments = [one for one in operator._schema.arguments if not one.is_out]
        values = [self._argument(index) for index in step.args[: len(arguments)]]
        given = [value for one, value in zip(arguments, values, strict=True) if not one.kwarg_only]
        keywords = {one.name: value for one, value in zip(arguments, values, strict=True) if one.kwarg_only}
        place = self._values[step.args[-1]]
        # In memory of its own first: PyTorch may not write where it still reads.
        outs = {one.name: torch.empty_like(place) for one in operator._schema.arguments if one.is_out}
        place.copy_(operator(*given, **keywords, **outs))

    def _argument(self, index: int) -> Any:
        value = self._values[index]
        if hasattr(value, "items"):
            whole = type(value).__name__ in ("IntList", "TensorList", "OptionalTensorList")
            return [None if one < 0 else self._values[one] for one in value.items] if whole else list(value.items)
        return value
