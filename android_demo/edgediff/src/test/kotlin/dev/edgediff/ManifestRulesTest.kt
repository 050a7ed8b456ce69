package dev.edgediff

import kotlin.test.Test
import kotlin.test.assertEquals

/** A sound manifest with one change, and the code of the rule that it breaks: sections 2 to 7 of docs/format.md. */
class ManifestRulesTest {
    @Test
    fun `each rule has its code`() {
        val wrong = CHANGES.mapNotNull { (place, code, json) ->
            val (case, path) = place.split(":")
            val have = codeOf { Manifest.read(changed(case, path.split("."), json).toByteArray()) }
            if (have == code) null else "$place = $json: $have, not $code"
        }
        assertEquals(emptyList(), wrong)
    }

    @Test
    fun `the first fault of several counts`() {
        val text = changed("asked", listOf("name"), "3").replaceFirst("\"graphs\"", "\"graph\"")
        assertEquals("value", codeOf { Manifest.read(text.toByteArray()) })
        assertEquals("value", codeOf { Manifest.read("[]".toByteArray()) })
        assertEquals("version", codeOf { Manifest.read("{}".toByteArray()) })
        val later = changed("asked", listOf("schema_version"), "\"2.1\"")
        assertEquals("no error", codeOf { Manifest.read(later.toByteArray()) })
    }

    /** An absent [json] takes the key away; `{"copy": k}` gives what its neighbour [k] has. */
    private fun changed(case: String, path: List<String>, json: String?): String {
        val tree = parseJson(writeJson(Programs.case(case)["manifest"].value), "m")
        var parent: Any? = tree
        for (key in path.dropLast(1)) parent = if (parent is JsonList) parent[key.toInt()] else (parent as JsonObject)[key]
        val last = path.last()
        val value = json?.let { parseJson(it, "m") }
        when (parent) {
            is JsonList -> if (json == null) parent.removeAt(last.toInt()) else parent[last.toInt()] = value
            is JsonObject -> if (json == null) parent.remove(last) else parent[last] = value
        }
        return writeJson(tree)
    }

    private companion object {
        fun change(place: String, code: String, json: String? = null) = Triple(place, code, json)

        val CHANGES = listOf(
            change("asked:schema_version", "version", "\"1.0\""), change("asked:schema_version", "version", "\"2.01\""),
            change("asked:schema_version", "version", "2.0"), change("asked:extra", "unknown_key", "1"),
            change("asked:name", "value", "\"a\\u0001\""), change("asked:evidence", "value", "null"),
            change("asked:default", "value"), change("asked:safety", "no error", "null"), change("asked:plan", "path", "\"../p\""),
            change("asked:programs.fast.steps", "value", "6.0"), change("asked:programs.fast.steps", "value", "10001"),
            change("asked:programs.fast.rows.0.guidance", "value", "\"scales\""),
            change("asked:programs.fast.rows.0.timestep", "value", "true"),
            change("asked:programs.fast.rows.0.timestep", "value", "1.1e30"),
            change("asked:graphs.full.inputs.0.shape", "value", "[\"batch\", \"batch\"]"),
            change("asked:graphs.full.inputs.0.shape", "value", "[1048576, 257]"),
            change("asked:conditions.ehs.from", "value", "\"texts\""), change("asked:conditions.sample.empty", "unknown_key", "1"),
            change("asked:files.1.path", "path", "\"Plan.json\""), change("asked:files.1.path", "file", "\"Manifest.json\""),
            change("asked:plan", "file", "\"plan\""), change("asked:graphs.vae.artifacts.onnxruntime.file", "file", "\"a\""),
            change("asked:graphs.vae.artifacts.onnxruntime.file", "no error", "\"tokenizer\""),
            change("asked:tokenizers.clip.vocab", "file", "\"tokenizer\""),
            change("asked:graphs.full.inputs.1.name", "tensor", "\"sample\""),
            change("asked:carries.mid.dtype", "carry", "\"float16\""), change("asked:carries", "carry", "{}"),
            change("asked:graphs.full.carries_out.mid", "tensor", "\"none\""),
            change("asked:graphs.full.artifacts.onnxruntime.states", "carry", "{\"out_mid\": \"s\"}"),
            change("asked:encoders.clip.tokenizer", "tokenizer", "\"x\""), change("asked:encoders.clip.graph", "graph", "\"x\""),
            change("asked:encoders.clip.ids", "tensor", "\"x\""), change("asked:tokenizers.clip.length", "shape", "9"),
            change("asked:encoders.clip.mask", "tensor"), change("asked:graphs.text_encoder.inputs.0.dtype", "shape", "\"float32\""),
            change("asked:conditions.ehs.outputs.0.encoder", "condition", "\"x\""),
            change("asked:conditions.ehs.outputs.0.output", "tensor", "\"x\""),
            change("inpaint:conditions.c.null", "condition", "4"), change("inpaint:conditions.c.names", "condition", "[\"a\"]"),
            change("inpaint:conditions.c.names", "condition", "[\"a\", \"b\", \"b\"]"),
            change("asked:decoder.graph", "decoder"), change("asked:decoder.graph", "graph", "\"x\""),
            change("asked:decoder.sample_rate", "decoder", "1"), change("asked:makes", "decoder", "\"audio\""),
            change("asked:safety.output", "tensor", "\"x\""), change("asked:preview.input", "preview"),
            change("joined:preview.bias", "preview"), change("inpaint:picture.size", "shape", "[16, 8]"),
            change("inpaint:graphs.enc.outputs.1.shape", "shape", "[1, 4, 8, 4]"), change("asked:safety.graph", "tensor", "\"vae\""),
            change("asked:default", "program", "\"none\""), change("asked:programs.fast.rows.0.graph", "graph", "\"x\""),
            change("joined:programs.p.rows", "graph", "[{\"timestep\": 1, \"update\": {\"x\": [], \"e\": []}}]"),
            change("asked:conditions.ehs", "condition"), change("asked:conditions.timestep.from", "condition", "\"latent\""),
            change("asked:graphs.full.carries_out", "tensor", "{}"), change("asked:programs.fast.latent", "shape", "[4, 8, 9]"),
            change("joined:conditions.sizes.values", "shape", "[1]"), change("joined:graphs.e1.outputs.0.shape", "shape", "[1, 8, 15]"),
            change("joined:graphs.unet.inputs.3.shape", "shape", "[1, 8]"), change("joined:graphs.unet.inputs.5.shape", "no error", "[1]"),
            change("asked:programs.fast.takes", "takes", "[]"), change("asked:programs.fast.takes", "takes", "[\"prompt\", \"prompt\"]"),
            change("asked:programs.fast.takes", "takes", "[\"prompt\", \"mask\"]"),
            change("inpaint:programs.inpaint.takes", "takes", "[\"prompt\", \"picture\", \"mask\", \"negative_prompt\"]"),
            change("inpaint:picture", "takes"), change("asked:programs.fast.guidance.low", "guidance", "8"),
            change("asked:programs.fast.guidance", "guidance"), change("joined:programs.p.embedded_guidance", "guidance"),
            change("inpaint:conditions.c.null", "guidance"),
            change("asked:programs.fast.rows.4.guidance", "guidance", "1"), change("asked:programs.fast.rows.4.mix", "carry", "{\"mid\": [1]}"),
            change("asked:programs.fast.rows.0", "carry_before_write", "{\"timestep\": 1, \"update\": {\"x\": [], \"e\": []}}"),
            change("asked:programs.fast.rows.3.held.weights", "carry_before_write", "[1, 1, 1, 1]"),
            change("asked:programs.fast.rows.0.held", "guidance", "{\"weights\": [1]}"),
            change("asked:programs.fast.rows.0.mix", "carry", "{\"mid\": [1]}"),
            change("asked:programs.fast.rows.2.mix.mid", "carry_before_write", "[1, 1, 1]"),
            change("asked:programs.fast.rows.0.graph", "carry_before_write", "\"shallow\""),
            change("asked:programs.fast.rows.6.guidance", "carry", "1"),
            change("asked:programs.fast.rows.0.update.x", "history", "[1, 1]"),
        )
    }
}
