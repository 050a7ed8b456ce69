"""Cases of what a manifest's keys may hold (step 4), and of what must hold between them (section 7, rule by rule)."""

from __future__ import annotations

from typing import Any

from tests.hostile_changes import Case, Change, append, both, drop, list_only, put, raw, rewrite, text, unlist
from tests.valid_bundle import LATENT

ARTIFACT = "graphs.full.artifacts.onnxruntime"
ROW = "programs.main.rows"
READ = {"graph": "shallow", "guidance": 3.0, "timestep": 0.0, "update": {"x": [1.0], "e": [-0.1]}}
CLIP = {"x": 1.0, "e": 1.0, "limit": 1.0, "weight": 1.0}


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def graph(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """A graph that no backend has: enough for a manifest."""
    return {"component": "stage", "inputs": inputs, "outputs": outputs}


def stage(name: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **spec: Any) -> Change:
    """Adds a graph, and the part of the manifest that runs it."""
    key = spec.pop("key", name)
    return both(put(f"graphs.{name}", graph(inputs, outputs)), put(key, {"graph": name, **spec}))


def picture(size: tuple[int, int] = (16, 16), mean: tuple[int, ...] = LATENT, **changes: Any) -> Change:
    """An encoder of pictures."""
    outputs = [tensor("mean", 1, *mean), tensor("deviation", 1, *changes.pop("deviation", mean))]
    spec = {"input": "pixels", "mean": "mean", "deviation": "deviation", "size": list(size), **changes}
    inputs = [tensor("pixels", *changes.get("shape", (1, 3, 16, 16)))]
    spec.pop("shape", None)
    return stage("vae_encoder", inputs, outputs, key="picture", **spec)


def classes(count: int = 10, **others: Any) -> Change:
    """Classes in the place of text."""
    change = put("conditions.encoder_hidden_states", {"from": "class", "count": count, **others})
    shape = ["batch"]
    specs = [
        put(f"graphs.{name}.inputs.2", {"name": "encoder_hidden_states", "dtype": "int64", "shape": shape})
        for name in ("full", "shallow")
    ]
    return both(change, *specs, put("programs.main.takes", ["prompt"]))


def guidance(**scale: Any) -> Change:
    return put("programs.main.guidance", {"scale": 3.0, "low": 1.0, "high": 8.0, **scale})


def extra(source: dict[str, Any], *shape: int | str, dtype: str = "float32") -> Change:
    """One more input of both denoiser graphs, and where it comes from."""
    spec = tensor("more", *shape, dtype=dtype)
    return both(
        append("graphs.full.inputs", spec), append("graphs.shallow.inputs", spec), put("conditions.more", source)
    )


STATED = both(
    put(f"{ARTIFACT}.states", {"cache_out_mid": "mid"}),
    put("graphs.shallow.artifacts.onnxruntime.states", {"cache_in_mid": "mid"}),
    put("graphs.shallow.artifacts.onnxruntime.file", "onnxruntime/unet/full.onnx"),
)
SECOND_CARRY = both(
    put("carries.low", {"dtype": "float32", "shape": ["batch", 2, 4, 4]}),
    append("graphs.full.outputs", tensor("cache_out_low", "batch", 2, 4, 4)),
    append("graphs.shallow.inputs", tensor("cache_in_low", "batch", 2, 4, 4)),
    put("graphs.full.carries_out.low", "cache_out_low"),
    put("graphs.shallow.carries_in.low", "cache_in_low"),
)
SAFETY = {"key": "safety", "input": "seen", "output": "score", "threshold": 0.5}
SCORE = [tensor("score", 1, 1)]
COLOURS = [[0.1, 0.2, 0.3]] * 4

KEY_CASES = (
    # Step 4: keys and values
    ("unknown_key", "unknown_key", "did you mean 'graphs'", put("graphz", {})),
    ("unknown_key_inside", "unknown_key", "did you mean 'guidance'", put(f"{ROW}.0.guidanse", 3.0)),
    ("unknown_key_newer", "unknown_key", "schema 2.7, which is newer", both(put("schema_version", "2.7"), put("s", 3))),
    ("unknown_key_version_1", "unknown_key", "unknown key 'program'", put("program", {})),
    (
        "unknown_key_of_condition",
        "unknown_key",
        "unknown key 'conditions.sample.empty' (allowed: from)",
        put("conditions.sample.empty", "zeros"),
    ),
    ("known_before_unknown", "value", "programs.main.steps", both(put("a", 1), put("programs.main.steps", True))),
    ("first_key_first", "unknown_key", "graphs.full.a", both(put("graphs.full.a", 1), put("default", 3))),
    ("item_before_length", "path", "chunks", put(f"{ARTIFACT}.chunks", [*(["plan.json"] * 65), "../x"])),
    ("missing_key", "value", "'programs' is missing", drop("programs")),
    ("missing_condition", "value", "from", drop("conditions.sample.from")),
    ("condition_by_another_name", "value", "from", put("conditions.sample", {"source": "latent"})),
    ("condition_twice", "unknown_key", "source", put("conditions.sample.source", "latent")),
    ("condition_named_otherwise", "unknown_key", "source", put("conditions.sample.source", "class")),
    ("condition_unknown", "value", "conditions.sample", put("conditions.sample.from", "noise")),
    ("null_for_required", "value", "default", put("default", None)),
    ("null_for_default", "value", "rng", put("rng", None)),
    ("no_rows", "value", ROW, put(ROW, [])),
    ("no_programs", "value", "programs", put("programs", {})),
    ("no_files", "value", "files", put("files", [])),
    ("text_for_number", "value", "files.0.bytes", put("files.0.bytes", "15")),
    ("true_for_number", "value", "programs.main.steps", put("programs.main.steps", True)),
    ("true_for_coefficient", "value", "timestep", put(f"{ROW}.0.timestep", True)),
    ("fraction_for_integer", "value", "programs.main.steps", text('"steps": 4', '"steps": 4.0')),
    ("exponent_for_integer", "value", "programs.main.steps", text('"steps": 4', '"steps": 4e0')),
    ("negative_size", "value", "files.0.bytes", put("files.0.bytes", -1)),
    ("size_2_53", "value", "files.0.bytes", put("files.0.bytes", 2**53)),
    ("short_hash", "value", "files.0.sha256", put("files.0.sha256", "abc")),
    ("capital_hash", "value", "files.0.sha256", put("files.0.sha256", "A" * 64)),
    ("unknown_makes", "value", "makes", put("makes", "film")),
    ("unknown_rng", "value", "rng", put("rng", "xorshift")),
    ("unknown_precision", "value", "precision", put(f"{ARTIFACT}.precision", "int8")),
    ("unknown_dtype", "value", "dtype", put("graphs.full.inputs.0.dtype", "float64")),
    ("source_denoiser", "value", "source.denoiser.folder", put("source.denoiser", {"folder": 3, "weights": "0"})),
    ("name_empty", "value", "name", put("name", "")),
    ("name_long", "value", "name", put("name", "x" * 201)),
    ("name_control", "value", "no control characters", put("name", "red\npanda")),
    ("name_of_graph", "value", "graphs", put("graphs.\x7f", graph([tensor("a")], [tensor("b")]))),
    ("number_large", "value", "scale", put("decoder.scale", 1.1e30)),
    ("steps_0", "value", "programs.main.steps", put("programs.main.steps", 0)),
    ("strength_0", "value", "strength", put("programs.main.strength", 0)),
    ("strength_above_1", "value", "strength", put("programs.main.strength", 1.5)),
    ("clip_limit_0", "value", "limit", put(f"{ROW}.1.update.clip", {**CLIP, "limit": 0.0})),
    ("guidance_word", "value", "'programs.main.rows.0.guidance' = 'asked'", put(f"{ROW}.0.guidance", "asked")),
    ("guidance_range", "value", "guidance.high", guidance(high=1001)),
    ("mix_empty", "value", "mix", put(f"{ROW}.1.mix", {"mid": []})),
    ("held_empty", "value", "held.weights", put(f"{ROW}.3.held", {"weights": []})),
    ("held_unknown", "value", "held.times", put(f"{ROW}.3.held", {"weights": [1.0], "times": "two"})),
    ("batch_twice", "value", "stands once", put("graphs.full.inputs.0.shape", ["batch", "batch", 8, 8])),
    ("shape_long", "value", "shape", put("graphs.full.inputs.0.shape", [1] * 7)),
    ("shape_0", "value", "shape", put("graphs.full.inputs.0.shape", [1, 0, 8, 8])),
    ("shape_large", "value", "elements", put("graphs.full.inputs.0.shape", ["batch", 4, 2**13, 2**13])),
    ("latent_of_one", "value", "latent", put("programs.main.latent", [4])),
    ("takes_unknown", "value", "takes", put("programs.main.takes", ["prompt", "sound"])),
    ("rate_0", "value", "sample_rate", put("decoder.sample_rate", 0)),
    ("weights_of_two", "value", "preview.weights", put("preview", {"weights": [[1, 2]] * 4, "bias": [0, 0, 0]})),
    ("tokenizer_kind", "value", "tokenizers.clip.kind", put("tokenizers.clip.kind", "unigram")),
    ("tokenizer_length", "value", "tokenizers.clip.length", put("tokenizers.clip.length", 1)),
    ("added_no_ids", "value", "ids", put("tokenizers.clip.added.0.ids", [])),
    ("added_id_large", "value", "ids", put("tokenizers.clip.added.0.ids", [2**24 + 1])),
    ("evidence_list", "value", "evidence", put("evidence", [])),
    # Step 4: paths
    ("path_absolute", "path", "never leaves it", list_only("/etc/passwd")),
    ("path_parent", "path", "never leaves it", list_only("../outside.bin")),
    ("path_parent_inside", "path", "never leaves it", list_only("tokenizer/../../outside.bin")),
    ("path_dot", "path", "never leaves it", list_only("tokenizer/./vocab.json")),
    ("path_double_slash", "path", "never leaves it", list_only("tokenizer//vocab.json")),
    ("path_last_slash", "path", "never leaves it", list_only("tokenizer/")),
    ("path_empty", "path", "characters", list_only("")),
    ("path_long", "path", "1 to 400", list_only("x" * 401)),
    ("path_backslash", "path", "characters", list_only("..\\outside.bin")),
    ("path_drive", "path", "characters", list_only("C:outside.bin")),
    ("path_nul", "path", "characters", list_only("a.onnx\0.txt")),
    ("path_line", "path", "characters", list_only("a.onnx\n")),
    ("path_space", "path", "characters", list_only("a b.onnx")),
    ("path_unicode", "path", "characters", list_only("caf\u00e9")),
    ("path_artifact", "path", "never leaves it", put(f"{ARTIFACT}.file", "../full.onnx")),
    ("path_data", "path", "never leaves it", put(f"{ARTIFACT}.data", ["/dev/zero"])),
    ("path_chunk", "path", "never leaves it", put(f"{ARTIFACT}.chunks", ["a/../../b"])),
    ("path_vocab", "path", "never leaves it", put("tokenizers.clip.vocab", "..")),
    ("path_plan", "path", "never leaves it", put("plan", "../plan.json")),
)

BETWEEN_CASES = (
    # 1, 2: files
    ("path_case", "path", "one file where case is ignored", list_only("PLAN.json")),
    ("path_twice", "path", "one file where case is ignored", list_only("plan.json")),
    ("file_manifest", "file", "its own hash", list_only("manifest.json")),
    ("file_manifest_capitals", "file", "its own hash", list_only("Manifest.JSON")),
    ("file_plan", "file", "plan needs 'plan.json'", both(unlist("plan.json"), raw("plan.json", None))),
    ("file_artifact", "file", "onnxruntime/weights.bin", unlist("onnxruntime/weights.bin")),
    ("file_vocab", "file", "'vocabulary'", put("tokenizers.clip.vocab", "vocabulary")),
    ("file_vocab_folder", "file", "'tokenizer'", put("tokenizers.clip.vocab", "tokenizer")),
    ("file_merges", "file", "tokenizer/merges.txt", both(unlist("tokenizer/merges.txt"))),
    ("file_chunk", "file", "unet/rest.onnx", put(f"{ARTIFACT}.chunks", ["onnxruntime/unet/rest.onnx"])),
    # 3, 4: tensors and carries
    ("tensor_input_twice", "tensor", "two tensors", put("graphs.full.inputs.1.name", "sample")),
    ("tensor_output_twice", "tensor", "two tensors", put("graphs.full.outputs.1.name", "noise_pred")),
    (
        "tensor_twice_before_carry",
        "tensor",
        "graph 'shallow' has two tensors",
        both(put("graphs.shallow.inputs.1.name", "sample"), put("graphs.full.carries_out.low", "cache_out_mid")),
    ),
    ("tensor_carry", "tensor", "'mid'", put("graphs.full.carries_out.mid", "mid")),
    ("carry_unknown", "carry", "unknown carry 'low'", put("graphs.full.carries_out.low", "cache_out_mid")),
    ("carry_shape", "carry", "differ in type or shape", put("carries.mid.shape", ["batch", 9, 4, 4])),
    ("carry_dtype", "carry", "differ in type or shape", put("carries.mid.dtype", "float16")),
    (
        "carry_tensor_twice",
        "carry",
        "is two carries",
        both(
            put("carries.low", {"dtype": "float32", "shape": ["batch", 2, 4, 4]}),
            put("graphs.full.carries_out.low", "cache_out_mid"),
        ),
    ),
    # 5: states
    ("state_stranger", "carry", "is no carry of it", put(f"{ARTIFACT}.states", {"noise_pred": "mid"})),
    ("state_of_one", "carry", "and not for others", put(f"{ARTIFACT}.states", {"cache_out_mid": "mid"})),
    ("state_of_two_files", "carry", "and not for others", both(STATED, put(f"{ARTIFACT}.file", "plan.json"))),
    (
        "state_of_two_carries",
        "carry",
        "two carries are in one state",
        both(
            SECOND_CARRY,
            STATED,
            put(f"{ARTIFACT}.states", {"cache_out_mid": "mid", "cache_out_low": "mid"}),
            put("graphs.shallow.artifacts.onnxruntime.states", {"cache_in_mid": "mid", "cache_in_low": "mid"}),
        ),
    ),
    ("state_mixed", "carry", "its newest value only", both(STATED, put(f"{ROW}.1.mix.mid", [0.5]))),
    # 6: encoders
    ("encoder_tokenizer", "tokenizer", "did you mean 'clip'", put("encoders.text.tokenizer", "clp")),
    ("encoder_graph", "graph", "'text_enc'", put("encoders.text.graph", "text_enc")),
    ("encoder_ids", "tensor", "'ids'", put("encoders.text.ids", "ids")),
    ("encoder_mask", "tensor", "'mask'", put("encoders.text.mask", "mask")),
    ("encoder_length", "shape", "a text is [1, 7]", put("tokenizers.clip.length", 7)),
    ("encoder_float_ids", "shape", "whole numbers", put("graphs.text_encoder.inputs.0.dtype", "float32")),
    ("encoder_fed_by_nothing", "tensor", "nothing feeds", append("graphs.text_encoder.inputs", tensor("m", 1, 6))),
    (
        "encoder_mask_shape",
        "shape",
        "a text is [1, 6]",
        both(append("graphs.text_encoder.inputs", tensor("m", 1, 7)), put("encoders.text.mask", "m")),
    ),
    # 7: conditions
    ("condition_encoder", "condition", "'t5'", put("conditions.encoder_hidden_states.outputs.0.encoder", "t5")),
    ("condition_output", "tensor", "'pooled'", put("conditions.encoder_hidden_states.outputs.0.output", "pooled")),
    ("condition_mask_encoder", "condition", "'t5'", put("conditions.m", {"from": "text_mask", "encoder": "t5"})),
    ("classes_null", "condition", "null = 11", put("conditions.c", {"from": "class", "count": 10, "null": 11})),
    (
        "classes_names",
        "condition",
        "1 names",
        put("conditions.c", {"from": "class", "count": 2, "names": ["cat"]}),
    ),
    (
        "classes_names_twice",
        "condition",
        "3 names, 2 of them different",
        put("conditions.c", {"from": "class", "count": 2, "names": ["cat", "dog", "cat"]}),
    ),
    # 8: decoder
    ("decoder_half", "decoder", "or none of them", drop("decoder.output")),
    ("decoder_graph", "graph", "'vae'", put("decoder.graph", "vae")),
    ("decoder_input", "tensor", "'x'", put("decoder.input", "x")),
    ("decoder_output", "tensor", "'x'", put("decoder.output", "x")),
    ("decoder_two_inputs", "tensor", "nothing feeds", append("graphs.vae_decoder.inputs", tensor("time", 1))),
    ("rate_of_pictures", "decoder", "that is of sound", put("decoder.sample_rate", 8000)),
    ("no_rate_of_sound", "decoder", "needs the decoder's sample_rate", put("makes", "audio")),
    # 9, 10: pictures, safety, preview
    ("picture_graph", "graph", "'nowhere'", both(picture(), put("picture.graph", "nowhere"))),
    ("picture_input", "tensor", "'x'", both(picture(), put("picture.input", "x"))),
    ("picture_mean", "tensor", "'x'", both(picture(), put("picture.mean", "x"))),
    ("picture_deviation", "tensor", "'x'", both(picture(), put("picture.deviation", "x"))),
    (
        "picture_two_inputs",
        "tensor",
        "nothing feeds",
        both(picture(), append("graphs.vae_encoder.inputs", tensor("t"))),
    ),
    (
        "safety_graph",
        "graph",
        "'nowhere'",
        put("safety", {"graph": "nowhere", "input": "z", "output": "s", "threshold": 1}),
    ),
    (
        "safety_output",
        "tensor",
        "'scor'",
        stage("nsfw", [tensor("seen", 1, 3, 16, 16)], SCORE, **{**SAFETY, "output": "scor"}),
    ),
    ("preview_nothing", "preview", "not both", put("preview", {})),
    ("preview_half", "preview", "not both", put("preview", {"weights": COLOURS})),
    (
        "preview_both",
        "preview",
        "not both",
        put("preview", {"weights": COLOURS, "bias": [0, 0, 0], "graph": "vae_decoder"}),
    ),
    ("preview_graph", "graph", "'nowhere'", put("preview", {"graph": "nowhere", "input": "z", "output": "image"})),
    ("preview_output", "tensor", "'img'", put("preview", {"graph": "vae_decoder", "input": "z", "output": "img"})),
    ("picture_size", "shape", "not [1, 3, 8, 16]", picture(size=(8, 16))),
    ("picture_channels", "shape", "not [1, 3, 16, 16]", picture(shape=(1, 4, 16, 16))),
    ("picture_deviation_shape", "shape", "differ in shape", picture(deviation=(1, 8, 8))),
    ("safety_shape", "shape", "not what is decoded", stage("nsfw", [tensor("seen", 1, 3, 8, 8)], SCORE, **SAFETY)),
    # 11, 13, 14
    ("default_unknown", "program", "'quality'", put("default", "quality")),
    ("no_graph", "graph", "no row runs a graph", put(ROW, [{**READ, "graph": None}])),
    ("graph_row", "graph", "did you mean 'shallow'", put(f"{ROW}.1.graph", "shalow")),
    ("graph_of_second_program", "graph", "program 'fast'", put("programs.fast.rows.1.graph", "shalow")),
    (
        "condition_missing",
        "condition",
        "'encoder_hidden_states', which has no",
        drop("conditions.encoder_hidden_states"),
    ),
    ("condition_two_latents", "condition", "reads 2 latents", extra({"from": "latent"}, "batch", *LATENT)),
    ("condition_no_latent", "condition", "reads 0 latents", put("conditions.sample", {"from": "timestep"})),
    ("condition_two_times", "condition", "one time", extra({"from": "timestep"}, 1)),
    ("two_predictions", "tensor", "2 outputs", append("graphs.full.outputs", tensor("variance", "batch", *LATENT))),
    ("no_prediction", "tensor", "0 outputs", put("graphs.full.outputs", [tensor("cache_out_mid", "batch", 2, 4, 4)])),
    # 15
    ("sample_shape", "shape", "'sample'", put("graphs.full.inputs.0.shape", ["batch", 4, 8, 9])),
    ("sample_dtype", "shape", "'sample'", put("graphs.full.inputs.0.dtype", "int32")),
    ("sample_no_batch", "shape", "has no batch", put("graphs.full.inputs.0.shape", [1, 4, 8, 8])),
    ("timestep_shape", "shape", "'timestep'", put("graphs.full.inputs.1.shape", [])),
    ("timestep_dtype", "shape", "'timestep'", put("graphs.full.inputs.1.dtype", "int64")),
    ("text_shape", "shape", "'encoder_hidden_states'", put("graphs.full.inputs.2.shape", ["batch", 6, 5])),
    ("prediction_shape", "shape", "puts out", put("graphs.full.outputs.0.shape", ["batch", 4, 8, 9])),
    ("prediction_no_batch", "shape", "puts out", put("graphs.full.outputs.0.shape", [1, 4, 8, 8])),
    ("constant_length", "shape", "'more'", extra({"from": "constant", "values": [1.0, 2.0]}, "batch", 3)),
    ("constant_batch", "shape", "'more'", extra({"from": "constant", "values": [1.0]}, 1, "batch")),
    ("constant_empty", "shape", "'more'", extra({"from": "constant", "values": [1.0], "empty": [1, 2]}, "batch", 1)),
    ("class_dtype", "shape", "'more'", extra({"from": "class", "count": 3, "null": 3}, "batch")),
    ("text_mask_shape", "shape", "'more'", extra({"from": "text_mask", "encoder": "text"}, "batch", 7)),
    ("guidance_shape", "shape", "'more'", extra({"from": "guidance"}, "batch", 1)),
    ("mask_shape", "shape", "'more'", extra({"from": "mask"}, "batch", 1, 16, 16)),
    ("picture_shape", "shape", "'more'", both(picture(), extra({"from": "picture"}, "batch", 3, 8, 8))),
    (
        "texts_do_not_join",
        "shape",
        "'encoder_hidden_states'",
        both(
            append("graphs.text_encoder.outputs", tensor("pooled", 1, 4)),
            append("conditions.encoder_hidden_states.outputs", {"encoder": "text", "output": "pooled"}),
        ),
    ),
    # 16
    ("latent_of_another_size", "shape", "'sample'", put("programs.main.latent", [4, 8, 16])),
    ("decoder_shape", "shape", "the decoder reads", put("graphs.vae_decoder.inputs.0.shape", [1, 4, 4, 4])),
    ("decoded_channels", "shape", "1 or 3 channels", put("graphs.vae_decoder.outputs.0.shape", [1, 4, 16, 16])),
    ("decoded_sound", "shape", "channels and samples", both(put("makes", "audio"), put("decoder.sample_rate", 8000))),
    ("preview_channels", "shape", "3 channels", put("preview", {"weights": COLOURS[:3], "bias": [0, 0, 0]})),
    (
        "preview_input",
        "shape",
        "the preview reads",
        stage("small", [tensor("z", 1, 4, 8, 9)], [tensor("rgb", 1, 3, 8, 8)], key="preview", input="z", output="rgb"),
    ),
    (
        "preview_result",
        "shape",
        "the preview puts out",
        stage("small", [tensor("z", 1, *LATENT)], [tensor("rgb", 1, 4, 8, 8)], key="preview", input="z", output="rgb"),
    ),
    # 17, 18
    ("takes_twice", "takes", "one thing twice", put("programs.main.takes", ["prompt", "prompt"])),
    ("takes_no_prompt", "takes", "takes no prompt", put("programs.main.takes", ["negative_prompt"])),
    ("takes_negative", "takes", "negative_prompt", put("programs.fast.takes", ["prompt", "negative_prompt"])),
    ("takes_picture", "takes", "takes picture", append("programs.main.takes", "picture")),
    ("takes_no_picture", "takes", "takes no picture", put("programs.main.init.picture", 0.5)),
    ("takes_mask", "takes", "takes mask", append("programs.main.takes", "mask")),
    (
        "takes_no_mask",
        "takes",
        "takes no mask",
        both(put(f"{ROW}.0.blend", {"picture": 1.0, "noise": 0.0}), append("programs.main.takes", "picture")),
    ),
    (
        "no_picture_encoder",
        "takes",
        "no encoder of pictures",
        both(put("programs.main.init.picture", 0.5), append("programs.main.takes", "picture")),
    ),
    (
        "picture_latent",
        "shape",
        "the encoder of pictures puts out",
        both(
            picture(mean=(4, 4, 4)),
            put("programs.main.init.picture", 0.5),
            append("programs.main.takes", "picture"),
        ),
    ),
    # 19, 20
    ("guidance_outside", "guidance", "lies outside", guidance(low=4.0)),
    (
        "guidance_embedded_outside",
        "guidance",
        "embedded",
        put("programs.main.embedded_guidance", {"scale": 9, "low": 1, "high": 8}),
    ),
    (
        "guidance_asked",
        "guidance",
        "states none",
        both(put(f"{ROW}.0.guidance", "scale"), drop("programs.main.guidance")),
    ),
    (
        "guidance_asked_by_held",
        "guidance",
        "states none",
        both(
            put(f"{ROW}.3.held", {"weights": [1.0], "times": "scale_minus_one"}),
            drop("programs.main.guidance"),
        ),
    ),
    ("guidance_embedded", "guidance", "no embedded_guidance", extra({"from": "guidance"}, "batch")),
    ("guidance_no_null", "guidance", "no class of no class", classes()),
    (
        "guidance_from_nothing",
        "guidance",
        "no text",
        both(
            put("conditions.encoder_hidden_states", {"from": "constant", "values": [0.5] * 24}),
            put("programs.main.takes", []),
        ),
    ),
    # 21
    (
        "hold_first",
        "carry_before_write",
        "before any graph has run",
        both(put(f"{ROW}.0.graph", None), put(f"{ROW}.0.guidance", None)),
    ),
    ("hold_guided", "guidance", "runs no graph, but has guidance", put(f"{ROW}.2.guidance", 3.0)),
    ("hold_held", "guidance", "runs no graph, but has guidance", put(f"{ROW}.2.held", {"weights": [1.0]})),
    ("hold_mixes", "carry", "runs no graph, but mixes", put(f"{ROW}.2.mix.mid", [1.0])),
    ("held_guided", "guidance", "has its own", put(f"{ROW}.1.held", {"weights": [3.0]})),
    (
        "held_first",
        "carry_before_write",
        "of 0",
        both(put(f"{ROW}.0.guidance", None), put(f"{ROW}.0.held", {"weights": [3.0]})),
    ),
    ("held_many", "carry_before_write", "of 3 rows, of 2", put(f"{ROW}.3.held", {"weights": [3.0, 1.0, 1.0]})),
    # 22
    ("mix_unread", "carry", "does not read", put(f"{ROW}.0.mix.mid", [1.0])),
    ("mix_early", "carry_before_write", "mixes 2 values of 'mid', of 1", put(f"{ROW}.1.mix.mid", [2.0, -1.0])),
    ("carry_first", "carry_before_write", "before it is written", put(f"{ROW}.0", READ)),
    ("carry_guidance", "carry", "written without guidance", put(f"{ROW}.0.guidance", None)),
    (
        "carry_in_order",
        "carry",
        "'mid' was written without guidance",
        both(
            SECOND_CARRY,
            put("graphs.full.carries_out", {"mid": "cache_out_mid"}),
            drop("graphs.full.outputs.2"),
            put(f"{ROW}.0.guidance", None),
        ),
    ),
    # 23
    ("history", "history", "row 1", put(f"{ROW}.1.update.e", [1.0, 1.0, 1.0])),
    ("history_x", "history", "row 0", put(f"{ROW}.0.update.x", [1.0, 0.0])),
    ("history_of_second_program", "history", "program 'fast'", put("programs.fast.rows.0.update.e", [1.0, 1.0])),
    (
        "program_order",
        "history",
        "program 'main'",
        both(put(f"{ROW}.0.update.x", [1.0, 0.0]), put("programs.fast.takes", [])),
    ),
)

PLAIN = b'{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}\n'
NINES = "9" * 5000
FOUND_CASES = (
    # What an earlier version of the format got wrong, as the same mutation of this one
    ("manifest-classes_both", "value", "null", put("conditions.c", {"from": "class", "count": 4, "null": 10**30})),
    ("manifest-dec_none", "shape", "1 or 3 channels", put("decoder", {})),
    (
        "manifest-encgraph_vae",
        "shape",
        "a text is",
        both(
            put("encoders.text", {"tokenizer": "clip", "graph": "vae_decoder", "ids": "z"}),
            put("conditions.encoder_hidden_states.outputs", [{"encoder": "text", "output": "image"}]),
        ),
    ),
    ("manifest-lat_188", "shape", "'sample'", put("programs.main.latent", [1, 8, 8])),
    ("manifest-lat_88", "shape", "'sample'", put("programs.main.latent", [8, 8])),
    ("manifest-lat_mid", "value", "latent", put("programs.main.latent", [1, 20000, 20000])),
    ("manifest-len2e9", "value", "length", put("tokenizers.clip.length", 2 * 10**9)),
    ("manifest-s_huge", "value", "latent", put("programs.main.latent", [100000, 100000, 1000])),
    ("manifest-s_neg", "value", "latent", put("programs.main.latent", [-4, 8, 8])),
    ("manifest-s_scal", "value", "latent", put("programs.main.latent", [])),
    ("manifest-steps_huge", "syntax", "a number of 4001 characters", put("programs.main.steps", 10**4000)),
    (
        "disagree-11617",
        "syntax",
        "nested",
        text('"evidence": {}', '"evidence": {"p": ' + '{"a": ' * 250 + "1" + "}" * 251),
    ),
    (
        "disagree-18464",
        "syntax",
        "a number of 4301 characters",
        text('"timestep": 750.0', f'"timestep": -{"9" * 4300}'),
    ),
    ("disagree-37097", "value", "steps", put("programs.main.steps", 2**64 - 1)),
    ("disagree-4921", "value", "length", put("tokenizers.clip.length", 6 * 10**23)),
    ("disagree-7865", "value", "files.4.bytes", put("files.4.bytes", 2**63)),
    ("tokenizer-cfg_bigint", "syntax", "a number of 5000", text('"length": 6', f'"length": {NINES}')),
    ("tokenizer-cfg_dec_list", "value", "added.0", put("tokenizers.clip.added", [1])),
    ("tokenizer-cfg_dec_str", "value", "added", put("tokenizers.clip.added", "x")),
    ("tokenizer-cfg_pad_false", "value", "pad", put("tokenizers.clip.pad", False)),
    ("tokenizer-cfg_special_str", "value", "normalized", put("tokenizers.clip.added.0.normalized", "x")),
    ("tokenizer-cfg_sw_str", "value", "single_word", put("tokenizers.clip.added.0.single_word", "x")),
    ("tokenizer-merges_cr", "tokenizer", "carriage return", rewrite("tokenizer/merges.txt", b"#version\ra b")),
    ("tokenizer-merges_crlf", "tokenizer", "carriage return", rewrite("tokenizer/merges.txt", b"#version\r\n")),
    (
        "tokenizer-vocab_2e32",
        "tokenizer",
        "4294967296",
        rewrite("tokenizer/vocab.json", PLAIN.replace(b"0", b"4294967296")),
    ),
    (
        "tokenizer-vocab_big_int",
        "tokenizer",
        "5000",
        rewrite("tokenizer/vocab.json", PLAIN.replace(b"0", NINES.encode())),
    ),
    (
        "tokenizer-vocab_dup",
        "tokenizer",
        "given twice",
        rewrite("tokenizer/vocab.json", PLAIN.replace(b"{", b'{"a</w>": 3, ')),
    ),
    (
        "tokenizer-vocab_surrogate",
        "tokenizer",
        "surrogate",
        rewrite("tokenizer/vocab.json", PLAIN.replace(b"{", b'{"\\ud800": 5, ')),
    ),
)

TOKENIZER_CASES = (
    ("vocab_list", "tokenizer", "holds a list", rewrite("tokenizer/vocab.json", b"[1]")),
    ("vocab_empty", "tokenizer", "holds no tokens", rewrite("tokenizer/vocab.json", b"{}")),
    ("vocab_cut", "tokenizer", "is not JSON", rewrite("tokenizer/vocab.json", PLAIN[:-4])),
    ("vocab_id_twice", "tokenizer", "the same id", rewrite("tokenizer/vocab.json", PLAIN.replace(b"0", b"1"))),
    ("vocab_id_text", "tokenizer", "has id '0'", rewrite("tokenizer/vocab.json", PLAIN.replace(b"0", b'"0"'))),
    ("vocab_id_fraction", "tokenizer", "has id 0.0", rewrite("tokenizer/vocab.json", PLAIN.replace(b"0", b"0.0"))),
    ("vocab_bom", "tokenizer", "byte-order", rewrite("tokenizer/vocab.json", b"\xef\xbb\xbf" + PLAIN)),
    ("merges_unknown", "tokenizer", "line 2", rewrite("tokenizer/merges.txt", b"#version: 0.2\nt h\n")),
    ("merges_empty_line", "tokenizer", "line 1", rewrite("tokenizer/merges.txt", b"\n")),
    ("merges_not_utf8", "tokenizer", "UTF-8", rewrite("tokenizer/merges.txt", b"\xff\n")),
    ("unknown_token", "tokenizer", "is not in this vocabulary", put("tokenizers.clip.unknown", "<unk>")),
    ("pad_token", "tokenizer", "nor added", put("tokenizers.clip.pad", "<pad>")),
    ("begin_of_two", "tokenizer", "no one token", put("tokenizers.clip.added.0.ids", [1, 2])),
)

RULE_CASES = tuple(Case(*row) for row in (*KEY_CASES, *BETWEEN_CASES, *FOUND_CASES, *TOKENIZER_CASES))
