package dev.edgediff

/**
 * What one row did: [latent] is x_{i+1}, [output] is e_i after guidance, float32 in C order. [graph] is null when the
 * last output was held. Nanoseconds inside graphs, and of the whole row.
 */
public class GenerationStep internal constructor(
    public val index: Int, public val total: Int, public val graph: String?, public val timestep: Double,
    public val latent: FloatArray, public val output: FloatArray, public val graphNanos: Long,
    public val totalNanos: Long,
)

/** Predicts e_i from a row and its scaled latent; null holds e_{i-1}. Must not write to the latent. */
internal fun interface Predict {
    fun call(index: Int, row: Row, latent: FloatArray): FloatArray?
}

/**
 * Executes [rows] from [start], x_0:
 *
 * x_{i+1} = sum_k x[k] x_{i-k} + sum_k e[k] e_{i-k} + noise z_i + weight clamp(a x_i + b e_i, +-limit)
 *
 * in float32, term by term, as the Python loop does; then [blend] puts back what the mask leaves alone. The sequence
 * computes a row when it is asked for one, so whoever
 * stops asking cancels. [graphNanos] is read after each call.
 */
internal fun runRows(
    rows: List<Row>, start: FloatArray, predict: Predict, draw: () -> FloatArray,
    blend: (Blend, FloatArray) -> Unit = { _, _ -> }, graphNanos: () -> Long = { 0 },
): Sequence<GenerationStep> = sequence {
    val latents = ArrayDeque(listOf(start))
    val outputs = ArrayDeque<FloatArray>()
    val keep = historyNeeds(rows)
    for ((index, row) in rows.withIndex()) {
        val began = System.nanoTime()
        val latent = latents.first()
        val output = predict.call(index, row, scaled(latent, row.inputScale)) ?: outputs.firstOrNull()
            ?: refuse("carry_before_write", null, "row $index holds the output before any graph has run")
        outputs.addFirst(output)
        val noise = if (row.update.noise != 0.0) draw() else null
        val next = applyUpdate(row.update, latents, outputs, noise)
        row.blend?.let { blend(it, next) }
        latents.addFirst(next)
        while (latents.size > keep[index].first) latents.removeLast()
        while (outputs.size > keep[index].second) outputs.removeLast()
        val spent = System.nanoTime() - began
        yield(GenerationStep(index, rows.size, row.graph, row.timestep, next, output, graphNanos(), spent))
    }
}

private fun scaled(latent: FloatArray, scale: Double): FloatArray {
    if (scale == 1.0) return latent
    val factor = scale.toFloat()
    return FloatArray(latent.size) { latent[it] * factor }
}

/** x_{i+1}, a new array, from histories with the newest first; nothing passed in is changed. */
internal fun applyUpdate(
    update: Update, latents: List<FloatArray>, outputs: List<FloatArray>, noise: FloatArray?,
): FloatArray {
    val total = Total(latents[0].size)
    update.x.forEachIndexed { k, coefficient -> if (coefficient != 0.0) total.add(coefficient, latents[k]) }
    update.e.forEachIndexed { k, coefficient -> if (coefficient != 0.0) total.add(coefficient, outputs[k]) }
    if (noise != null) total.add(update.noise, noise)
    update.clip?.let { clip ->
        val argument = Update(listOf(clip.x), listOf(clip.e))
        val value = applyUpdate(argument, listOf(latents[0]), listOf(outputs[0]), null)
        val limit = clip.limit.toFloat()
        for (i in value.indices) value[i] = value[i].coerceIn(-limit, limit)
        total.add(clip.weight, value)
    }
    return total.values
}

/** A weighted sum in float32, one term after the other. */
internal class Total(size: Int) {
    val values = FloatArray(size)
    private var isEmpty = true

    fun add(coefficient: Double, term: FloatArray) {
        val factor = coefficient.toFloat()
        if (isEmpty) for (i in values.indices) values[i] = factor * term[i]
        else for (i in values.indices) values[i] += factor * term[i]
        isEmpty = false
    }
}

/** How many (latents, outputs) to hold after each row, newest first, for the rows that remain. */
private fun historyNeeds(rows: List<Row>): List<Pair<Int, Int>> {
    var latents = 1
    var outputs = 1 // one output always stays: the next row may hold it
    val needs = ArrayDeque(listOf(1 to 1))
    for (row in rows.drop(1).asReversed()) {
        latents = maxOf(row.update.x.size, latents - 1, 1)
        outputs = maxOf(row.update.e.size - 1, outputs - 1, 1)
        needs.addFirst(latents to outputs)
    }
    return needs
}
