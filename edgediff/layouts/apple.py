"""The layout `apple`: models by the names, inputs and outputs of Apple's own converter.

    Resources/{TextEncoder,Unet,VAEDecoder}.mlmodelc    on a Mac, compiled by `xcrun coremlcompiler`
    Resources/{TextEncoder,Unet,VAEDecoder}.mlpackage   elsewhere, with compile.sh, which compiles them on a Mac
    Resources/{UnetChunk1,UnetChunk2}.*                 in place of Unet, from a bundle whose denoiser is in two chunks
    Resources/{vocab.json,merges.txt}

Apple's Swift package runs its own scheduler and one network at every step: this is the bundle's full graph, with its
precision, attention and coded weights; the cached features that it writes for other graphs are left out (the package
takes the first output for the prediction). Both prompts run in one batch there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgediff.errors import BackendError
from edgediff.layouts._denoiser import LEGACY_EOS, find_whole_row
from edgediff.runtime.manifest import Artifact, Graph, Manifest
from edgediff.verify import check_source, load_source

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.pipeline import Pipeline

BACKEND = "coreml"
GUIDED = 2
CACHE_OUT = "cache_out_"  # features for the bundle's other graphs
COMPILE = """#!/bin/sh
# Compiles the models for an app; needs Xcode's command line tools.
cd "$(dirname "$0")/Resources" || exit 1
for package in *.mlpackage; do
    xcrun coremlcompiler compile "$package" . && rm -r "$package"
done
"""


def write(bundle: Bundle, out: Path, pipeline: Pipeline | None) -> None:
    """Writes the folder. Raises BackendError for a bundle that is no text-to-image bundle with Core ML programs, or
    whose full graph does not run both prompts in one batch; ModelError."""
    manifest = bundle.manifest
    tokenizers, encoders = list(manifest.tokenizers.values()), list(manifest.encoders.values())
    if len(tokenizers) != 1 or len(encoders) != 1 or manifest.decoder.graph is None:
        raise BackendError("the bundle is not text-to-image, which the layout 'apple' is for", code="layout")
    names = {
        "TextEncoder": encoders[0].graph,
        "Unet": _whole_denoiser(manifest),
        "VAEDecoder": manifest.decoder.graph,
    }
    artifacts = {target: _artifact(manifest, graph) for target, graph in names.items()}
    if pipeline is None:
        pipeline = load_source(bundle)
    check_source(bundle, pipeline)
    eos = int(getattr(pipeline.text_encoder.config, "eos_token_id", LEGACY_EOS))
    changes: dict[str, Callable[..., None]] = {
        "TextEncoder": lambda function: _sew_text_encoder(function, eos),
        "Unet": _sew_denoiser,
        "VAEDecoder": _sew_decoder,
    }
    resources = out / "Resources"
    resources.mkdir()
    for target, artifact in artifacts.items():
        _write_model(bundle, artifact, resources, target, changes[target])
    for name, file in (("vocab.json", tokenizers[0].vocab), ("merges.txt", tokenizers[0].merges)):
        shutil.copyfile(bundle.path(file), resources / name)
    if sys.platform == "darwin":
        _compile(resources)
    else:
        (out / "compile.sh").write_text(COMPILE, encoding="utf-8")
        (out / "compile.sh").chmod(0o755)


def _whole_denoiser(manifest: Manifest) -> str:
    """The graph that reads no carries and is run guided, in one batch."""
    row = find_whole_row(manifest, "apple", "Apple's package")
    if row.guidance is None or manifest.program().mode != "batched":
        message = 'Apple\'s package runs both prompts in one batch; build for a target with guidance = "batched"'
        raise BackendError(message, code="layout")
    return str(row.graph)


def _artifact(manifest: Manifest, name: str) -> Artifact:
    graph: Graph | None = manifest.graphs.get(name)
    artifact = graph.artifacts.get(BACKEND) if graph else None
    if artifact is None:
        message = f"the bundle has no Core ML program of graph '{name}'; build it with --backend {BACKEND}"
        raise BackendError(message, code="layout")
    return artifact


def _write_model(bundle: Bundle, artifact: Artifact, resources: Path, target: str, change: Callable[..., None]) -> None:
    """Writes `<target>.mlpackage`, or `<target>Chunk1.mlpackage` and so on."""
    from edgediff.backends.coreml.link import Part, link_functions
    from edgediff.backends.coreml.metadata import read_description
    from edgediff.mil import open_package

    paths = [bundle.path(file) for file in (artifact.file, *artifact.chunks)]
    function = artifact.function or "main"
    for index, path in enumerate(paths):
        name = target if len(paths) == 1 else f"{target}Chunk{index + 1}"
        if following := paths[index + 1 :]:  # what the next chunk reads stays an output, features for others too
            read = frozenset(one.name for one in open_package(following[0]).function(function).inputs)
            part = Part("main", path, function, partial(change, handed=read))
        else:
            part = Part("main", path, function, change)
        link_functions([part], resources / f"{name}.mlpackage", description=read_description(path))


def _compile(resources: Path) -> None:
    """Compiled models in place of the packages. Raises BackendError with what the compiler said."""
    for package in sorted(resources.glob("*.mlpackage")):
        command = ["xcrun", "coremlcompiler", "compile", str(package), str(resources)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
            raise BackendError(f"xcrun coremlcompiler failed on {package.name}: {said[-1]}", code="compile")
        shutil.rmtree(package)


# Sewing new ends on


def _sew_denoiser(function: Any, handed: frozenset[str] = frozenset()) -> None:
    """`sample` and `timestep` [batch] in fp16, the text as [batch, width, 1, tokens] in fp16, one output. Of a chunk,
    those of them that it has, and what is `handed` to the next; Apple's runner gives every chunk the original inputs.
    """
    from edgediff.backends.coreml.messages import block_of, keep_outputs, replace_input

    shapes = {one.name: _shape(one) for one in function.inputs}
    batch = next(shape[0] for name, shape in shapes.items() if name != "timestep")
    if batch != GUIDED:
        raise BackendError(f"the program's batch is {batch}, and Apple's package runs {GUIDED}", code="layout")
    outputs = [name for name in block_of(function).outputs if not name.startswith(CACHE_OUT) or name in handed]
    keep_outputs(function, outputs)
    if "sample" in shapes:
        replace_input(function, "sample", "float16", shapes["sample"])
    if "timestep" in shapes:
        replace_input(
            function,
            "timestep",
            "float16",
            (batch,),
            [("slice_by_index", {"begin": ([0], "int32"), "end": ([1], "int32")}, (1,))],
        )
    if "encoder_hidden_states" in shapes:
        _, tokens, width = shapes["encoder_hidden_states"]
        replace_input(
            function,
            "encoder_hidden_states",
            "float16",
            (batch, width, 1, tokens),
            [
                ("squeeze", {"axes": ([2], "int32")}, (batch, width, tokens)),
                ("transpose", {"perm": ([0, 2, 1], "int32")}, (batch, tokens, width)),
            ],
        )


def _sew_text_encoder(function: Any, eos: int) -> None:
    """Ids as fp32, which is how Apple's tokenizer hands them over; besides the rows, the row of the first end of
    text as `pooled_outputs`."""
    from edgediff.backends.coreml.messages import add_output, replace_input

    batch, tokens = _shape(function.inputs[0])
    ids = replace_input(function, "input_ids", "float32", (batch, tokens))
    _, _, width = _output_shape(function, "last_hidden_state")
    steps: list[tuple[str, dict[str, Any], str, tuple[int, ...]]] = []
    marks = ids
    if eos != LEGACY_EOS:
        steps += [
            ("equal", {"x": ids, "y": (np.int32(eos), "int32")}, "bool", (batch, tokens)),
            ("cast", {"dtype": ("int32", "string")}, "int32", (batch, tokens)),
        ]
        marks = ""
    place = {"axis": (np.int32(1), "int32"), "keep_dims": (False, "bool")}
    steps += [
        ("reduce_argmax", {**({"x": marks} if marks else {}), **place}, "int32", (batch,)),
        (
            "gather",
            {
                "x": "last_hidden_state",
                "indices": "",
                "axis": (np.int32(1), "int32"),
                "batch_dims": (np.int32(0), "int32"),
                "validate_indices": (False, "bool"),
            },
            "float32",
            (batch, 1, width),
        ),
        ("squeeze", {"axes": ([1], "int32")}, "float32", (batch, width)),
    ]
    add_output(function, "pooled_outputs", steps)


def _sew_decoder(function: Any) -> None:
    from edgediff.backends.coreml.messages import replace_input

    replace_input(function, "z", "float16", _shape(function.inputs[0]))


def _shape(one: Any) -> tuple[int, ...]:
    from edgediff.mil.package import value_type

    return tuple(size or 0 for size in value_type(one.type).shape)


def _output_shape(function: Any, name: str) -> tuple[int, ...]:
    for operation in function.block_specializations[function.opset].operations:
        for output in operation.outputs:
            if output.name == name:
                return _shape(output)
    raise BackendError(f"the program has no output '{name}'", code="layout")
