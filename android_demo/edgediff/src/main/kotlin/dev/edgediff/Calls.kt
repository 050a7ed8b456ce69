package dev.edgediff

/**
 * The network calls of one picture, with what they carry: one set of carries in batched mode, one per side in
 * sequential mode. [given] are the conditions that stay the same in every row.
 */
internal class Calls(
    private val manifest: Manifest, private val asked: Asked, private val runners: Runners,
    private val given: Map<String, Sides>,
) : Predict {
    private val program = asked.program
    private val batched = program.isBatched
    private val carries = List(if (batched) 1 else 2) { Carries(manifest.carries, program.rows) }
    private val ready = HashMap<Triple<String, Int, Int>, Call>()
    private val kept = program.rows.maxOf { it.held?.weights?.size ?: 0 }
    private val differences = ArrayDeque<FloatArray>() // prompt - empty of guided rows, newest first

    /** Nanoseconds inside graphs since the last row began. */
    var graphNanos: Long = 0
        private set

    override fun call(index: Int, row: Row, latent: FloatArray): FloatArray? {
        graphNanos = 0
        val name = row.graph ?: return null
        return naming("row $index (graph '$name', timestep ${row.timestep})") {
            val scale = row.guidance?.at(asked.scale)?.toFloat()
            checkFinite(if (scale == null) alone(name, row, latent) else guided(name, row, scale, latent))
        }
    }

    private fun alone(name: String, row: Row, latent: FloatArray): FloatArray {
        val output = FloatArray(latent.size)
        run(name, row, 1, 1, latent).get(output)
        val held = row.held ?: return output
        val times = if (held.isTimesScale) (checkNotNull(asked.scale) - 1.0).toFloat() else 1f
        held.weights.forEachIndexed { index, weight ->
            val factor = weight.toFloat() * times
            val difference = differences[index]
            for (i in output.indices) output[i] += factor * difference[i]
        }
        return output
    }

    /** e_i = e_empty + s (e_prompt - e_empty) in float32. */
    private fun guided(name: String, row: Row, scale: Float, latent: FloatArray): FloatArray {
        val empty = FloatArray(latent.size)
        val output = FloatArray(latent.size)
        if (batched) {
            val both = run(name, row, 2, 0, latent)
            both.get(empty)
            both.get(output, latent.size)
        } else {
            run(name, row, 1, 0, latent).get(empty)
            run(name, row, 1, 1, latent).get(output)
        }
        for (i in output.indices) output[i] -= empty[i]
        if (kept > 0) differences.addFirst(output.copyOf())
        if (differences.size > kept) differences.removeLast()
        for (i in output.indices) output[i] = output[i] * scale + empty[i]
        return output
    }

    private fun run(name: String, row: Row, batch: Int, side: Int, latent: FloatArray): Tensor {
        val graph = manifest.graphs.getValue(name)
        val call = ready.getOrPut(Triple(name, batch, side)) { Call(manifest.conditions, graph, batch, side, given) }
        val store = carries[if (batched) 0 else side]
        call.feed(latent, row.timestep)
        for ((carry, tensor) in graph.carriesIn) call.inputs[tensor] = store.read(carry, batch, row.mix[carry])
        for ((carry, tensor) in graph.carriesOut) call.outputs[tensor] = store.blank(carry, batch)
        graphNanos += runners.run(name, batch, call.inputs, call.outputs)
        for ((carry, tensor) in graph.carriesOut) store.write(carry, call.outputs.getValue(tensor))
        return call.prediction
    }
}

/** One graph for one side (0 empty, 1 prompt) or both (batch 2): the inputs that stay, and those that rows fill. */
private class Call(
    conditions: Map<String, Condition>, graph: Graph, batch: Int, side: Int, given: Map<String, Sides>,
) {
    val inputs = HashMap<String, Tensor>()
    val prediction: Tensor = graph.freeOutputs.single().let { Tensor.allocate(it.dtype, it.sized(batch)) }
    val outputs = hashMapOf(graph.freeOutputs.single().name to prediction)
    private var latent: Tensor? = null
    private var timestep: Tensor? = null

    init {
        for (spec in graph.freeInputs) {
            val tensor = Tensor.allocate(spec.dtype, spec.sized(batch))
            inputs[spec.name] = tensor
            when (conditions.getValue(spec.name)) {
                Condition.Latent -> latent = tensor
                Condition.Timestep -> timestep = tensor
                Condition.Guidance -> tensor.fill(given.getValue(spec.name).prompt[0])
                else -> give(tensor, given.getValue(spec.name), batch, side)
            }
        }
    }

    private fun give(tensor: Tensor, sides: Sides, batch: Int, side: Int) {
        if (batch == 1) return tensor.put(if (side == 1) sides.prompt else sides.empty)
        tensor.put(sides.empty)
        tensor.put(sides.prompt, sides.empty.size)
    }

    fun feed(values: FloatArray, time: Double) {
        latent?.let { for (start in 0 until it.count step values.size) it.put(values, start) }
        timestep?.fill(time.toFloat())
    }
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
