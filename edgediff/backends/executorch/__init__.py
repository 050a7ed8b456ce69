"""ExecuTorch: one `.pte` program per component, a method per graph, each handed whole to the target's delegate.

    executorch/unet.pte             methods `full`, `shallow`, ...; each weight once
    executorch/unet.ptd             with format `ptd`: the delegate's weights, beside a program of a few hundred KB
    executorch/text_encoder.pte     method `text_encoder`
    executorch/vae_decoder.pte      method `vae_decoder`
    executorch/tosa/<sha256>.tosa   for Ethos-U: what Vela made the piece with that hash from, to check it by here

Sizes are fixed. A graph that the program runs with and without guidance has a second method `<graph>_batch1`.
Inputs and outputs are those of the manifest, in its order. The graphs are rewritten (`rewrite`) so that XNNPACK
takes all of each; what stays outside is counted in the manifest. What each precision computes is said in `served`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from edgediff.backends import Artifacts
from edgediff.backends._output import ERR, Said, hear_output
from edgediff.backends.executorch.served import precisions as precisions
from edgediff.backends.executorch.settings import Settings
from edgediff.errors import BackendError, first_line, unknown
from edgediff.plugins import import_or_explain
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.manifest import Artifact, Graph

if TYPE_CHECKING:
    from edgediff.backends.executorch.delegates import Delegate
    from edgediff.backends.executorch.ethos import Watch
    from edgediff.backends.executorch.lowering import Lowered, Method
    from edgediff.documents.plan import Plan
    from edgediff.documents.target import Target
    from edgediff.variants import Variant, Variants

NAME = "executorch"
TOSA = f"{NAME}/tosa"
TOOLS = ("executorch", "torchao")
CODES_WEIGHTS = True  # `plan.weights` is heeded: `w4/32` and the like
STAND_INS = {
    "CoreMLBackend": "edgediff's evaluator of Core ML programs",
    "EthosUBackend": "Arm's reference model of TOSA",
}
TRACED_CALLS, TRACE_BYTES = 3, 1 << 20
DTYPES = {3: "int32", 4: "int64", 5: "float16", 6: "float32"}  # ExecuTorch's numbers of types


def lower(variants: Variants, target: Target, out: Path) -> Artifacts:
    """Writes every component below `out/executorch`.

    Raises BackendError: an operator without a form (`export`) or outside a delegate that must take all (`delegate`),
    integers without calibration (`calibration`), more memory than the target lets an app hold (`too_large`);
    MissingLibrary.
    """
    import_or_explain("executorch.exir", needed_by=NAME)
    from edgediff.backends.executorch.delegates import find_delegate

    precision = variants.plan.backends[NAME].precision
    delegate = find_delegate(target.settings(NAME, Settings), precision)
    _check_weights(variants.plan)
    components: dict[str, list[Variant]] = {}
    for variant in variants.graphs.values():
        components.setdefault(variant.component, []).append(variant)
    graphs: dict[str, Artifact] = {}
    profile = None
    with delegate.watch() as seen:
        for component, members in components.items():
            graphs.update(_lower_component(component, members, variants, target, delegate, out, seen))
        if seen is not None:
            seen.write_tosa(out / TOSA)
            pieces = {name: seen.pieces.get(one.function or name, ()) for name, one in graphs.items()}
            profile = seen.table(pieces, variants.plan, target)
    _check_memory(graphs, target, out)
    tools = {tool: importlib.metadata.version(tool) for tool in (*TOOLS, *delegate.tools)}
    return Artifacts(NAME, graphs, tools, profile)


def _lower_component(
    component: str,
    members: list[Variant],
    variants: Variants,
    target: Target,
    delegate: Delegate,
    out: Path,
    seen: Watch | None,
) -> dict[str, Artifact]:
    from edgediff.backends._capture import function_name, graph_batches
    from edgediff.backends.executorch.lowering import Method, peak_bytes, write_program

    plan = variants.plan
    batches, wanted = graph_batches(plan), plan.backends[NAME]
    denoiser = component == next(iter(variants.denoisers().values())).component
    precision = wanted.precision if denoiser or not delegate.halves else "fp32"
    methods: dict[str, list[Method]] = {}
    for variant in members:
        sizes = batches.get(variant.name, (1,))
        methods[variant.name] = [
            Method(
                function_name(variant.name, batch, sizes),
                _program(variant, batch, precision, variants, target, delegate),
            )
            for batch in sizes
        ]
    file, apart = f"{NAME}/{component}.pte", wanted.format == "ptd" and delegate.name == "xnnpack"
    peaks = {one.name: peak_bytes(one.program.graph) for several in methods.values() for one in several}
    found = write_program(
        [one for several in methods.values() for one in several], delegate, out / file, weights_apart=apart, seen=seen
    )
    data = _weights_file(out / NAME, component) if apart else ()
    return {
        graph: _artifact(file, data, precision, [(one.name, found[one.name], peaks[one.name]) for one in several])
        for graph, several in methods.items()
    }


def _artifact(
    file: str, data: tuple[str, ...], precision: Any, methods: Sequence[tuple[str, Lowered, int]]
) -> Artifact:
    """Of the graph's first method; the others are the same but for the batch."""
    name, lowered, _ = methods[0]
    return Artifact(
        file=file,
        function=name,
        precision=precision,
        data=data,
        delegates=dict(sorted(lowered.delegates.items())),
        outside=dict(sorted(lowered.outside.items())),
        memory_bytes=max(peak + one.planned_bytes for _, one, peak in methods),
    )


def _weights_file(folder: Path, component: str) -> tuple[str, ...]:
    """The weights that were written apart, under the component's name."""
    made = folder / "weights.ptd"
    if not made.exists():
        return ()
    made.rename(folder / f"{component}.ptd")
    return (f"{NAME}/{component}.ptd",)


def _program(
    variant: Variant, batch: int, precision: str, variants: Variants, target: Target, delegate: Delegate
) -> Any:
    """The graph as an exported program, rewritten and quantized."""
    import torch

    from edgediff.backends._capture import capture_program
    from edgediff.backends.executorch.lowering import quiet_executorch
    from edgediff.backends.executorch.rewrite import rewrite_program

    if precision == "w4a8":
        from edgediff.backends.executorch.quantize import group_linears

        group = _group_size(variants.plan)
        variant = replace(variant, module=group_linears(variant.module, variant.example, group))
    program = rewrite_program(
        capture_program(variant, batch),
        delegate.forms,
        query_chunk=target.settings(NAME, Settings).query_chunk,
        dtype=torch.float16 if precision == "fp16" and delegate.halves else torch.float32,
    )
    if delegate.quantize is not None:
        calls = calibration_calls(variants, variant, batch)
        with quiet_executorch():
            program = delegate.quantize(program, calls, variant.name)
    elif precision == "w8a8":
        from edgediff.backends.executorch.quantize import quantize_program

        program = quantize_program(program, calibration_calls(variants, variant, batch), name=variant.name)
    return program


def _check_weights(plan: Plan) -> None:
    """Raises BackendError unless the plan codes weights exactly where its precision wants that."""
    precision, weights = plan.backends[NAME].precision, plan.weights
    if (precision == "w4a8") != (weights is not None):
        asked = f"weights in '{weights.format}' at precision '{precision}'" if weights else "no coded weights"
        message = f"{asked}: ExecuTorch's coded weights are those of"
        raise BackendError(f"{message} {_PAIR}; write both, or neither", where="[weights]", code="precision")
    if weights is not None:
        _group_size(plan)


_PAIR = 'precision = "w4a8" with [weights] format = "w4/32" (or w4/64 and so on), one format for all linear layers'


def _group_size(plan: Plan) -> int:
    """Weights per scale of the plan's format. Raises BackendError for formats that XNNPACK has not."""
    from edgediff.documents.weight_format import parse_format

    assert plan.weights is not None
    word, chosen = plan.weights.format, parse_format(plan.weights.format)
    fits = (chosen.kind, chosen.bits, chosen.sparse) == ("w", 4, 0) and chosen.group > 0 and chosen.group % 32 == 0
    if not fits or plan.weights.layers:
        message = f"weights in '{word}' cannot be had: ExecuTorch takes {_PAIR}"
        raise BackendError(message, where="[weights]", code="precision")
    return chosen.group


def calibration_calls(variants: Variants, variant: Variant, batch: int) -> list[tuple[Any, ...]]:
    """Inputs of a graph along the calibration trajectories, as tensors at one batch size. A doubled batch is taken
    apart or repeated: scales do not depend on it."""
    import torch

    found = []
    for call in variants.calibration() if variants.calibration else ():
        if call.graph != variant.name:
            continue
        tensors = [torch.from_numpy(np.ascontiguousarray(call.inputs[spec.name])) for spec in variant.inputs]
        have = next((t.shape[0] for t, s in zip(tensors, variant.inputs, strict=True) if "batch" in s.shape), batch)
        for start in range(0, have, batch):
            found.append(
                tuple(
                    _resized(tensor, start, batch) if "batch" in spec.shape else tensor
                    for tensor, spec in zip(tensors, variant.inputs, strict=True)
                )
            )
    return found


def _resized(tensor: Any, start: int, batch: int) -> Any:
    part = tensor[start : start + batch]
    return part if part.shape[0] == batch else part.repeat(batch, *[1] * (part.dim() - 1))


def _check_memory(graphs: dict[str, Artifact], target: Target, out: Path) -> None:
    """Raises BackendError when weights and the hungriest graph do not fit what the target lets an app hold."""
    if target.memory_ceiling_gb is None:
        return
    files = {file for one in graphs.values() for file in (one.file, *one.data)}
    weights = sum((out / file).stat().st_size for file in files)
    name, most = max(((name, one.memory_bytes or 0) for name, one in graphs.items()), key=lambda pair: pair[1])
    if weights + most > target.memory_ceiling_gb * 1e9:
        message = (
            f"the programs have {weights / 1e9:.2f} GB and graph '{name}' needs {most / 1e9:.2f} GB beside them; an "
            f"app on {target.name} may hold {target.memory_ceiling_gb:g} GB. Choose fewer bits, a smaller "
            "[executorch] query_chunk, or cut more"
        )
        raise BackendError(message, where=NAME, code="too_large")


# Running


def open_runner(folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None) -> Runner:
    """Loads one method. The methods of a program share it.

    `threads` is for the whole process, as the runtime has one pool (None: its own number). Raises BackendError for a
    program that cannot be read, lacks the method or needs a delegate that the runtime here has not; MissingLibrary.
    """
    return _open(folder, graph, artifact, batch, threads)[0]


def write_trace(
    folder: Path,
    graph: Graph,
    artifact: Artifact,
    inputs: dict[str, Array],
    *,
    batch: int,
    threads: int | None,
    out: Path,
) -> Path:
    """The runtime's own trace (ETDump) of a few calls with these inputs, with the times of every operator, inside
    XNNPACK too: a file in the folder `out`. Raises what `open_runner` and `run` raise."""
    runner, program = _open(folder, graph, artifact, batch, threads, traced=True)
    for _ in range(TRACED_CALLS):
        runner.run(inputs)
    file = out / f"{graph.component}.etdp"
    program.write_etdump_result_to_file(str(file), str(file.with_suffix(".bin")))
    return file


def _open(
    folder: Path, graph: Graph, artifact: Artifact, batch: int, threads: int | None, *, traced: bool = False
) -> tuple[ExecuTorchRunner, Any]:
    """The runner of a method and its program; a traced program is not shared."""
    path = folder / artifact.file
    with runtime_log() as log:
        program = _program_for(folder, artifact, log, traced)
        if threads is not None:
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

            _unsafe_reset_threadpool(threads)
        name = _method_name(program, artifact.function or graph.component, batch, path)
        _check_ends(program.metadata(name), graph, batch, path)
        try:
            method = program.load_method(name)
        except RuntimeError as error:
            message = f"ExecuTorch cannot load '{name}': {_complaint(log, error)}"
            raise BackendError(message, where=str(path), code="load") from error
    return ExecuTorchRunner(method, program, graph, batch, path), program


class ExecuTorchRunner:
    """One method of a program."""

    def __init__(self, method: Any, program: Any, graph: Graph, batch: int, path: Path) -> None:
        self._method, self._program, self._path = method, program, path
        self._inputs = [(spec.name, spec.dtype, spec.sized(batch)) for spec in graph.inputs]
        self._outputs = [spec.name for spec in graph.outputs]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises BackendError for inputs that are missing or of another type or size: the runtime
        itself would read them as they are."""
        import torch

        tensors = []
        for name, dtype, shape in self._inputs:
            if name not in inputs:
                raise BackendError(f"input '{name}' is missing; given were {sorted(inputs)}", code="run")
            value = inputs[name]
            if (str(value.dtype), value.shape) != (dtype, shape):
                message = f"input '{name}' is {value.dtype} {list(value.shape)}, the method takes {dtype} {list(shape)}"
                raise BackendError(message, where=str(self._path), code="run")
            tensors.append(torch.from_numpy(np.ascontiguousarray(value)))
        try:
            values = self._method.execute(tensors)
        except RuntimeError as error:
            raise BackendError(f"ExecuTorch failed: {first_line(error)}", where=str(self._path), code="run") from error
        return {name: value.numpy() for name, value in zip(self._outputs, values, strict=True)}


_OPEN: WeakValueDictionary[tuple[str, int], Any] = WeakValueDictionary()  # alive while a runner is


def _program_for(folder: Path, artifact: Artifact, log: Said, traced: bool) -> Any:
    """The program of an artifact, which the runners of its methods share; a traced one is not shared."""
    path = folder / artifact.file
    data = folder / artifact.data[0] if artifact.data else None
    missing = lacking(artifact)
    if missing and (traced or not set(artifact.delegates) <= STAND_INS.keys()):
        message = (
            f"needs {', '.join(missing)}, which ExecuTorch's runtime for Python has not: run it on the device, or "
            "build for a target whose delegate is 'xnnpack'"
        )
        raise BackendError(message, where=artifact.file, code="delegate")
    if traced:
        return _load_program(path, data, log, traced=True)
    key = (str(path.resolve()), path.stat().st_mtime_ns if path.exists() else 0)
    program = _OPEN.get(key)
    if program is None:
        if missing:
            from edgediff.backends.executorch.standin import StandInProgram

            _check_header(path)
            program = StandInProgram(path, folder / TOSA)
        else:
            program = _load_program(path, data, log)
        _OPEN[key] = program
    return program


def stand_in(artifact: Artifact) -> str:
    """What computes an artifact on this machine where ExecuTorch's runtime cannot; empty where it can."""
    return " and ".join(STAND_INS[one] for one in lacking(artifact) if one in STAND_INS)


def lacking(artifact: Artifact) -> list[str]:
    """Delegates of an artifact that the runtime here has not. Raises MissingLibrary."""
    with runtime_log():
        import_or_explain("executorch.runtime", needed_by=NAME)
        from executorch.runtime import Runtime

        return [one for one in artifact.delegates if not Runtime.get().backend_registry.is_available(one)]


def _load_program(path: Path, data: Path | None, log: Said, *, traced: bool = False) -> Any:
    """A program, checked by its header and by the runtime as it is read."""
    from executorch.runtime import Runtime, Verification

    _check_header(path)
    try:
        return Runtime.get().load_program(
            path,
            verification=Verification.InternalConsistency,
            data_path=data,
            enable_etdump=traced,
            debug_buffer_size=TRACE_BYTES if traced else 0,
        )
    except (RuntimeError, OSError) as error:
        message = f"is no program that ExecuTorch can read: {_complaint(log, error)}; build the bundle again"
        raise BackendError(message, where=str(path), code="load") from error


def _check_header(path: Path) -> None:
    """Raises BackendError unless the file is as long as its own header says: the runtime ends the process over a
    program that was cut short. The header: `ET..` at 4, `eh00` at 8, then its own length (32
    bits), size of the program, start and size of the weights (64 bits each)."""
    try:
        with path.open("rb") as file:
            head = file.read(40)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise BackendError(f"cannot be read: {error.strerror}", where=str(path), code="load") from error
    whole = len(head) == 40 and head[4:6] == b"ET" and head[8:12] == b"eh00"
    program, start, weights = struct.unpack("<3Q", head[16:40]) if whole else (0, 0, 0)
    if not whole or size < max(program, start + weights):
        raise BackendError(
            "is no program that ExecuTorch can read: damaged or cut short; build or copy the bundle again",
            where=str(path),
            code="load",
        )


def _method_name(program: Any, function: str, batch: int, path: Path) -> str:
    """The method of a graph at a batch size."""
    known = program.method_names
    if (named := f"{function}_batch{batch}") in known:
        return named
    if function not in known:
        message = f"{unknown('method', function, known)}; build the bundle again"
        raise BackendError(message, where=str(path), code="signature")
    return function


def _check_ends(method: Any, graph: Graph, batch: int, path: Path) -> None:
    """Raises BackendError unless the method's inputs and outputs have the manifest's types and sizes."""

    def word(info: Any) -> tuple[str, tuple[int, ...]]:
        return str(DTYPES.get(info.dtype(), info.dtype())), tuple(info.sizes())

    have = [word(method.input_tensor_meta(index)) for index in range(method.num_inputs())]
    have += [word(method.output_tensor_meta(index)) for index in range(method.num_outputs())]
    want = [(spec.dtype, spec.sized(batch)) for spec in (*graph.inputs, *graph.outputs)]
    if have != want:
        message = f"a method takes and makes {have} where the manifest says {want}; build the bundle again"
        raise BackendError(message, where=str(path), code="signature")


@contextlib.contextmanager
def runtime_log() -> Iterator[Said]:
    """Within it the runtime's own lines go into a log: it says what is wrong there, not in its exceptions, and says
    much else on its first load. So does Python's warning that its interface may change."""
    with warnings.catch_warnings(), hear_output(ERR) as said:
        warnings.simplefilter("ignore")
        yield said


def _complaint(said: Said, error: Exception) -> str:
    """The runtime's last one; the exception's own words where there is none."""
    lines = [line for line in said.lines() if "cpuinfo" not in line]
    return lines[-1].rpartition("] ")[2].strip() if lines else first_line(error)
