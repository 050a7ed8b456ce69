package dev.edgediff

/**
 * Cached tensors between rows, newest first, as many of each as some row mixes. Graphs write straight into buffers
 * that are used again once no row can read them, so nothing is copied and nothing is allocated per row.
 */
internal class Carries(private val specs: Map<String, Carry>, rows: List<Row>) {
    private val depths = HashMap<String, Int>().apply {
        for (row in rows) {
            for ((carry, weights) in row.mix) merge(carry, weights.size, ::maxOf)
        }
    }
    private val past = HashMap<String, ArrayDeque<Tensor>>()
    private val spare = HashMap<Pair<String, Int>, ArrayDeque<Tensor>>()
    private val mixed = HashMap<Pair<String, Int>, Tensor>()

    /** A buffer for a value that is about to be computed; no row reads what is in it. */
    fun blank(carry: String, batch: Int): Tensor {
        val spec = specs.getValue(carry)
        val size = if (null in spec.shape) batch else 0
        return spare[carry to size]?.removeFirstOrNull() ?: Tensor.allocate(spec.dtype, spec.sized(batch))
    }

    /** Makes [value], filled by now, the newest of the carry. */
    fun write(carry: String, value: Tensor) {
        val values = past.getOrPut(carry) { ArrayDeque() }
        values.addFirst(value)
        val spec = specs.getValue(carry)
        while (values.size > (depths[carry] ?: 1)) {
            val old = values.removeLast()
            val size = spec.shape.indexOf(null).let { if (it < 0) 0 else old.shape[it] }
            spare.getOrPut(carry to size) { ArrayDeque() }.add(old)
        }
    }

    /** The carry at the batch of this call: its newest value, or sum_k weights[k] * (its value k writes ago). */
    fun read(carry: String, batch: Int, weights: List<Double>?): Tensor {
        val values = past[carry].orEmpty()
        val count = weights?.size ?: 1
        if (values.size < count) refuse("carry_before_write", null, "reads carry '$carry' before any row writes it")
        if (weights == null || weights == NEWEST) return atBatch(values[0], carry, batch)
        val parts = values.subList(0, count).map { atBatch(it, carry, batch) }
        val target = mixed.getOrPut(carry to batch) { Tensor.allocate(parts[0].dtype, parts[0].shape) }
        val total = Total(target.count)
        val term = FloatArray(target.count)
        parts.forEachIndexed { index, part -> total.add(weights[index], term.also { part.get(it) }) }
        return target.also { it.put(total.values) }
    }

    /** A row of the prompt alone keeps the prompt's half: a view where the batch comes first, else a copy. */
    private fun atBatch(value: Tensor, carry: String, batch: Int): Tensor {
        val axis = specs.getValue(carry).shape.indexOf(null)
        if (axis < 0 || value.shape[axis] == batch) return value
        if (batch == 2) refuse("carry", null, "is guided, but carry '$carry' was written without guidance")
        return if (axis == 0) value.part(1) else promptHalf(value, axis)
    }

    private fun promptHalf(value: Tensor, axis: Int): Tensor {
        val shape = value.shape.mapIndexed { index, size -> if (index == axis) 1 else size }
        val result = Tensor.allocate(value.dtype, shape)
        val inner = value.shape.drop(axis + 1).fold(1, Int::times)
        val part = FloatArray(inner)
        for (outer in 0 until result.count / inner) {
            value.get(part, (2 * outer + 1) * inner)
            result.put(part, outer * inner)
        }
        return result
    }

    private companion object {
        val NEWEST = listOf(1.0)
    }
}
