package dev.edgediff

/**
 * The network calls of one picture, with what they carry: one set of carries in batched mode, one per prompt in
 * sequential mode. [given] are the conditions that stay the same in every row, by input name: one row for the prompt,
 * or two (negative, prompt) when some row is guided.
 */
internal class Calls(
    private val manifest: Manifest, private val runners: Runners, private val given: Map<String, Tensor>,
) : Predict {
    private val batched = manifest.program.isBatched
    private val carries = List(if (batched) 1 else 2) { Carries(manifest) }
    private val ready = HashMap<Triple<String, Int, Int>, Call>()
    private val held = manifest.program.rows.maxOf { it.heldGuidance?.size ?: 0 }
    private val differences = ArrayDeque<FloatArray>() // prompt - empty of guided rows, newest first

    /** Nanoseconds inside graphs since the last row began. */
    var graphNanos: Long = 0
        private set

    override fun call(index: Int, row: Row, latent: FloatArray): FloatArray? {
        graphNanos = 0
        val name = row.graph ?: return null
        return naming("row $index (graph '$name', timestep ${row.timestep})") {
            if (row.guidance == null) alone(name, row, latent) else guided(name, row, row.guidance.toFloat(), latent)
        }
    }

    private fun alone(name: String, row: Row, latent: FloatArray): FloatArray {
        val output = FloatArray(latent.size)
        run(name, row, 1, 1, latent).get(output)
        row.heldGuidance.orEmpty().forEachIndexed { index, weight ->
            val difference = differences.getOrNull(index)
                ?: refuse("carry_before_write", null, "holds the guidance of more rows than were guided")
            val factor = weight.toFloat()
            for (i in output.indices) output[i] += factor * difference[i]
        }
        return checkFinite(output)
    }

    /** e_i = e(x_i, negative) + s (e(x_i, prompt) - e(x_i, negative)) in float32. */
    private fun guided(name: String, row: Row, scale: Float, latent: FloatArray): FloatArray {
        val negative = FloatArray(latent.size)
        val output = FloatArray(latent.size)
        if (batched) {
            val both = run(name, row, 2, 0, latent)
            both.get(negative)
            both.get(output, latent.size)
        } else {
            run(name, row, 1, 0, latent).get(negative)
            run(name, row, 1, 1, latent).get(output)
        }
        for (i in output.indices) output[i] -= negative[i]
        if (held > 0) differences.addFirst(output.copyOf())
        if (differences.size > held) differences.removeLast()
        for (i in output.indices) output[i] = output[i] * scale + negative[i]
        return checkFinite(output)
    }

    private fun run(name: String, row: Row, batch: Int, side: Int, latent: FloatArray): Tensor {
        val graph = manifest.graphs.getValue(name)
        val call = ready.getOrPut(Triple(name, batch, side)) { Call(graph, batch, side, given) }
        val store = carries[if (batched) 0 else side]
        call.feed(latent, row.timestep)
        for ((carry, tensor) in graph.carriesIn) call.inputs[tensor] = store.read(carry, batch, row.mix[carry])
        for ((carry, tensor) in graph.carriesOut) call.outputs[tensor] = store.blank(carry, batch)
        graphNanos += runners.run(name, batch, call.inputs, call.outputs)
        for ((carry, tensor) in graph.carriesOut) store.write(carry, call.outputs.getValue(tensor))
        return call.output
    }
}

/** One graph for one side (0 negative, 1 prompt) or both (batch 2): the inputs that stay, and those that rows fill. */
private class Call(graph: Graph, batch: Int, side: Int, given: Map<String, Tensor>) {
    private val specs = graph.inputs.associateBy { it.name }
    private val sample = blank("sample", batch)
    private val timestep = blank("timestep", batch)
    private val steps = FloatArray(timestep.count)
    val inputs = HashMap<String, Tensor>()
    val outputs = graph.outputs.filter { it.name !in graph.carriesOut.values }
        .associateTo(HashMap()) { it.name to Tensor.allocate(it.dtype, it.sized(batch)) }
    val output: Tensor = outputs[graph.outputs[0].name]
        ?: refuse("output", null, "carries its first output, which must be the prediction")

    init {
        inputs["sample"] = sample
        inputs["timestep"] = timestep
        for ((name, value) in given) specs[name]?.let { spec ->
            val part = if (batch == 2) value else value.part(if (side == 1) value.shape[0] - 1 else 0)
            inputs[name] = converted(part, spec.dtype)
        }
    }

    fun feed(latent: FloatArray, time: Double) {
        if (output.count != sample.count || sample.count % latent.size != 0) {
            refuse("output", null, "takes ${sample.shape} and puts out ${output.shape}: not the latent's shape")
        }
        for (start in 0 until sample.count step latent.size) sample.put(latent, start)
        steps.fill(time.toFloat())
        timestep.put(steps)
    }

    private fun blank(name: String, batch: Int): Tensor =
        specs.getValue(name).let { Tensor.allocate(it.dtype, it.sized(batch)) }
}

/** [tensor] itself when it has the type already. */
internal fun converted(tensor: Tensor, dtype: DType): Tensor {
    if (tensor.dtype == dtype) return tensor
    val result = Tensor.allocate(dtype, tensor.shape)
    result.put(FloatArray(tensor.count).also { tensor.get(it) })
    return result
}

/** Adds to an error from inside a call which row and graph it was. */
internal inline fun <T> naming(where: String, act: () -> T): T = try {
    act()
} catch (error: EdgeDiffException) {
    throw if (error.where != null) error else EdgeDiffException(error.code, "$where ${error.message}", null, error)
}

internal fun checkFinite(values: FloatArray): FloatArray {
    if (values.all { it.isFinite() }) return values
    val bad = values.count { !it.isFinite() }
    val advice = "a precision that overflows does that (try fp32 for this graph), and so do damaged weights"
    refuse("non_finite", null, "put out $bad of ${values.size} values that are NaN or infinite; $advice")
}
