"""Cached features as Core ML state: the tensors that cross between calls stay inside, in fp16, as iOS 18 can.

coremltools makes state of buffers that a traced module mutates; a graph that only reads one cannot be exported that
way. So a graph is converted with its cached features as inputs and outputs, as ever, and those ends are rewritten in
the program: an input becomes a `read_state` at its beginning, an output a `write_state` at its end.

Every function of a package declares the same states at the same sizes: whoever runs them makes one `MLState` per
picture from any function and hands it to all (one per prompt where the prompts run one after the other). States have
the largest batch of the component; a function for the prompt alone reads the prompt's half and writes both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgediff.backends.coreml.convert import RELEASES
from edgediff.backends.coreml.messages import block_of, make_operation, rename_reads, set_immediate, set_type
from edgediff.errors import BackendError
from edgediff.mil.package import value_type

if TYPE_CHECKING:
    from edgediff.backends.coreml.settings import Settings
    from edgediff.documents.plan import Plan
    from edgediff.variants import Variant

PREFIX = "cache_"
DTYPE = "float16"  # the only one that Core ML keeps state in


def check_states(table: Settings, plan: Plan, precision: str) -> None:
    """Raises BackendError where the target wants states and cannot have them: an old release, fp32, a schedule that
    mixes several past values of a feature, a denoiser in chunks (no two packages share a state)."""
    if table.cache != "state":
        return
    forecasts = [forecast for one in plan.programs().values() for forecast in one.schedule.forecasts]
    mixed = [forecast for forecast in forecasts if forecast.what != "output"]
    if RELEASES[table.deployment] < 18:
        reason = f"state is a feature of iOS 18, and the target deploys to {table.deployment}"
        raise BackendError(f"{reason}; {_OTHERWISE}, or deployment 'iOS18'", where="[coreml]", code="deployment")
    if precision == "fp32":
        reason = "Core ML keeps state in fp16 only, and the plan's precision is fp32"
    elif mixed:
        reason = f"call {mixed[0].call} mixes several past values of '{mixed[0].what}', and a state has the newest only"
    elif table.chunks > 1:
        reason = "chunks 2 makes the denoiser two packages, which share no state"
    else:
        return
    raise BackendError(f"{reason}; {_OTHERWISE}", where="[coreml]", code="state")


_OTHERWISE = "choose cache 'io'"


def name_states(variant: Variant) -> dict[str, str]:
    """Cached input or output of a graph -> its state."""
    ends = [*variant.carries_in.items(), *variant.carries_out.items()]
    return {tensor: f"{PREFIX}{carry}" for carry, tensor in ends}


def size_states(members: Sequence[Variant], batch: int) -> dict[str, tuple[int, ...]]:
    """State -> its shape, for the graphs of one package."""
    sizes: dict[str, tuple[int, ...]] = {}
    for variant in members:
        specs = {spec.name: spec for spec in (*variant.inputs, *variant.outputs)}
        sizes.update({state: specs[tensor].sized(batch) for tensor, state in name_states(variant).items()})
    return dict(sorted(sizes.items()))


def hold_in_states(function: Any, ends: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Rewrites a `Function` message: the inputs and outputs in `ends` become reads and writes of states. `sizes` are
    all states of the package."""
    entries = {one.name: value_type(one.type) for one in function.inputs}
    reads = {tensor: state for tensor, state in ends.items() if tensor in entries}
    writes = {tensor: state for tensor, state in ends.items() if tensor not in entries}
    kept = [one for one in function.inputs if one.name not in reads]
    del function.inputs[:]
    function.inputs.extend(kept)
    for state, shape in sizes.items():
        entry = function.inputs.add()
        entry.name = state
        set_type(entry.type.stateType.wrappedType, DTYPE, shape)
    block = block_of(function)
    outputs = [name for name in block.outputs if name not in writes]
    del block.outputs[:]
    block.outputs.extend(outputs)
    for tensor, state in reads.items():
        _read(block, tensor, entries[tensor].shape, entries[tensor].dtype, state, sizes[state])
    for tensor, state in writes.items():
        _write(block, tensor, state, sizes[state])


def _read(block: Any, tensor: str, shape: Any, dtype: str, state: str, whole: tuple[int, ...]) -> None:
    """What read the tensor reads the state. A cast of it to fp16 goes: that is what the state is."""
    current = f"{tensor}_held"
    made = [make_operation("read_state", {"input": state}, [(current, DTYPE, whole)])]
    if shape != whole:
        begin = [whole[0] - shape[0], *[0] * (len(whole) - 1)]
        ends = {"begin": (begin, "int32"), "end": (list(whole), "int32")}
        made.append(make_operation("slice_by_index", {"x": current, **ends}, [(f"{current}_half", DTYPE, shape)]))
        current = f"{current}_half"
    rest = []
    for operation in block.operations:
        if _casts(operation, tensor) and value_type(operation.outputs[0].type).dtype == DTYPE:
            rename_reads(block, operation.outputs[0].name, current)
        else:
            rest.append(operation)
    if dtype == DTYPE:
        rename_reads(block, tensor, current)
    elif any(_reads(operation, tensor) for operation in rest):
        made.append(make_operation("cast", {"x": current, "dtype": ("fp32", "string")}, [(tensor, dtype, shape)]))
    del block.operations[:]
    block.operations.extend([*made, *rest])


def _write(block: Any, tensor: str, state: str, whole: tuple[int, ...]) -> None:
    """Writes the tensor to the state, both halves of it where there is one of them only."""
    types = {output.name: value_type(output.type) for one in block.operations for output in one.outputs}
    source, shape = tensor, tuple(size or 0 for size in types[tensor].shape)
    maker = next(one for one in block.operations if any(output.name == tensor for output in one.outputs))
    inner = maker.inputs["x"].arguments[0].name if maker.type == "cast" else ""
    if types[tensor].dtype != DTYPE and inner in types and types[inner].dtype == DTYPE:
        source = inner
        if not any(_reads(one, tensor) for one in block.operations) and tensor not in block.outputs:
            block.operations.remove(maker)
    elif types[tensor].dtype != DTYPE:
        source = f"{tensor}_held"
        cast = make_operation("cast", {"x": tensor, "dtype": ("fp16", "string")}, [(source, DTYPE, shape)])
        block.operations.append(cast)
    if shape != whole:
        arguments = {"values": [source] * (whole[0] // shape[0]), "axis": (0, "int32"), "interleave": (False, "bool")}
        source = f"{tensor}_both"
        block.operations.append(make_operation("concat", arguments, [(source, DTYPE, whole)]))
    write = make_operation("write_state", {"input": state, "data": source}, [])
    set_immediate(write.attributes["name"], f"{state}_write", "string")
    block.operations.append(write)


def _casts(operation: Any, tensor: str) -> bool:
    return bool(operation.type == "cast" and operation.inputs["x"].arguments[0].name == tensor)


def _reads(operation: Any, tensor: str) -> bool:
    return any(bound.name == tensor for argument in operation.inputs.values() for bound in argument.arguments)
