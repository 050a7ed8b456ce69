"""What must hold between the keys of a manifest: section 7 of `docs/format.md`, rule by rule, in its order.

The first rule that is broken decides the code, so the order of these functions and of what each looks at is part of
the format. Each raises BundleError.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from edgediff.errors import BundleError, did_you_mean
from edgediff.runtime.manifest import (
    BATCH,
    SCALE,
    Artifact,
    CarrySpec,
    Classes,
    Condition,
    Constant,
    Graph,
    Manifest,
    Program,
    Size,
    TensorSpec,
    Text,
    TextMask,
)

MANIFEST = "manifest.json"
FLOATS, INTEGERS = ("float32", "float16"), ("int64", "int32")
Shape = tuple[Size, ...]


class Broken(Exception):
    """A broken rule, on its way to whoever knows the file."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


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


def refuse(code: str, message: str) -> NoReturn:
    raise Broken(code, message)


def find_graph(manifest: Manifest, name: str) -> Graph:
    if name not in manifest.graphs:
        refuse("graph", f"graph '{name}' does not exist{did_you_mean(name, manifest.graphs)}")
    return manifest.graphs[name]


def find_named(graph: str, tensors: Sequence[TensorSpec], name: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    refuse("tensor", f"graph '{graph}' has no tensor '{name}'{did_you_mean(name, [t.name for t in tensors])}")


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
                    "shape", f"'{spec.name}' of graph '{encoder.graph}' is {_text(spec.shape)}; a text is [1, {length}]"
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
                "shape", f"'{picture.input}' of graph '{picture.graph}' is {_text(ends[0].shape)}, not {_text(wanted)}"
            )
        if len(ends) == 3 and ends[2].shape != ends[1].shape:
            refuse("shape", f"mean and deviation of graph '{picture.graph}' differ in shape")
    if seen is not None and (result is None or seen.shape[1:] != result.shape[1:]):
        refuse("shape", f"the safety checker reads {_text(seen.shape)}, which is not what is decoded")


def _single(manifest: Manifest, name: str, read: str, output: str) -> list[TensorSpec]:
    """The one input of a stage's graph, and the output that is asked for."""
    graph = find_graph(manifest, name)
    found = [find_named(name, graph.inputs, read), find_named(name, graph.outputs, output)]
    if len(graph.inputs) > 1:
        stranger = next(spec.name for spec in graph.inputs if spec.name != read)
        refuse("tensor", f"graph '{name}' reads '{stranger}', which nothing feeds")
    return found


class ProgramRules:
    """Rules 13 to 23 of one program."""

    def __init__(self, manifest: Manifest, program: Program) -> None:
        self.manifest, self.program = manifest, program
        self.conditions: dict[str, Condition] = {}  # those that this program's graphs read
        self.guided = {row.graph for row in program.rows if row.guidance is not None}

    def check(self) -> None:
        self.check_graphs()
        for name in self.program.graphs():
            self.check_shapes(name, self.manifest.graphs[name])
        self.check_result()
        self.check_takes()
        self.check_guidance()
        self.check_held()
        self.check_carries()
        self.check_history()

    def check_graphs(self) -> None:
        """Rules 13 and 14."""
        if not self.program.graphs():
            refuse("graph", "no row runs a graph")
        for row in self.program.rows:
            if row.graph is not None:
                find_graph(self.manifest, row.graph)
        for name in self.program.graphs():
            graph = self.manifest.graphs[name]
            sources = []
            for spec in graph.free_inputs():
                if spec.name not in self.manifest.conditions:
                    refuse("condition", f"graph '{name}' reads '{spec.name}', which has no condition")
                self.conditions[spec.name] = self.manifest.conditions[spec.name]
                sources.append(self.manifest.conditions[spec.name].source)
            if sources.count("latent") != 1 or sources.count("timestep") > 1:
                refuse(
                    "condition", f"graph '{name}' reads {sources.count('latent')} latents; it needs one, and one time"
                )
            if len(graph.free_outputs()) != 1:
                refuse(
                    "tensor", f"graph '{name}' has {len(graph.free_outputs())} outputs that are no carries; needs one"
                )

    def check_shapes(self, name: str, graph: Graph) -> None:
        """Rule 15."""
        both = self.program.mode == "batched" and name in self.guided
        for spec in graph.free_inputs():
            condition = self.manifest.conditions[spec.name]
            if not self.fits(spec, condition):
                refuse(
                    "shape",
                    f"'{spec.name}' of graph '{name}' is {spec.dtype} {_text(spec.shape)}, which its "
                    f"condition ('{condition.source}') does not give",
                )
            if both and condition.source not in ("timestep", "guidance") and spec.shape[0] != BATCH:
                refuse("shape", f"'{spec.name}' of graph '{name}' has no batch, but guided rows run both sides at once")
        prediction = graph.free_outputs()[0]
        if (
            prediction.dtype not in FLOATS
            or not self.is_latent(prediction.shape)
            or (both and prediction.shape[0] != BATCH)
        ):
            refuse(
                "shape", f"graph '{name}' puts out {_text(prediction.shape)}; the latent is {list(self.program.latent)}"
            )

    def fits(self, spec: TensorSpec, condition: Condition) -> bool:
        """Whether a tensor has the type and shape of what its condition gives."""
        source, shape = condition.source, spec.shape
        if shape[:1] not in ((1,), (BATCH,)) or BATCH in shape[1:]:
            return False
        if source == "class":
            return spec.dtype == "int64" and len(shape) == 1
        if source == "text_mask":
            return len(shape) == 2 and shape[1] == self.length(condition)
        if spec.dtype not in FLOATS:
            return False
        if source in ("timestep", "guidance"):
            return len(shape) == 1
        if isinstance(condition, Constant):
            given = [condition.values, *([condition.empty] if condition.empty is not None else [])]
            return all(len(values) == math.prod(int(size) for size in shape[1:]) for values in given)
        if isinstance(condition, Text):
            return shape[1:] == self.joined(condition)
        sizes = self.program.latent[1:]
        if source == "mask":
            return shape[1:] == (1, *sizes)
        if source == "latent":
            return self.is_latent(shape)
        mean = self.mean()
        return len(shape) > 2 and shape[2:] == sizes and (mean is None or shape[1:] == mean.shape[1:])

    def length(self, condition: Condition) -> int:
        assert isinstance(condition, TextMask)
        return self.manifest.tokenizers[self.manifest.encoders[condition.encoder].tokenizer].length

    def joined(self, condition: Text) -> Shape | None:
        """The shape of the joined outputs without batch; None where they do not join."""
        shapes = []
        for one in condition.outputs:
            graph = self.manifest.graphs[self.manifest.encoders[one.encoder].graph]
            spec = next(tensor for tensor in graph.outputs if tensor.name == one.output)
            if (
                spec.dtype not in FLOATS
                or len(spec.shape) < 2
                or spec.shape[0] not in (1, BATCH)
                or BATCH in spec.shape[1:]
            ):
                return None
            shapes.append(spec.shape[1:])
        if any(shape[:-1] != shapes[0][:-1] for shape in shapes):
            return None
        return (*shapes[0][:-1], sum(int(shape[-1]) for shape in shapes))

    def mean(self) -> TensorSpec | None:
        """What the encoder of pictures puts out; None where there is none (rule 18)."""
        picture = self.manifest.picture
        if picture is None:
            return None
        return find_named(picture.graph, self.manifest.graphs[picture.graph].outputs, picture.mean)

    def is_latent(self, shape: Shape) -> bool:
        return shape[:1] in ((1,), (BATCH,)) and shape[1:] == self.program.latent

    def check_result(self) -> None:
        """Rule 16."""
        decoder, result = self.manifest.decoder, tuple[Size, ...](self.program.latent)
        if decoder.graph is not None and decoder.input is not None and decoder.output is not None:
            graph = self.manifest.graphs[decoder.graph]
            read = find_named(decoder.graph, graph.inputs, decoder.input)
            if read.dtype not in FLOATS or not self.is_latent(read.shape):
                refuse("shape", f"the decoder reads {_text(read.shape)}; the latent is {list(self.program.latent)}")
            result = find_named(decoder.graph, graph.outputs, decoder.output).shape[1:]
        if self.manifest.makes == "image" and (len(result) != 3 or result[0] not in (1, 3)):
            refuse("shape", f"what is decoded is {_text(result)}; a picture has 1 or 3 channels, height and width")
        if self.manifest.makes == "audio" and len(result) != 2:
            refuse("shape", f"what is decoded is {_text(result)}; a sound has channels and samples")
        self.check_preview()

    def check_preview(self) -> None:
        """The end of rule 16."""
        preview = self.manifest.preview
        if preview is None:
            return
        if preview.graph is not None and preview.input is not None and preview.output is not None:
            graph = self.manifest.graphs[preview.graph]
            read = find_named(preview.graph, graph.inputs, preview.input)
            made = find_named(preview.graph, graph.outputs, preview.output).shape
            if read.dtype not in FLOATS or not self.is_latent(read.shape):
                refuse("shape", f"the preview reads {_text(read.shape)}; the latent is {list(self.program.latent)}")
            if len(made) != 4 or made[1] not in (1, 3):
                refuse("shape", f"the preview puts out {_text(made)}; a picture has 1 or 3 channels, height and width")
        elif len(self.program.latent) != 3 or len(preview.weights or ()) != self.program.latent[0]:
            given, latent = len(preview.weights or ()), list(self.program.latent)
            refuse("shape", f"the preview has weights for {given} channels; the latent is {latent}")

    def check_takes(self) -> None:
        """Rules 17 and 18."""
        program, sources = self.program, {condition.source for condition in self.conditions.values()}
        if len(set(program.takes)) != len(program.takes):
            refuse("takes", f"takes names one thing twice: {', '.join(program.takes)}")
        blends = any(row.blend is not None for row in program.rows)
        adds = program.init.picture != 0 or blends
        wanted = {
            "prompt": bool(sources & {"text", "text_mask", "class"}),
            "picture": adds or bool(sources & {"picture", "masked_picture"}),
            "mask": blends or bool(sources & {"mask", "masked_picture"}),
        }
        for word, needed in wanted.items():
            if (word in program.takes) != needed:
                refuse("takes", f"takes {'no ' if needed else ''}{word}, which its rows and conditions {_need(needed)}")
        if "negative_prompt" in program.takes and not ("text" in sources and program.guides):
            refuse("takes", "takes a negative_prompt, which only a guided row with a text can use")
        if "picture" not in program.takes and "mask" not in program.takes:
            return
        mean = self.mean()
        if mean is None:
            refuse("takes", "takes a picture or a mask, but the bundle has no encoder of pictures")
        if adds and not self.is_latent(mean.shape):
            latent = list(program.latent)
            refuse("shape", f"the encoder of pictures puts out {_text(mean.shape)}; the latent is {latent}")

    def check_guidance(self) -> None:
        """Rules 19 and 20."""
        program = self.program
        for what, scale in (("guidance", program.guidance), ("embedded_guidance", program.embedded_guidance)):
            if scale is not None and not scale.low <= scale.scale <= scale.high:
                refuse("guidance", f"{what}: {scale.scale:g} lies outside {scale.low:g} to {scale.high:g}")
        asks = any(r.guidance == SCALE or (r.held and r.held.times == "scale_minus_one") for r in program.rows)
        if asks and program.guidance is None:
            refuse("guidance", "a row follows the asked guidance, but the program states none")
        sources = [condition.source for condition in self.conditions.values()]
        if "guidance" in sources and program.embedded_guidance is None:
            refuse("guidance", "a graph reads the guidance, but the program states no embedded_guidance")
        if program.guides:
            no_null = any(isinstance(one, Classes) and one.null is None for one in self.conditions.values())
            if no_null or not {"text", "class"} & set(sources):
                refuse("guidance", "a row is guided, but there is no text and no class of no class to guide from")

    def check_held(self) -> None:
        """Rule 21."""
        ran, guided = False, 0
        for index, row in enumerate(self.program.rows):
            if row.graph is None:
                if row.guidance is not None or row.held is not None:
                    refuse("guidance", f"row {index} runs no graph, but has guidance")
                if row.mix:
                    refuse("carry", f"row {index} runs no graph, but mixes a carry")
                if not ran:
                    refuse("carry_before_write", f"row {index} holds the output before any graph has run")
                continue
            ran = True
            if row.held is not None and row.guidance is not None:
                refuse("guidance", f"row {index} holds guidance and has its own")
            if row.held is not None and len(row.held.weights) > guided:
                refuse(
                    "carry_before_write", f"row {index} holds the guidance of {len(row.held.weights)} rows, of {guided}"
                )
            guided += row.guidance is not None

    def check_carries(self) -> None:
        """Rule 22."""
        written: dict[str, list[bool]] = {}  # carry -> of each value, oldest first, whether a guided row wrote it
        for index, row in enumerate(self.program.rows):
            if row.graph is None:
                continue
            graph, guided = self.manifest.graphs[row.graph], row.guidance is not None
            for carry, weights in row.mix.items():
                if carry not in graph.carries_in:
                    refuse("carry", f"row {index} mixes '{carry}', which graph '{row.graph}' does not read")
                if len(weights) > (count := len(written.get(carry, ()))):
                    refuse("carry_before_write", f"row {index} mixes {len(weights)} values of '{carry}', of {count}")
            for carry in graph.carries_in:
                if carry not in written:
                    refuse(
                        "carry_before_write", f"row {index} ('{row.graph}') reads carry '{carry}' before it is written"
                    )
                read = len(row.mix.get(carry, (1.0,)))
                if guided and not all(written[carry][-read:]):
                    refuse("carry", f"row {index} is guided, but carry '{carry}' was written without guidance")
            for carry in graph.carries_out:
                written.setdefault(carry, []).append(guided)

    def check_history(self) -> None:
        """Rule 23."""
        for index, row in enumerate(self.program.rows):
            for what, coefficients in (("x", row.update.x), ("e", row.update.e)):
                if len(coefficients) > index + 1:
                    refuse("history", f"row {index} has {len(coefficients)} coefficients '{what}'; at most {index + 1}")


def _need(needed: bool) -> str:
    return "need" if needed else "do not use"


def _text(shape: Sequence[Size]) -> str:
    return f"[{', '.join(map(str, shape))}]"
