package dev.edgediff

import java.nio.file.Path
import kotlin.math.abs

/** The graphs of `tests/program_cases.py`, which says what they compute, on an engine that counts what is open. */
internal class StandInEngine(private val manifest: Manifest, override val backend: String = "onnxruntime") : Engine {
    var open = 0
    var calls = 0

    /** Called before each graph call; may throw. */
    var before: (calls: Int) -> Unit = {}

    override fun open(folder: Path, graph: Graph, artifact: Artifact, batch: Int): GraphRunner =
        runner(manifest.graphs.entries.single { it.value === graph }.key, batch)

    fun runners(memory: MemoryMode = MemoryMode.KEEP_ALL) = Runners(manifest, memory, ::runner)

    private fun runner(name: String, batch: Int): GraphRunner {
        val graph = manifest.graphs.getValue(name)
        open++
        return object : GraphRunner {
            override fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
                calls++
                before(calls)
                check(inputs.mapValues { it.value.shape } == graph.inputs.associate { it.name to it.sized(batch) })
                check(outputs.mapValues { it.value.shape } == graph.outputs.associate { it.name to it.sized(batch) })
                compute(name, Read(inputs), outputs)
            }

            override fun close() {
                open--
            }
        }
    }
}

/** Inputs as float64, by name. */
private class Read(private val inputs: Map<String, Tensor>) {
    private val values = HashMap<String, DoubleArray>()

    operator fun contains(name: String) = name in inputs

    operator fun get(name: String): DoubleArray = values.getOrPut(name) {
        val tensor = inputs.getValue(name)
        val floats = FloatArray(tensor.count).also { tensor.get(it) }
        DoubleArray(floats.size) { floats[it].toDouble() }
    }

    fun shape(name: String): List<Int> = inputs.getValue(name).shape

    /** One side's part. */
    fun side(name: String, side: Int, batch: Int): DoubleArray {
        val size = this[name].size / batch
        return this[name].copyOfRange(side * size, (side + 1) * size)
    }
}

private fun fill(tensor: Tensor, value: (at: Int) -> Double) =
    tensor.put(FloatArray(tensor.count) { value(it).toFloat() })

private fun compute(name: String, read: Read, outputs: Map<String, Tensor>) {
    when (name) {
        "text_encoder" -> {
            val out = outputs.getValue("last_hidden_state")
            fill(out) { read["input_ids"][it / out.shape[2]] / 10 + it % out.shape[2] / 100.0 }
        }
        "text_encoder_2" -> {
            val (ids, mask) = read["input_ids"] to read["attention_mask"]
            val hidden = outputs.getValue("hidden")
            val width = hidden.shape[2]
            fill(hidden) { mask[it / width] * (ids[it / width] / 7 + it % width / 50.0) }
            fill(outputs.getValue("pooled")) { at -> ids.indices.sumOf { mask[it] * ids[it] } / 20 + at / 10.0 }
        }
        "vae_encoder" -> encode(read, outputs)
        "vae_decoder" -> {
            val (_, _, height, width) = read.shape("z")
            fill(outputs.getValue("image")) {
                val y = it / (2 * width) % (2 * height)
                read["z"][(it / (4 * height * width) * height + y / 2) * width + it % (2 * width) / 2] / 2
            }
        }
        "small" -> fill(outputs.getValue("rgb")) { read["z"][it] / 3 }
        "safety" -> fill(outputs.getValue("score")) { read["image"].max() }
        else -> denoise(name, read, outputs)
    }
}

private fun encode(read: Read, outputs: Map<String, Tensor>) {
    val (_, _, height, width) = read.shape("pixels")
    val mean = { at: Int ->
        val channel = at / (height * width / 4)
        val y = at / (width / 2) % (height / 2)
        read["pixels"][(channel % 3 * height + 2 * y) * width + at % (width / 2) * 2] / 2 + channel / 10.0
    }
    fill(outputs.getValue("mean"), mean)
    fill(outputs.getValue("deviation")) { 0.1 + abs(mean(it)) / 5 }
}

private fun denoise(name: String, read: Read, outputs: Map<String, Tensor>) {
    val sample = read["sample"]
    val batch = read.shape("sample")[0]
    val size = sample.size / batch
    val place = size / read.shape("sample")[1]
    val time = read["timestep"][0] / 10000
    val condition = DoubleArray(batch) { 0.05 * conditionOf(read, it, batch) }
    fill(outputs.getValue("noise_pred")) { at ->
        val side = at / size
        val rest = condition[side] + pictured(read, at, side * place + at % place)
        if (name == "full") 0.3 * sample[at] + rest + time
        else 0.2 * sample[at] + 0.1 * read.side("cache_in_mid", side, batch).let { it[at % size % it.size] } + rest
    }
    outputs["cache_out_mid"]?.let { out ->
        val part = out.count / batch
        fill(out) { 0.5 * sample[it / part * size + it % part] + time }
    }
}

private fun conditionOf(read: Read, side: Int, batch: Int): Double {
    val part = { name: String -> if (name in read) read.side(name, side, batch) else null }
    val text = part("encoder_hidden_states")?.let {
        val width = read.shape("encoder_hidden_states")[2]
        it[width] + it[2 * width] / 2 + it[2 * width - 1] / 4
    }
    return (text ?: 0.0) + (part("class_labels")?.let { it[0] / 100 } ?: 0.0) +
        (part("attention_mask")?.let { it.sum() / 10 } ?: 0.0) + (part("guidance")?.let { it[0] / 10 } ?: 0.0) +
        (part("text_embeds")?.last() ?: 0.0) + (part("time_ids")?.let { it.sum() / 1000 } ?: 0.0)
}

private fun pictured(read: Read, at: Int, place: Int): Double =
    (if ("image_latents" in read) read["image_latents"][at] / 10 else 0.0) +
        (if ("masked_image_latents" in read) read["masked_image_latents"][at] / 15 else 0.0) +
        (if ("mask" in read) read["mask"][place] / 20 else 0.0)
