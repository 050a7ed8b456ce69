"""ONNX Runtime: `.onnx` graphs over one weights file per component, or self-contained `.ort` files.

    onnxruntime/unet/full.onnx  shallow.onnx  weights.bin      each weight once, whatever number of graphs read it
    onnxruntime/text_encoder/model.onnx  weights.bin
    onnxruntime/vae_decoder/model.onnx   weights.bin

What the precisions mean is said in `fp16.to_fp16` and `w8a8.to_w8a8`. Format `ort` is for builds of
ONNX Runtime without the ONNX parser. It is a flatbuffer with the weights inside: nothing is shared between graphs,
none may pass 2 GB, and there is no fp16 (an `.ort` file is optimized for the machine that writes it, and desktop
builds, which have hardly any fp16 kernels, put fp32 weights in). What such a build must contain is listed in
`onnxruntime/required_operators_and_types.config`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgediff.backends import Artifacts, check_precision
from edgediff.documents.target import BackendTable
from edgediff.errors import BackendError, did_you_mean, first_line
from edgediff.plugins import import_or_explain
from edgediff.runtime.engine import Array, Runner
from edgediff.runtime.manifest import BATCH, Artifact, Graph, TensorSpec

if TYPE_CHECKING:
    from edgediff.documents.plan import BackendPlan
    from edgediff.documents.target import BackendTable, Target
    from edgediff.variants import Variant, Variants

NAME = "onnxruntime"
PROVIDER = "CPUExecutionProvider"
TOOLS = ("onnx", "onnxscript", "onnx-ir", "onnxruntime")
FORMATS = ("onnx", "ort")
ORT_LIMIT = 2**31 - 2**20  # bytes of weights; a flatbuffer's offsets are signed 32-bit, and the graph needs room
# A program runs several sessions in turn. Threads that wait by spinning take the cores from the next one: two graphs
# that alternate on two cores took 1.7 times as long.
SPINNING = "session.intra_op.allow_spinning"
QUIET = 3  # log errors only
TRACED_CALLS = 4  # the first pays what is done late, and is left out when the trace is read
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}


class Settings(BackendTable):
    """The table `[onnxruntime]` of a target."""

    format: Literal["onnx", "ort"] = "onnx"


def precisions(table: BackendTable) -> Mapping[str, str]:
    """What each precision that this backend serves computes."""
    return {
        "fp32": "all in fp32",
        "fp16": "all in fp16 but the sinusoid of the timestep",
        "w8a8": "matrix products of 8-bit integers, their inputs scaled as they come; convolutions and embeddings "
        "from 8-bit weights in fp32",
    }


def lower(variants: Variants, target: Target, out: Path) -> Artifacts:
    """Writes every graph below `out/onnxruntime`. Peak memory is the loaded model and one tensor.

    Raises BackendError: an operator that ONNX has not, weights beyond fp16's range, `.ort` beyond 2 GB;
    MissingLibrary.
    """
    for library in ("onnxscript", "onnxruntime"):
        import_or_explain(library, needed_by=NAME)
    plan = variants.plan.backends[NAME]
    check_precision(NAME, plan.precision, precisions(target.backend(NAME)))
    _check_format(plan)
    components: dict[str, list[Variant]] = {}
    for variant in variants.graphs.values():
        components.setdefault(variant.component, []).append(variant)
    graphs: dict[str, Artifact] = {}
    for component, members in components.items():
        graphs.update(_lower_component(members, plan, out, f"{NAME}/{component}"))
    if plan.format == "ort":
        graphs = _convert_to_ort(graphs, out)
    return Artifacts(NAME, graphs, {tool: importlib.metadata.version(tool) for tool in TOOLS})


def open_runner(folder: Path, graph: Graph, artifact: Artifact, *, batch: int, threads: int | None = None) -> Runner:
    """Loads one graph at one batch size, which the runtime then knows while it optimizes.

    `threads` None leaves the number to ONNX Runtime (one per core). Raises BackendError for a file that cannot
    be loaded or whose inputs and outputs are not those of the manifest; MissingLibrary.
    """
    path = folder / artifact.file
    return OnnxRunner(_open(path, graph, batch, threads), graph, path)


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
    """ONNX Runtime's own trace of a few calls with these inputs, operator by operator: a file in the folder `out`.
    Raises what `open_runner` raises."""
    path = folder / artifact.file
    session = _open(path, graph, batch, threads, trace=out / graph.component)
    runner = OnnxRunner(session, graph, path)
    for _ in range(TRACED_CALLS):
        runner.run(inputs)
    return Path(session.end_profiling())


def _open(path: Path, graph: Graph, batch: int, threads: int | None, trace: Path | None = None) -> Any:
    runtime: Any = import_or_explain("onnxruntime", needed_by=NAME)
    if PROVIDER not in (have := runtime.get_available_providers()):
        message = f"this build of ONNX Runtime lacks {PROVIDER} (it has {', '.join(have)}); install onnxruntime again"
        raise BackendError(message, code="provider")
    options = runtime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads or 0
    options.add_free_dimension_override_by_name(BATCH, batch)
    options.add_session_config_entry(SPINNING, "0")
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    try:
        session = runtime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:  # its classes have no public base
        message = f"ONNX Runtime cannot load it: {first_line(error)}"
        raise BackendError(message, where=str(path), code="load") from error
    _check_ends(session.get_inputs(), graph.inputs, batch, path)
    _check_ends(session.get_outputs(), graph.outputs, batch, path)
    return session


class OnnxRunner:
    """One session."""

    def __init__(self, session: Any, graph: Graph, path: Path) -> None:
        self._session, self._path = session, path
        self._outputs = [spec.name for spec in graph.outputs]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises BackendError for inputs that do not fit."""
        try:
            values = self._session.run(self._outputs, inputs)
        except Exception as error:  # its classes have no public base
            message = f"ONNX Runtime failed: {first_line(error)}"
            raise BackendError(message, where=str(self._path), code="run") from error
        return dict(zip(self._outputs, values, strict=True))


def _check_format(plan: BackendPlan) -> None:
    if plan.format not in FORMATS:
        raise BackendError(f"{NAME} has no format '{plan.format}'{did_you_mean(plan.format, FORMATS)}", code="format")
    if (plan.format, plan.precision) == ("ort", "fp16"):
        message = "an .ort file written here would hold fp32 weights; choose format 'onnx' for fp16, or precision w8a8"
        raise BackendError(message, code="format")


def _lower_component(members: list[Variant], plan: BackendPlan, out: Path, folder: str) -> dict[str, Artifact]:
    """Graphs that may share weights, and the one file these are in."""
    from edgediff.backends.onnxruntime.weights import WeightsFile, write_graph

    graphs: dict[str, Artifact] = {}
    with WeightsFile(out / folder / "weights.bin") as weights:
        for variant in members:
            stem = "model" if variant.name == variant.component else variant.name
            file = f"{folder}/{stem}.onnx"
            size = write_graph(_make_program(variant, plan.precision), out / file, weights)
            if plan.format == "ort" and size > ORT_LIMIT:
                message = (
                    f"graph '{variant.name}' has {size / 1e9:.1f} GB of weights in {plan.precision}, and an .ort file "
                    "ends at 2 GB; choose precision w8a8, or format 'onnx'"
                )
                raise BackendError(message, code="too_large")
            graphs[variant.name] = Artifact(file=file, precision=plan.precision, data=(f"{folder}/weights.bin",))
    return graphs


def _make_program(variant: Variant, precision: str) -> Any:
    from edgediff.backends.onnxruntime.export import export_graph
    from edgediff.backends.onnxruntime.fp16 import to_fp16
    from edgediff.backends.onnxruntime.w8a8 import to_w8a8

    model = export_graph(variant)
    if precision == "fp16":
        to_fp16(model)
    elif precision == "w8a8":
        to_w8a8(model)
    return model


def _convert_to_ort(graphs: dict[str, Artifact], out: Path) -> dict[str, Artifact]:
    """Optimized `.ort` files in place of the `.onnx` ones, for Arm (they run elsewhere as well, without the
    layouts that only x86 has)."""
    from onnxruntime import __version__

    try:
        with contextlib.redirect_stdout(io.StringIO()), _quiet_converter() as tool:
            tool.convert_onnx_models_to_ort(
                out / NAME,
                optimization_styles=[tool.OptimizationStyle.Fixed],
                target_platform="arm",
                enable_type_reduction=True,
            )
    except Exception as error:  # its classes have no public base
        raise BackendError(f"ONNX Runtime cannot convert to .ort: {first_line(error)}", code="ort") from error
    for path in {out / part for one in graphs.values() for part in (one.file, *one.data)}:
        path.unlink()
    config = out / NAME / "required_operators_and_types.config"
    lines = [line for line in config.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    head = f"# What a reduced build of ONNX Runtime {__version__} must contain to run the .ort files of this bundle"
    config.write_text("\n".join([head, *lines, ""]), encoding="utf-8")
    return {
        name: Artifact(file=one.file.removesuffix(".onnx") + ".ort", precision=one.precision)
        for name, one in graphs.items()
    }


@contextlib.contextmanager
def _quiet_converter() -> Iterator[Any]:
    """The converter, whose import sets up logging for the whole process: that is undone."""
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        from onnxruntime.tools import convert_onnx_models_to_ort as tool

        for name in list(logging.root.manager.loggerDict):
            if name.startswith("ort_format_model"):
                logging.getLogger(name).setLevel(logging.ERROR)
        yield tool
    finally:
        root.handlers[:] = before


def _check_ends(found: Any, specs: tuple[TensorSpec, ...], batch: int, path: Path) -> None:
    """Raises BackendError unless names, types and (where the file fixes them) sizes are those of the manifest."""
    have = [(end.name, DTYPES.get(end.type, end.type), tuple(end.shape)) for end in found]
    want = [(spec.name, spec.dtype, spec.sized(batch)) for spec in specs]
    fits = len(have) == len(want) and all(
        mine[:2] == theirs[:2]
        and len(mine[2]) == len(theirs[2])
        and all(a == b or not isinstance(a, int) for a, b in zip(mine[2], theirs[2], strict=True))
        for mine, theirs in zip(have, want, strict=True)
    )
    if not fits:
        message = f"holds {have} where the manifest says {want}; build the bundle again"
        raise BackendError(message, where=str(path), code="signature")
