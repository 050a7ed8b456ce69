"""Rules 13 to 23 of section 7 of `docs/format.md`: what must hold in one program, in the page's order."""

from __future__ import annotations

import math

from edgediff.runtime.fields import Size
from edgediff.runtime.manifest import (
    BATCH,
    SCALE,
    Classes,
    Condition,
    Constant,
    Graph,
    Manifest,
    Program,
    TensorSpec,
    Text,
    TextMask,
)
from edgediff.runtime.refusing import FLOATS, Shape, find_graph, find_named, refuse, shown


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
                    f"'{spec.name}' of graph '{name}' is {spec.dtype} {shown(spec.shape)}, which its "
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
                "shape",
                f"graph '{name}' puts out {shown(prediction.shape)}; the latent is {list(self.program.latent)}",
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
                refuse("shape", f"the decoder reads {shown(read.shape)}; the latent is {list(self.program.latent)}")
            result = find_named(decoder.graph, graph.outputs, decoder.output).shape[1:]
        if self.manifest.makes == "image" and (len(result) != 3 or result[0] not in (1, 3)):
            refuse("shape", f"what is decoded is {shown(result)}; a picture has 1 or 3 channels, height and width")
        if self.manifest.makes == "audio" and len(result) != 2:
            refuse("shape", f"what is decoded is {shown(result)}; a sound has channels and samples")
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
                refuse("shape", f"the preview reads {shown(read.shape)}; the latent is {list(self.program.latent)}")
            if len(made) != 4 or made[1] not in (1, 3):
                refuse("shape", f"the preview puts out {shown(made)}; a picture has 1 or 3 channels, height and width")
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
            refuse("shape", f"the encoder of pictures puts out {shown(mean.shape)}; the latent is {latent}")

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
