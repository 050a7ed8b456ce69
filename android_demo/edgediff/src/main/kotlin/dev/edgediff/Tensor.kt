package dev.edgediff

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/**
 * Numbers in memory that native code reads in place: [data] is a direct buffer in native byte order, in C order of
 * [shape]. Whoever made the tensor owns it; an engine uses it only while a call lasts.
 */
public class Tensor(public val dtype: DType, shape: List<Int>, public val data: ByteBuffer) {
    public val shape: List<Int> = shape.toList()

    /** Number of elements. */
    public val count: Int = this.shape.fold(1, Int::times)

    init {
        require(data.isDirect && data.order() == ByteOrder.nativeOrder()) { "a tensor needs a direct native buffer" }
        require(data.capacity() == count * dtype.bytes) { "${data.capacity()} bytes for $dtype$shape" }
    }

    public fun floats(): FloatBuffer = typed(DType.FLOAT32).asFloatBuffer()

    /** The bits of half floats. */
    public fun halves(): ShortBuffer = typed(DType.FLOAT16).asShortBuffer()

    public fun longs(): LongBuffer = typed(DType.INT64).asLongBuffer()

    public fun ints(): IntBuffer = typed(DType.INT32).asIntBuffer()

    /** Part [index] of the first axis, sharing memory. */
    public fun part(index: Int): Tensor {
        val bytes = data.capacity() / shape[0]
        val view = data.duplicate().apply { position(index * bytes).limit((index + 1) * bytes) }.slice()
        return Tensor(dtype, listOf(1) + shape.drop(1), view.order(ByteOrder.nativeOrder()))
    }

    /** Sets the elements from [start] on, rounding to this tensor's type. */
    public fun put(values: FloatArray, start: Int = 0) {
        when (dtype) {
            DType.FLOAT32 -> floats().apply { position(start) }.put(values)
            DType.FLOAT16 -> halves().let { for (i in values.indices) it.put(start + i, halfBits(values[i])) }
            DType.INT64 -> longs().let { for (i in values.indices) it.put(start + i, values[i].toLong()) }
            DType.INT32 -> ints().let { for (i in values.indices) it.put(start + i, values[i].toInt()) }
        }
    }

    /** Sets every element. */
    internal fun fill(value: Float): Unit = put(FloatArray(count) { value })

    /** Reads [target]'s number of elements from [start] on, as float32. */
    public fun get(target: FloatArray, start: Int = 0) {
        when (dtype) {
            DType.FLOAT32 -> floats().apply { position(start) }.get(target)
            DType.FLOAT16 -> halves().let { for (i in target.indices) target[i] = halfToFloat(it.get(start + i)) }
            DType.INT64 -> longs().let { for (i in target.indices) target[i] = it.get(start + i).toFloat() }
            DType.INT32 -> ints().let { for (i in target.indices) target[i] = it.get(start + i).toFloat() }
        }
    }

    override fun toString(): String = "${dtype.label}$shape"

    private fun typed(expected: DType): ByteBuffer {
        check(dtype == expected) { "a tensor of ${dtype.label} is not ${expected.label}" }
        return data.duplicate().order(ByteOrder.nativeOrder()).apply { clear() }
    }

    public companion object {
        /** A tensor of zeros, outside the Java heap. Raises `memory` where there is not enough of it. */
        @JvmStatic
        public fun allocate(dtype: DType, shape: List<Int>): Tensor {
            val bytes = shape.fold(1L) { all, size -> if (all > Int.MAX_VALUE) all else all * size } * dtype.bytes
            if (bytes > Int.MAX_VALUE) refuse("memory", null, "a tensor of $shape has more than 2^31 bytes")
            val data = try {
                ByteBuffer.allocateDirect(bytes.toInt())
            } catch (error: OutOfMemoryError) {
                throw EdgeDiffException("memory", "no memory for a tensor of $bytes bytes", null, error)
            }
            return Tensor(dtype, shape, data.order(ByteOrder.nativeOrder()))
        }
    }
}

/** float32 -> the bits of the nearest float16 (ties to even), infinity where it overflows. */
internal fun halfBits(value: Float): Short {
    val bits = value.toRawBits()
    val sign = (bits ushr 16) and 0x8000
    val magnitude = bits and 0x7fffffff
    val half = when {
        magnitude > 0x7f800000 -> 0x7e00
        magnitude >= 0x477ff000 -> 0x7c00
        magnitude >= 0x38800000 -> rounded(magnitude - 0x38000000, 13)
        magnitude < 0x33000000 -> 0
        else -> rounded((magnitude and 0x7fffff) or 0x800000, 126 - (magnitude ushr 23))
    }
    return (sign or half).toShort()
}

private fun rounded(value: Int, shift: Int): Int {
    val down = value ushr shift
    val rest = value and ((1 shl shift) - 1)
    val tie = 1 shl (shift - 1)
    return if (rest > tie || rest == tie && down and 1 == 1) down + 1 else down
}

internal fun halfToFloat(half: Short): Float {
    val bits = half.toInt()
    val exponent = (bits ushr 10) and 0x1f
    val fraction = bits and 0x3ff
    val value = when (exponent) {
        0 -> fraction / 16777216f
        0x1f -> if (fraction == 0) Float.POSITIVE_INFINITY else Float.NaN
        else -> Float.fromBits(((exponent + 112) shl 23) or (fraction shl 13))
    }
    return if (bits and 0x8000 != 0) -value else value
}
