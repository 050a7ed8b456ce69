"""An exported program to a Core ML program with one function, saved beside others to be linked."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.backends._capture import operator_name, place_of
from edgediff.errors import BackendError, first_line
from edgediff.runtime.manifest import TensorSpec

if TYPE_CHECKING:
    from edgediff.variants import Variant

RELEASES = {"iOS16": 16, "iOS17": 17, "iOS18": 18}
# Parts of a network that may stay in fp32 inside an fp16 program: `time` is the sinusoid of the time embedding.
ISLANDS = ("time", "norm", "softmax")
NORM_OPERATIONS = {
    "reduce_mean",
    "sub",
    "square",
    "sqrt",
    "rsqrt",
    "real_div",
    "layer_norm",
    "instance_norm",
    "batch_norm",
}
SOFTMAX_OPERATIONS = {"softmax", "scaled_dot_product_attention"}
PRODUCTS = {"linear", "matmul", "conv", "einsum"}


def convert_program(
    program: Any,
    variant: Variant,
    batch: int,
    out: Path,
    *,
    precision: str,
    deployment: str,
    islands: Sequence[str] = (),
) -> None:
    """Writes `out`, an `.mlpackage` whose one function `main` has the variant's inputs and outputs by name and type
    (int64 becomes int32, which is Core ML's integer).

    `precision` fp32, or fp16 with the named `islands` left in fp32. Raises BackendError (code `export`).
    """
    import coremltools as ct
    import numpy as np

    check_operators(variant.name, program)
    keep_gelu_form()
    types = {"int64": np.int32, "int32": np.int32, "float16": np.float16, "float32": np.float32}

    def described(spec: TensorSpec, *, output: bool = False) -> Any:
        # An output's integer type is the converter's to choose, and its shape is known.
        return ct.TensorType(
            name=spec.name, dtype=types[spec.dtype], **({} if output else {"shape": spec.sized(batch)})
        )

    chosen = set(islands)
    compute = ct.precision.FLOAT32 if precision == "fp32" else ct.transform.FP16ComputePrecision(fp16_selector(chosen))
    with quiet_converter():
        try:
            model = ct.convert(
                program,
                inputs=[described(spec) for spec in variant.inputs],
                outputs=[described(spec, output=True) for spec in variant.outputs],
                minimum_deployment_target=getattr(ct.target, deployment),
                compute_precision=compute,
                skip_model_load=True,
            )
            model.save(str(out))
        except Exception as error:  # the converter raises many kinds
            message = f"graph '{variant.name}' cannot be written for Core ML: {first_line(error)}; the cause is chained"
            raise BackendError(message, code="export") from error


def check_operators(name: str, program: Any) -> None:
    """Raises BackendError naming the first operator that Core ML has no form for, the module it is in and the line
    that calls it."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    for node in program.graph_module.graph.nodes:
        if node.op != "call_function" or operator_name(node) == "getitem":
            continue
        kind = sanitize_op_kind(str(node.target))
        if kind not in _TORCH_OPS_REGISTRY:
            message = (
                f"graph '{name}': Core ML has no form for operator '{kind}'{place_of(node)}; "
                "replace the operation in the network, or leave this backend out of the target"
            )
            raise BackendError(message, code="export")


def keep_gelu_form() -> None:
    """Makes the converter heed gelu's keyword `approximate`: coremltools 9.0 drops it, and computes the exact gelu in
    place of the one with tanh, which is 99 dB away."""
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    def gelu(context: Any, node: Any) -> None:
        form = (node.kwinputs or {}).get("approximate", ("none",))[0]
        mode = {"tanh": "TANH_APPROXIMATION", "none": "EXACT"}[form]
        context.add(Builder.gelu(x=_get_inputs(context, node)[0], mode=mode, name=node.name))

    register_torch_op(gelu, override=True)


def is_timestep(value: Any) -> bool:
    """By its name in a manifest."""
    return bool(value.name == "timestep")


def fp16_selector(islands: set[str], is_time: Callable[[Any], bool] = is_timestep) -> Callable[[Any], bool]:
    """Whether an operation is computed in fp16. `is_time` knows the timestep among the inputs."""
    kept: dict[str, bool] = {}

    def in_time(operation: Any) -> bool:
        """Whether it depends on the timestep with no product in between."""
        if operation.name not in kept:
            kept[operation.name] = False  # what an operation reads comes before it: there are no circles
            kept[operation.name] = operation.op_type not in PRODUCTS and any(
                is_time(one) if one.op is None else in_time(one.op)
                for value in operation.inputs.values()
                if value is not None
                for one in (value if isinstance(value, list | tuple) else [value])
            )
        return kept[operation.name]

    def select(operation: Any) -> bool:
        if "norm" in islands and operation.op_type in NORM_OPERATIONS:
            return False
        if "softmax" in islands and operation.op_type in SOFTMAX_OPERATIONS:
            return False
        return not ("time" in islands and in_time(operation))

    return select


@contextlib.contextmanager
def quiet_converter() -> Iterator[None]:
    """Within it the converter's notes, warnings and progress bars reach nobody's terminal."""
    loggers = [logging.getLogger(name) for name in ("coremltools", "torch")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):  # the bars ask nobody whether they are wanted
                yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
