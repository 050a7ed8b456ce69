"""What must hold between the keys of a manifest: section 7 of `docs/format.md`, rule by rule, in its order.

The first rule that is broken decides the code, so the order of these functions and of what each looks at is part of
the format. Each raises BundleError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgediff.errors import BundleError, did_you_mean
from edgediff.runtime.manifest import (
    BATCH,
    Artifact,
    CarrySpec,
    Classes,
    Graph,
    Manifest,
    TensorSpec,
    Text,
    TextMask,
)
from edgediff.runtime.refusing import FLOATS, INTEGERS, Broken, find_graph, find_named, refuse, shown
from edgediff.runtime.rules_program import ProgramRules

MANIFEST = "manifest.json"


def check_manifest(manifest: Manifest, where: str) -> None:
    """Rules 1 to 23. Raises BundleError under the code of the first one that is broken."""
    try:
        _check_paths(manifest)
        _check_graphs(manifest)
        _check_states(manifest)
        _check_encoders(manifest)
        _check_conditions(manifest)
        _check_stages(manifest)
        if manifest.default not in manifest.programs:
            refuse("program", f"the default program '{manifest.default}' is none of {', '.join(manifest.programs)}")
        for name, program in manifest.programs.items():
            try:
                ProgramRules(manifest, program).check()
            except Broken as error:
                raise Broken(error.code, f"program '{name}': {error.message}") from None
    except Broken as error:
        raise BundleError(error.message, where=where, code=error.code) from None


def _check_paths(manifest: Manifest) -> None:
    """Rules 1 and 2."""
    seen: dict[str, str] = {}
    for entry in manifest.files:
        key = entry.path.lower()
        if key in seen:
            refuse("path", f"'{seen[key]}' and '{entry.path}' are one file where case is ignored; rename one")
        if key == MANIFEST:
            refuse("file", f"lists '{entry.path}', but cannot hold its own hash")
        seen[key] = entry.path
    listed = {entry.path for entry in manifest.files}
    folders = {path[:end] for path in listed for end in range(len(path)) if path[end] == "/"}
    for what, path in _named_paths(manifest):
        if path not in listed and not (what.startswith("graph") and path in folders):
            refuse("file", f"{what} needs '{path}', which is not among the files")


def _named_paths(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "plan", manifest.plan
    for name, tokenizer in manifest.tokenizers.items():
        yield f"tokenizer '{name}'", tokenizer.vocab
        yield f"tokenizer '{name}'", tokenizer.merges
    for name, graph in manifest.graphs.items():
        for backend, artifact in graph.artifacts.items():
            yield from ((f"graph '{name}' on {backend}", path) for path in artifact.files)


def _check_graphs(manifest: Manifest) -> None:
    """Rules 3 and 4."""
    for name, graph in manifest.graphs.items():
        for tensors in (graph.inputs, graph.outputs):
            if len({tensor.name for tensor in tensors}) < len(tensors):
                names = [tensor.name for tensor in tensors]
                twice = next(one for index, one in enumerate(names) if one in names[:index])
                refuse("tensor", f"graph '{name}' has two tensors '{twice}' on one side")
    for name, graph in manifest.graphs.items():
        for carries, tensors in ((graph.carries_in, graph.inputs), (graph.carries_out, graph.outputs)):
            _check_carries(manifest.carries, name, carries, tensors)


def _check_carries(
    known: Mapping[str, CarrySpec], name: str, carries: Mapping[str, str], tensors: Sequence[TensorSpec]
) -> None:
    used: set[str] = set()
    by_name = {tensor.name: tensor for tensor in tensors}
    for carry, tensor in carries.items():
        if carry not in known:
            refuse("carry", f"graph '{name}' uses unknown carry '{carry}'{did_you_mean(carry, known)}")
        spec = by_name.get(tensor) or find_named(name, tensors, tensor)
        if (spec.dtype, spec.shape) != (known[carry].dtype, known[carry].shape):
            refuse("carry", f"carry '{carry}' and tensor '{tensor}' of graph '{name}' differ in type or shape")
        if tensor in used:
            refuse("carry", f"tensor '{tensor}' of graph '{name}' is two carries")
        used.add(tensor)


def _check_states(manifest: Manifest) -> None:
    """Rule 5: a carry is in one state of one file, or in none, for all graphs of a backend; and nothing mixes it."""
    mixed = {carry for program in manifest.programs.values() for row in program.rows for carry in row.mix}
    for backend in sorted({name for graph in manifest.graphs.values() for name in graph.artifacts}):
        places: dict[str, tuple[str, str] | None] = {}
        for name, graph in manifest.graphs.items():
            if (artifact := graph.artifacts.get(backend)) is not None:
                _place_carries(backend, name, graph, artifact, places)
        held = {carry: place for carry, place in places.items() if place is not None}
        if len(set(held.values())) < len(held):
            refuse("carry", f"two carries are in one state on {backend}")
        if both := sorted(mixed & held.keys()):
            refuse(
                "carry", f"a row mixes carry '{both[0]}', which is a state on {backend}: it has its newest value only"
            )


def _place_carries(
    backend: str, name: str, graph: Graph, artifact: Artifact, places: dict[str, tuple[str, str] | None]
) -> None:
    ends = [*graph.carries_in.items(), *graph.carries_out.items()]
    if strangers := sorted(artifact.states.keys() - {tensor for _, tensor in ends}):
        refuse("carry", f"graph '{name}' on {backend} has a state for '{strangers[0]}', which is no carry of it")
    for carry, tensor in ends:
        state = artifact.states.get(tensor)
        place = (artifact.file, state) if state is not None else None
        if places.setdefault(carry, place) != place:
            refuse("carry", f"carry '{carry}' is in one state for some graphs on {backend}, and not for others")


def _check_encoders(manifest: Manifest) -> None:
    """Rule 6."""
    for name, encoder in manifest.encoders.items():
        if encoder.tokenizer not in manifest.tokenizers:
            near = did_you_mean(encoder.tokenizer, manifest.tokenizers)
            refuse("tokenizer", f"encoder '{name}' needs tokenizer '{encoder.tokenizer}', which does not exist{near}")
        graph = find_graph(manifest, encoder.graph)
        wanted = [encoder.ids, *([encoder.mask] if encoder.mask is not None else [])]
        specs = [find_named(encoder.graph, graph.inputs, one) for one in wanted]
        length = manifest.tokenizers[encoder.tokenizer].length
        for spec in specs:
            if len(spec.shape) != 2 or spec.shape[0] not in (1, BATCH) or spec.shape[1] != length:
                refuse(
                    "shape",
                    f"'{spec.name}' of graph '{encoder.graph}' is {shown(spec.shape)}; a text is [1, {length}]",
                )
        if specs[0].dtype not in INTEGERS:
            refuse("shape", f"'{encoder.ids}' of graph '{encoder.graph}' takes {specs[0].dtype}; ids are whole numbers")
        if stranger := next((spec.name for spec in graph.inputs if spec.name not in wanted), None):
            refuse("tensor", f"graph '{encoder.graph}' of encoder '{name}' reads '{stranger}', which nothing feeds")


def _check_conditions(manifest: Manifest) -> None:
    """Rule 7."""
    for name, condition in manifest.conditions.items():
        if isinstance(condition, Text):
            for output in condition.outputs:
                encoder = _encoder(manifest, name, output.encoder)
                find_named(encoder, manifest.graphs[encoder].outputs, output.output)
        elif isinstance(condition, TextMask):
            _encoder(manifest, name, condition.encoder)
        elif isinstance(condition, Classes):
            if condition.null is not None and condition.null > condition.count:
                refuse("condition", f"'{name}': null = {condition.null} is above count = {condition.count}")
            names = condition.names
            if names and not len(set(names)) == len(names) == condition.count:
                given = f"{len(names)} names, {len(set(names))} of them different"
                refuse("condition", f"'{name}' has {given}, for {condition.count} classes")


def _encoder(manifest: Manifest, name: str, encoder: str) -> str:
    """The graph of an encoder."""
    if encoder not in manifest.encoders:
        near = did_you_mean(encoder, manifest.encoders)
        refuse("condition", f"'{name}' comes from encoder '{encoder}', which does not exist{near}")
    return manifest.encoders[encoder].graph


def _check_stages(manifest: Manifest) -> None:
    """Rules 8 to 10."""
    decoder, result = manifest.decoder, None
    if decoder.graph is not None and decoder.input is not None and decoder.output is not None:
        result = _single(manifest, decoder.graph, decoder.input, decoder.output)[1]
    elif (decoder.graph, decoder.input, decoder.output) != (None, None, None):
        refuse("decoder", "the decoder has a graph, its input and its output, or none of them")
    if (manifest.makes == "audio") != (decoder.sample_rate is not None):
        what = (
            "needs the decoder's sample_rate" if manifest.makes == "audio" else "has no sample_rate: that is of sound"
        )
        refuse("decoder", f"a bundle that makes '{manifest.makes}' {what}")
    picture, safety, preview = manifest.picture, manifest.safety, manifest.preview
    ends: list[TensorSpec] = []
    if picture is not None:
        ends += _single(manifest, picture.graph, picture.input, picture.mean)
        if picture.deviation is not None:
            ends.append(find_named(picture.graph, manifest.graphs[picture.graph].outputs, picture.deviation))
    seen = None if safety is None else _single(manifest, safety.graph, safety.input, safety.output)[0]
    if preview is not None:
        by_graph = (preview.graph, preview.input, preview.output)
        linear = (preview.weights, preview.bias)
        whole = (None not in by_graph, None not in linear)
        if whole not in ((True, False), (False, True)) or any(
            one is not None for one in (linear if whole[0] else by_graph)
        ):
            refuse("preview", "a preview has a graph with its input and output, or weights with a bias, and not both")
        if preview.graph is not None and preview.input is not None and preview.output is not None:
            _single(manifest, preview.graph, preview.input, preview.output)
    if picture is not None:
        wanted = (1, 3, *picture.size)
        if ends[0].dtype not in FLOATS or ends[0].shape not in (wanted, (BATCH, *wanted[1:])):
            refuse(
                "shape",
                f"'{picture.input}' of graph '{picture.graph}' is {shown(ends[0].shape)}, not {shown(wanted)}",
            )
        if len(ends) == 3 and ends[2].shape != ends[1].shape:
            refuse("shape", f"mean and deviation of graph '{picture.graph}' differ in shape")
    if seen is not None and (result is None or seen.shape[1:] != result.shape[1:]):
        refuse("shape", f"the safety checker reads {shown(seen.shape)}, which is not what is decoded")


def _single(manifest: Manifest, name: str, read: str, output: str) -> list[TensorSpec]:
    """The one input of a stage's graph, and the output that is asked for."""
    graph = find_graph(manifest, name)
    found = [find_named(name, graph.inputs, read), find_named(name, graph.outputs, output)]
    if len(graph.inputs) > 1:
        stranger = next(spec.name for spec in graph.inputs if spec.name != read)
        refuse("tensor", f"graph '{name}' reads '{stranger}', which nothing feeds")
    return found
