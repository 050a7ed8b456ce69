"""The layout `optimum`: what `optimum.onnxruntime.ORTStableDiffusionPipeline.from_pretrained` loads.

It runs the bundle's full graph at every step (optimum knows no feature reuse), with the bundle's sampler, precision
and cuts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.config import dump_json
from edgediff.errors import BackendError
from edgediff.layouts._denoiser import LEGACY_EOS, find_whole_row
from edgediff.plugins import import_or_explain
from edgediff.runtime.manifest import BATCH, Artifact, Graph, Manifest
from edgediff.verify import check_source, load_source

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgediff.bundle import Bundle
    from edgediff.pipeline import Pipeline

BACKEND = "onnxruntime"


def write(bundle: Bundle, out: Path, pipeline: Pipeline | None) -> None:
    """`{unet,text_encoder,vae_decoder}/{model.onnx,weights.bin,config.json}`, tokenizer, scheduler, index."""
    import_or_explain("onnxscript", needed_by="layout 'optimum'")
    manifest = bundle.manifest
    denoiser = str(find_whole_row(manifest, "optimum", "optimum").graph)
    artifacts = {
        folder: _onnx_artifact(manifest, graph)
        for folder, graph in (("unet", denoiser), ("text_encoder", "text_encoder"), ("vae_decoder", "vae_decoder"))
    }
    if pipeline is None:
        pipeline = load_source(bundle)
    check_source(bundle, pipeline)
    _write_configs(bundle, out, pipeline)
    eos = int(getattr(pipeline.text_encoder.config, "eos_token_id", LEGACY_EOS))
    _sew(bundle, artifacts["unet"], out / "unet", _sew_denoiser)
    _sew(bundle, artifacts["text_encoder"], out / "text_encoder", lambda model: _sew_text_encoder(model, eos))
    _sew(bundle, artifacts["vae_decoder"], out / "vae_decoder", _sew_decoder)


def _onnx_artifact(manifest: Manifest, name: str) -> Artifact:
    graph: Graph | None = manifest.graphs.get(name)
    artifact = graph.artifacts.get(BACKEND) if graph else None
    if artifact is None or not artifact.file.endswith(".onnx"):
        message = (
            f"the bundle has no ONNX file of graph '{name}', which the layout 'optimum' needs; build it with "
            f"--backend {BACKEND} for a target whose format is 'onnx'"
        )
        raise BackendError(message, code="layout")
    return artifact


def _write_configs(bundle: Bundle, out: Path, pipeline: Pipeline) -> None:
    """Everything that is not a graph. The scheduler is that of the bundle's sampler."""
    import diffusers

    from edgediff.sampling.table import make_scheduler

    parts: dict[str, Any] = {
        "unet": pipeline.denoiser,
        "vae_decoder": pipeline.vae,
        "text_encoder": pipeline.text_encoder,
    }
    for folder, module in parts.items():
        (out / folder).mkdir()
        config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
        config.setdefault("_class_name", type(module).__name__)
        text = json.dumps({key: value for key, value in config.items() if key != "_name_or_path"}, default=str)
        (out / folder / "config.json").write_text(dump_json(json.loads(text)), encoding="utf-8")
    scheduler = make_scheduler(bundle.plan.sampler.kind, pipeline.scheduler)
    scheduler.save_config(out / "scheduler")
    _write_tokenizer(bundle, out / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", type(pipeline.denoiser).__name__],
        "vae": ["diffusers", type(pipeline.vae).__name__],
        "text_encoder": ["transformers", type(pipeline.text_encoder).__name__],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (out / "model_index.json").write_text(dump_json(index), encoding="utf-8")


def _write_tokenizer(bundle: Bundle, folder: Path) -> None:
    """The bundle's tokenizer, with the length of a prompt, which transformers reads from its config."""
    if len(bundle.manifest.tokenizers) != 1:
        raise BackendError("the bundle takes no one text; the layout 'optimum' is for text-to-image", code="layout")
    (spec,) = bundle.manifest.tokenizers.values()
    folder.mkdir()
    shutil.copyfile(bundle.path(spec.vocab), folder / "vocab.json")
    shutil.copyfile(bundle.path(spec.merges), folder / "merges.txt")
    added = {
        str(token.ids[0]): {
            "content": token.content,
            "single_word": token.single_word,
            "lstrip": token.left_strip,
            "rstrip": token.right_strip,
            "normalized": token.normalized,
            "special": True,
        }
        for token in spec.added
    }
    config = {
        "added_tokens_decoder": added,
        "bos_token": spec.begin,
        "eos_token": spec.end,
        "pad_token": spec.pad,
        "unk_token": spec.unknown,
        "model_max_length": spec.length,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(dump_json(config), encoding="utf-8")


# Sewing new ends on


def _sew(bundle: Bundle, artifact: Artifact, folder: Path, change: Callable[[ir.Model], None]) -> None:
    """Copies the weights, and the graph with its ends changed, which goes on naming the weights file."""
    import onnx_ir as ir

    for file in artifact.data:
        shutil.copyfile(bundle.path(file), folder / Path(file).name)
    model = ir.load(bundle.path(artifact.file))
    change(model)
    ir.save(model, folder / "model.onnx")


def _sew_denoiser(model: ir.Model) -> None:
    """`timestep` becomes an int64 scalar, `noise_pred` `out_sample`; carries written go nowhere and are dropped
    (optimum would take the first of them for the prediction)."""
    import onnx_ir as ir

    graph = model.graph
    del graph.outputs[1:]
    graph.outputs[0].name = "out_sample"
    index = next(i for i, value in enumerate(graph.inputs) if value.name == "timestep")
    old = graph.inputs[index]
    old.name = "timestep_1"
    scalar = ir.Value(name="timestep", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs[index] = scalar
    as_float = ir.Value(name="timestep_float")
    flat, shape = ir.Value(name="timestep_flat"), _numbers(graph, "timestep_shape", [1])
    old.replace_all_uses_with(flat)
    one = ir.node("Reshape", [as_float, shape], outputs=[flat])
    cast = ir.node("Cast", [scalar], {"to": ir.DataType.FLOAT}, outputs=[as_float])
    graph.insert_before(graph[0], [cast, one])


def _sew_text_encoder(model: ir.Model, eos: int) -> None:
    """Adds `pooler_output`, the row of the first end-of-text token, and any number of prompts."""
    import onnx_ir as ir

    graph = model.graph
    ids, rows = graph.inputs[0], graph.outputs[0]
    marks = ids
    if eos != LEGACY_EOS:
        equal = _append(graph, "Equal", [ids, _numbers(graph, "eos", eos)])
        marks = _append(graph, "Cast", [equal], {"to": ir.DataType.INT32})
    place = _append(graph, "ArgMax", [marks], {"axis": 1, "keepdims": 0})
    flat = _append(graph, "Squeeze", [rows, _numbers(graph, "batch_axis", [0])])
    pooled = _append(graph, "Gather", [flat, place], {"axis": 0})
    pooled.name, pooled.type = "pooler_output", ir.TensorType(ir.DataType.FLOAT)
    pooled.shape = ir.Shape([1, rows.shape[2] if rows.shape else None])
    graph.outputs.append(pooled)
    _repeat_over_batch(model)


def _sew_decoder(model: ir.Model) -> None:
    model.graph.inputs[0].name, model.graph.outputs[0].name = "latent_sample", "sample"
    _repeat_over_batch(model)


def _repeat_over_batch(model: ir.Model) -> None:
    """A graph made for batch 1 becomes the body of a Scan over the batch: exact for any graph, whatever sizes
    its reshapes have built in. Constants stay outside, where runtimes prepare them once."""
    import onnx_ir as ir

    inner = model.graph
    source, ends, axis = inner.inputs[0], list(inner.outputs), _numbers(inner, "scan_axis", [0])
    whole, outputs = _batched(source), [_batched(end) for end in ends]
    for end in ends:
        end.name = f"{end.name}_single"
    item = _peel(inner, source, axis)
    results = [_peel_result(inner, end, axis) for end in ends]
    nodes, constants = list(inner), list(inner.initializers.values())
    inner.outputs.clear()
    inner.inputs.clear()
    inner.initializers.clear()
    inner.remove(nodes)
    body = ir.Graph([item], results, nodes=nodes, name="one")
    scan = ir.node("Scan", [whole], {"body": body, "num_scan_inputs": 1}, outputs=outputs)
    model.graph = ir.Graph(
        [whole], outputs, nodes=[scan], initializers=constants, opset_imports=inner.opset_imports, name="graph"
    )


def _peel(graph: ir.Graph, source: ir.Value, axis: ir.Value) -> ir.Value:
    """An input without the batch, which takes the place of `source`."""
    import onnx_ir as ir

    item = ir.Value(name=f"{source.name}_item", shape=ir.Shape(list(source.shape or ())[1:]), type=source.type)
    single = ir.Value(name=f"{source.name}_single")
    source.replace_all_uses_with(single)
    graph.insert_before(graph[0], ir.node("Unsqueeze", [item, axis], outputs=[single]))
    return item


def _peel_result(graph: ir.Graph, end: ir.Value, axis: ir.Value) -> ir.Value:
    """The output `end` without the batch."""
    import onnx_ir as ir

    result = _append(graph, "Squeeze", [end, axis])
    result.type, result.shape = end.type, ir.Shape(list(end.shape or ())[1:])
    return result


def _batched(value: ir.Value) -> ir.Value:
    """A value of the same name and type with the batch in front."""
    import onnx_ir as ir

    return ir.Value(name=value.name, shape=ir.Shape([BATCH, *list(value.shape or ())[1:]]), type=value.type)


def _append(graph: ir.Graph, kind: str, inputs: list[ir.Value], attributes: dict[str, Any] | None = None) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(kind, inputs, attributes or {}, outputs=[ir.Value(name=f"sewn_{len(graph)}")])
    graph.append(node)
    return node.outputs[0]


def _numbers(graph: ir.Graph, name: str, values: Any) -> ir.Value:
    """An int64 constant of the graph."""
    import numpy as np
    import onnx_ir as ir

    from edgediff.backends.onnxruntime.weights import add_constant

    return add_constant(graph, f"sewn_{name}", ir.tensor(np.array(values, np.int64)))
