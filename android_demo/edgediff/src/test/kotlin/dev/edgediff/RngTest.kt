package dev.edgediff

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals

class RngTest {
    private val golden = Golden.read("rng.json")

    @Test
    fun `every draw has the bits that Python draws`() {
        var values = 0
        for (stream in golden["streams"].items) {
            val rng = Rng(stream["seed"].text.toULong(), stream["kind"].text)
            for (draw in stream["draws"].items) {
                val drawn = rng.normal(draw["shape"].ints.fold(1, Int::times))
                assertEquals(draw["sha256"].text, sha256(drawn), "${stream["kind"].text} ${stream["seed"].text}")
                values += drawn.size
            }
        }
        assertEquals(48, golden["streams"].items.size)
        assert(values > 100_000) { "$values values" }
    }

    @Test
    fun `the twister gives its published words`() {
        val words = golden["mt19937_words"]
        val twister = MersenneTwister(words["seed"].text.toULong().toInt())
        val drawn = LongArray(10_000) { twister.next().toLong() and 0xffffffffL }
        assertContentEquals(words["first"].items.map { it.long }, drawn.take(3))
        assertEquals(words["word_10000"].long, drawn.last())
    }

    @Test
    fun `philox gives Random123's known answers`() {
        for (known in golden["philox_4x32_10"].items) {
            val counter = known["counter"].items.map { it.long }.toLongArray()
            val (low, high) = known["key"].items.map { it.long }
            assertContentEquals(known["output"].items.map { it.long }.toLongArray(), philox4x32(counter, low, high))
        }
    }

    @Test
    fun `an unknown stream is refused`() = assertEquals("rng", codeOf { Rng(0u, "xorshift") })

    private fun sha256(values: FloatArray): String {
        val bytes = ByteBuffer.allocate(values.size * 4).order(ByteOrder.LITTLE_ENDIAN)
        bytes.asFloatBuffer().put(values)
        return MessageDigest.getInstance("SHA-256").digest(bytes.array()).joinToString("") { "%02x".format(it) }
    }
}
