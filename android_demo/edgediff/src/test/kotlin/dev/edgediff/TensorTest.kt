package dev.edgediff

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class TensorTest {
    @Test
    fun `half floats are numpy's`() {
        val golden = Golden.read("halves.json")
        val floats = golden["bits32"].items.map { Float.fromBits(it.long.toInt()) }
        golden["bits16"].ints.forEachIndexed { index, bits ->
            assertEquals(bits, halfBits(floats[index]).toInt() and 0xffff, "${floats[index]}")
        }
        for (bits in 0..0xffff) {
            val value = halfToFloat(bits.toShort())
            assertTrue(value.isNaN() || bits == halfBits(value).toInt() and 0xffff, "$bits")
        }
    }

    @Test
    fun `every type takes numbers and gives them back`() {
        for (dtype in DType.entries) {
            val tensor = Tensor.allocate(dtype, listOf(2, 3)).apply { put(floatArrayOf(1f, -2f, 3f), 3) }
            val back = FloatArray(6).also { tensor.get(it) }
            assertEquals(listOf(0f, 0f, 0f, 1f, -2f, 3f), back.toList(), "$dtype")
            assertEquals(listOf(1f, -2f, 3f), FloatArray(3).also { tensor.part(1).get(it) }.toList())
        }
    }

    @Test
    fun `a part shares memory`() {
        val tensor = Tensor.allocate(DType.FLOAT32, listOf(2, 2))
        tensor.part(1).put(floatArrayOf(7f, 8f))
        assertEquals(8f, tensor.floats().get(3))
        assertFailsWith<IllegalStateException> { tensor.longs() }
    }

    @Test
    fun `sizes that overflow are refused`() {
        assertEquals("memory", codeOf { Tensor.allocate(DType.FLOAT32, listOf(1 shl 20, 1 shl 20)) })
        assertEquals("memory", codeOf { Tensor.allocate(DType.INT64, listOf(1 shl 28)) })
    }
}
