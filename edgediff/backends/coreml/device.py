"""Core ML itself, on a Mac: running, load and compile times, and where each operation would run.

Written against the documented Python interface of coremltools 9 (`MLModel`, `MLModel.get_compiled_model_path`,
`models.compute_plan.MLComputePlan`). Nothing here can be reached on another system.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgediff.errors import BackendError
from edgediff.runtime.engine import Array

if TYPE_CHECKING:
    from edgediff.mil import Program

UNITS_NOTE = "io.github.edgediff.compute_units"
DEFAULT_UNITS = "ALL"


def require_mac(what: str) -> None:
    """Raises BackendError anywhere else."""
    if sys.platform != "darwin":
        message = f"{what} needs Core ML, which only a Mac has; here `edgediff verify` evaluates its programs"
        raise BackendError(message, code="platform")


class DeviceModel:
    """One function, loaded by Core ML for the compute units that the package names."""

    def __init__(self, path: Path, function: str, program: Program) -> None:
        require_mac("running a package")
        import coremltools as ct

        units = compute_units(program)
        several = len(program.functions) > 1
        start = time.perf_counter()
        try:
            self._model = ct.models.MLModel(
                str(path),
                compute_units=getattr(ct.ComputeUnit, units),
                **({"function_name": function} if several else {}),
            )
        except Exception as error:  # the framework raises many kinds
            raise BackendError(f"Core ML cannot load it: {error}", where=str(path), code="load") from error
        self.load_seconds = time.perf_counter() - start
        self._types = {name: kind.dtype for name, kind in program.inputs(function).items()}
        self._outputs = {name: kind.dtype for name, kind in program.outputs(function).items()}
        self._path = path

    def predict(self, inputs: dict[str, Array], state: Any = None) -> dict[str, Array]:
        """Outputs by name; `state` is an `MLState`. Raises BackendError for inputs that do not fit."""
        for name in self._types:
            if name not in inputs:
                raise BackendError(f"input '{name}' is missing; given were {sorted(inputs)}", code="run")
        given = {name: np.asarray(inputs[name], kind) for name, kind in self._types.items()}
        try:
            found = self._model.predict(given) if state is None else self._model.predict(given, state)
        except Exception as error:  # the framework raises many kinds
            raise BackendError(f"Core ML failed: {error}", where=str(self._path), code="run") from error
        return {name: np.asarray(found[name], kind) for name, kind in self._outputs.items()}

    def make_state(self) -> Any:
        """An `MLState`, zeros; the functions of one package take the same one."""
        return self._model.make_state()

    def read_state(self, state: Any, name: str) -> Array:
        return np.asarray(state.read_state(name))

    def write_state(self, state: Any, name: str, value: Array) -> None:
        state.write_state(name, value)


def compute_units(program: Program) -> str:
    """The compute units that the package says it was made for (`CPU_AND_NE` and the like)."""
    notes = program.package.spec.description.metadata.userDefined
    return str(notes.get(UNITS_NOTE, DEFAULT_UNITS))


def time_compilation(path: Path) -> float:
    """Seconds that Core ML takes to compile a package, which the app pays at its first launch."""
    require_mac("compiling a package")
    import shutil

    import coremltools as ct

    start = time.perf_counter()
    compiled = ct.models.utils.compile_model(str(path))
    seconds = time.perf_counter() - start
    shutil.rmtree(compiled, ignore_errors=True)
    return seconds


def plan_operations(path: Path, function: str) -> list[dict[str, Any]]:
    """Per operation: `name`, `kind`, the `preferred` and `supported` units, and `cost`, its share of the estimated
    time (an estimate of Core ML's, not a measurement)."""
    require_mac("a compute plan")
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    compiled = ct.models.utils.compile_model(str(path))
    plan = MLComputePlan.load_from_path(path=str(compiled), compute_units=ct.ComputeUnit.ALL)
    block = plan.model_structure.program.functions[function].block
    rows: list[dict[str, Any]] = []
    for operation in block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        rows.append(
            {
                "name": operation.outputs[0].name if operation.outputs else "",
                "kind": operation.operator_name,
                "preferred": type(usage.preferred_compute_device).__name__ if usage else None,
                "supported": [type(one).__name__ for one in usage.supported_compute_devices] if usage else [],
                "cost": cost.weight if cost else None,
            }
        )
    return rows
