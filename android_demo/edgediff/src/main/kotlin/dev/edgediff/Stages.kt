package dev.edgediff

/** What a graph put out: [values] in C order of [shape]. */
internal class Made(val values: FloatArray, val shape: List<Int>) {
    /** The first along the first axis. */
    val sample: FloatArray
        get() = if (shape.size < 2 || shape[0] == 1) values else values.copyOf(values.size / shape[0])
}

/** Graphs that run once, at batch 1: encoders, the decoder, the encoder of pictures. */
internal class Stages(private val manifest: Manifest, private val runners: Runners) {
    /** Some outputs by name. Raises `non_finite`, and `output` for an input of another size. */
    fun run(name: String, inputs: Map<String, FloatArray>, outputs: Collection<String>): Map<String, Made> =
        naming("graph '$name'") {
            val graph = manifest.graphs.getValue(name)
            val read = graph.inputs.associate { it.name to filled(it, inputs.getValue(it.name)) }
            val made = graph.outputs.associate { it.name to Tensor.allocate(it.dtype, it.sized(1)) }
            runners.run(name, 1, read, made)
            outputs.associateWith { output ->
                val tensor = made.getValue(output)
                Made(checkFinite(FloatArray(tensor.count).also { tensor.get(it) }), tensor.shape)
            }
        }

    private fun filled(spec: TensorSpec, values: FloatArray): Tensor {
        val tensor = Tensor.allocate(spec.dtype, spec.sized(1))
        if (tensor.count != values.size) refuse("output", null, "takes $spec, but ${values.size} values are there")
        return tensor.also { it.put(values) }
    }
}
