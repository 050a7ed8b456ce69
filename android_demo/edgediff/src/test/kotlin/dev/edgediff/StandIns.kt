package dev.edgediff

import java.nio.file.Path

/** The graphs of `tests/program_cases.py`, which says what they compute, on an engine that counts what is open. */
internal class StandInEngine(override val backend: String = "onnxruntime") : Engine {
    var open = 0
    var calls = 0

    /** Called before each graph call; may throw. */
    var before: (calls: Int) -> Unit = {}

    override fun open(folder: Path, graph: Graph, artifact: Artifact, batch: Int): GraphRunner = runner(graph, batch)

    fun runners(manifest: Manifest, memory: MemoryMode = MemoryMode.KEEP_ALL) =
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
        when {
            "input_ids" in inputs -> embed(inputs.getValue("input_ids"), outputs.getValue("last_hidden_state"))
            "z" in inputs -> widen(inputs.getValue("z"), outputs.getValue("image"))
            else -> denoise(graph, inputs, outputs)
        }
    }

    private fun embed(ids: Tensor, out: Tensor) {
        val width = out.shape[2]
        val numbers = ids.longs()
        out.put(FloatArray(out.count) { (numbers.get(it / width) / 10.0 + it % width / 100.0).toFloat() })
    }

    private fun widen(latent: Tensor, out: Tensor) {
        val (_, _, height, width) = latent.shape
        val values = read(latent)
        out.put(
            FloatArray(out.count) {
                val channel = it / (4 * height * width)
                val y = it / (2 * width) % (2 * height)
                (values[(channel * height + y / 2) * width + it % (2 * width) / 2] / 2).toFloat()
            },
        )
    }

    private fun denoise(graph: Graph, inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
        val sample = read(inputs.getValue("sample"))
        val time = read(inputs.getValue("timestep"))[0] / 10000
        val batch = inputs.getValue("sample").shape[0]
        val size = sample.size / batch
        val side = conditions(inputs, batch)
        val mid = inputs["cache_in_mid"]?.let(::read)
        val prediction = outputs.getValue(graph.outputs[0].name)
        prediction.put(
            FloatArray(sample.size) { at ->
                val b = at / size
                if (mid == null) {
                    (0.3 * sample[at] + 0.05 * side[b] + time).toFloat()
                } else {
                    val part = mid.size / batch
                    (0.2 * sample[at] + 0.1 * mid[b * part + at % size % part] + 0.05 * side[b]).toFloat()
                }
            },
        )
        outputs["cache_out_mid"]?.let { out ->
            val part = out.count / batch
            out.put(FloatArray(out.count) { (0.5 * sample[it / part * size + it % part] + time).toFloat() })
        }
    }

    private fun conditions(inputs: Map<String, Tensor>, batch: Int): DoubleArray {
        val labels = inputs["class_labels"]
        val text = inputs["encoder_hidden_states"]
        return DoubleArray(batch) { b ->
            when {
                labels != null -> labels.longs().get(b) / 100.0
                text != null -> text.floats().get((b * text.shape[1] + 1) * text.shape[2]).toDouble()
                else -> 0.0
            }
        }
    }

    private fun read(tensor: Tensor): DoubleArray {
        val values = FloatArray(tensor.count).also { tensor.get(it) }
        return DoubleArray(values.size) { values[it].toDouble() }
    }
}
