package dev.edgediff

import java.nio.file.Path

/** The graphs of `make_programs.py`, which says what they compute, on an engine that counts what is open. */
internal class StandInEngine(
    private val manifest: Manifest, override val backend: String = "onnxruntime",
) : Engine {
    var open = 0
    var calls = 0

    /** Called before each graph call; may throw. */
    var before: (calls: Int) -> Unit = {}

    override fun open(folder: Path, graph: Graph, artifact: Artifact, batch: Int): GraphRunner = runner(graph, batch)

    fun runners(memory: MemoryMode = MemoryMode.KEEP_ALL) =
        Runners(manifest, memory) { name, batch -> runner(manifest.graphs.getValue(name), batch) }

    private fun runner(graph: Graph, batch: Int): GraphRunner {
        open++
        return object : GraphRunner {
            override fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
                calls++
                before(calls)
                check(inputs.mapValues { it.value.shape } == graph.inputs.associate { it.name to it.sized(batch) })
                check(outputs.mapValues { it.value.shape } == graph.outputs.associate { it.name to it.sized(batch) })
                compute(graph, inputs, outputs)
            }

            override fun close() {
                open--
            }
        }
    }

    private fun compute(graph: Graph, inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
        val encoder = manifest.encoders.values.firstOrNull { manifest.graphs[it.graph] === graph }
        when {
            encoder != null -> encode(encoder, inputs, outputs.values)
            graph.component == "unet" -> denoise(graph, inputs, outputs)
            else -> graph.outputs.forEachIndexed { index, spec ->
                val read = values(inputs.values.single())
                fill(outputs.getValue(spec.name)) { at, size -> read[(at.toLong() * read.size / size).toInt()] / (index + 2) }
            }
        }
    }

    private fun encode(encoder: Encoder, inputs: Map<String, Tensor>, outputs: Collection<Tensor>) {
        val ids = values(inputs.getValue(encoder.ids))
        val mask = encoder.mask?.let { values(inputs.getValue(it)).sum() } ?: 0.0
        for (output in outputs) {
            val width = output.shape.last()
            fill(output) { at, _ -> ids[at / width % ids.size] / 10 + at % width / 100.0 + mask / 1000 }
        }
    }

    private fun denoise(graph: Graph, inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
        val kinds = graph.freeInputs.associate { it.name to manifest.conditions.getValue(it.name) }
        val named = { kind: Condition -> kinds.entries.firstOrNull { it.value == kind }?.key }
        val tensor = inputs.getValue(named(Condition.Latent)!!)
        val latent = values(tensor)
        val batch = tensor.shape[0]
        val size = latent.size / batch
        val time = named(Condition.Timestep)?.let { values(inputs.getValue(it))[0] / 10000 } ?: 0.0
        val total = DoubleArray(latent.size) { 0.3 * latent[it] + time }
        val others = kinds.filterValues { it != Condition.Latent && it != Condition.Timestep }.keys
        others.forEachIndexed { index, name -> add(total, batch, 0.01 * (index + 1), inputs.getValue(name)) }
        for (name in graph.carriesIn.values) add(total, batch, 0.1, inputs.getValue(name))
        for (spec in graph.outputs) {
            val output = outputs.getValue(spec.name)
            val isCarry = spec.name in graph.carriesOut.values
            val part = output.count / batch
            fill(output) { at, _ -> if (isCarry) 0.5 * latent[at / part * size + at % part] + time else total[at] }
        }
    }

    private fun add(total: DoubleArray, batch: Int, factor: Double, tensor: Tensor) {
        val read = values(tensor)
        val part = read.size / tensor.shape[0]
        for (i in total.indices) {
            val side = if (tensor.shape[0] == 1) 0 else i / (total.size / batch)
            total[i] += factor * read[side * part + i % (total.size / batch) % part]
        }
    }

    private fun fill(tensor: Tensor, value: (at: Int, size: Int) -> Double) =
        tensor.put(FloatArray(tensor.count) { value(it, tensor.count).toFloat() })

    private fun values(tensor: Tensor): DoubleArray {
        val values = FloatArray(tensor.count).also { tensor.get(it) }
        return DoubleArray(values.size) { values[it].toDouble() }
    }
}
