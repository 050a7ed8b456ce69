package dev.edgediff

import kotlin.math.floor
import kotlin.math.sqrt

internal val RNG_KINDS = listOf("mt19937", "philox")

/**
 * One stream of standard normal draws: the numbers of `torch.randn`, bit for bit those of `edgediff/rng.py`, which
 * defines them (and says why only + - * / and sqrt are used). `mt19937` is torch's CPU generator, `philox` its CUDA
 * one. Every [seed] counts, 0 too; mt19937 reads its low 32 bits.
 */
public class Rng(public val seed: ULong, public val kind: String = "mt19937") {
    private val twister = MersenneTwister(seed.toInt())
    private var spare: Double? = null
    private var draws = 0L

    init {
        if (kind !in RNG_KINDS) refuse("rng", null, "unknown random stream '$kind'${didYouMean(kind, RNG_KINDS)}")
    }

    /** The next draw, of [count] values. */
    public fun normal(count: Int): FloatArray = when {
        kind == "philox" -> philox(count)
        count >= GROUP -> groups(count)
        else -> pairs(count)
    }

    private fun groups(count: Int): FloatArray {
        val words = IntArray(count) { twister.next() }
        val values = FloatArray(count)
        for (start in 0..count - GROUP step GROUP) boxMuller(words, start, values)
        if (count % GROUP != 0) {
            val last = IntArray(count)
            for (index in count - GROUP until count) last[index] = twister.next()
            boxMuller(last, count - GROUP, values)
        }
        return values
    }

    private fun boxMuller(words: IntArray, start: Int, out: FloatArray) {
        for (j in start until start + GROUP / 2) {
            val radius = sqrt(-2.0 * log(1.0 - uniform24(words[j])))
            val turn = SinCos((uniform24(words[j + GROUP / 2]) * TWO_PI_32).toFloat().toDouble())
            out[j] = (radius * turn.cosine).toFloat()
            out[j + GROUP / 2] = (radius * turn.sine).toFloat()
        }
    }

    private fun uniform24(word: Int): Double = (word and 0xffffff) * TO_24

    private fun pairs(count: Int): FloatArray = FloatArray(count) {
        val kept = spare
        spare = null
        (kept ?: pair()).toFloat()
    }

    private fun pair(): Double {
        val turn = SinCos(TWO_PI * uniform53())
        val radius = sqrt(-2.0 * log(1.0 - uniform53()))
        spare = radius * turn.sine
        return radius * turn.cosine
    }

    private fun uniform53(): Double {
        val high = twister.next().toLong() shl 32
        val low = twister.next().toLong() and MASK
        return ((high or low) and ((1L shl 53) - 1)) * TO_53
    }

    private fun philox(count: Int): FloatArray {
        val draw = draws++
        return FloatArray(count) { index ->
            val counter = longArrayOf(draw and MASK, draw ushr 32, index.toLong(), 0)
            val words = philox4x32(counter, seed.toLong() and MASK, seed.toLong() ushr 32)
            val uniform = (words[0].toFloat().toDouble() * TO_32 + TO_33).toFloat().toDouble()
            val scale = TWO_PI_32 * TO_32
            val turn = SinCos((words[1].toFloat().toDouble() * scale + scale / 2.0).toFloat().toDouble())
            (sqrt(-2.0 * log(uniform)) * turn.sine).toFloat()
        }
    }

    private companion object {
        const val GROUP = 16
        const val MASK = 0xffffffffL
        const val TWO_PI = 6.283185307179586
        const val TWO_PI_32 = 6.2831854820251465 // float32(2 pi)
        const val TO_24 = 1.0 / (1 shl 24)
        const val TO_32 = 1.0 / (1L shl 32)
        const val TO_33 = 1.0 / (1L shl 33)
        const val TO_53 = 1.0 / (1L shl 53)
    }
}

/** Philox-4x32-10 (Salmon et al., 2011); words of 32 bits in longs, the counter's first to last. */
internal fun philox4x32(counter: LongArray, keyLow: Long, keyHigh: Long): LongArray {
    val mask = 0xffffffffL
    var (c0, c1, c2, c3) = counter
    var k0 = keyLow
    var k1 = keyHigh
    repeat(10) {
        val a = 0xd2511f53L * c0
        val b = 0xcd9e8d57L * c2
        c0 = (b ushr 32) xor c1 xor k0
        c1 = b and mask
        c2 = (a ushr 32) xor c3 xor k1
        c3 = a and mask
        k0 = (k0 + 0x9e3779b9L) and mask
        k1 = (k1 + 0xbb67ae85L) and mask
    }
    return longArrayOf(c0, c1, c2, c3)
}

/** MT19937 (Matsumoto and Nishimura, 1998), seeded by init_genrand. */
internal class MersenneTwister(seed: Int) {
    private val state = IntArray(SIZE)
    private var at = SIZE

    init {
        state[0] = seed
        for (i in 1 until SIZE) state[i] = 1812433253 * (state[i - 1] xor (state[i - 1] ushr 30)) + i
    }

    /** The next 32 bits. */
    fun next(): Int {
        if (at == SIZE) refill()
        var y = state[at++]
        y = y xor (y ushr 11)
        y = y xor ((y shl 7) and 0x9d2c5680.toInt())
        y = y xor ((y shl 15) and 0xefc60000.toInt())
        return y xor (y ushr 18)
    }

    private fun refill() {
        for (i in 0 until SIZE) {
            val y = (state[i] and Int.MIN_VALUE) or (state[(i + 1) % SIZE] and Int.MAX_VALUE)
            state[i] = state[(i + SHIFT) % SIZE] xor (y ushr 1) xor if (y and 1 == 0) 0 else 0x9908b0df.toInt()
        }
        at = 0
    }

    private companion object {
        const val SIZE = 624
        const val SHIFT = 397
    }
}

private const val LOG_2 = 0.6931471805599453
private const val SQRT_HALF = 0.7071067811865476
private const val TWO_OVER_PI = 0.6366197723675814
private const val HALF_PI_HIGH = 1.5707963267341256 // the first 33 bits of pi / 2
private const val HALF_PI_LOW = 6.077100506506192e-11 // the rest

// Coefficients of z = s^2 or y^2, highest power first; each is one division of integers below 2^53.
private val ATANH = DoubleArray(11) { 1.0 / (2 * (10 - it) + 1) }
private val SIN = DoubleArray(9) { sign(8 - it) / factorial(2 * (8 - it) + 1) }
private val COS = DoubleArray(10) { sign(9 - it) / factorial(2 * (9 - it)) }

private fun sign(n: Int): Double = if (n % 2 == 0) 1.0 else -1.0

private fun factorial(n: Int): Double = (1..n).fold(1L) { product, factor -> product * factor }.toDouble()

private fun horner(z: Double, coefficients: DoubleArray): Double {
    var total = coefficients[0]
    for (index in 1 until coefficients.size) total = total * z + coefficients[index]
    return total
}

/** log(x), 0 < x <= 1: x = m 2^k, m in [sqrt(1/2), sqrt(2)), then k log 2 + 2 atanh((m - 1) / (m + 1)). */
private fun log(x: Double): Double {
    var k = Math.getExponent(x) + 1
    var m = Math.scalb(x, -k)
    if (m < SQRT_HALF) {
        m *= 2.0
        k--
    }
    val s = (m - 1.0) / (m + 1.0)
    return k * LOG_2 + 2.0 * (s * horner(s * s, ATANH))
}

/** sin and cos, 0 <= angle < 7: n quarter turns off, Taylor series, n quarter turns back. */
private class SinCos(angle: Double) {
    val sine: Double
    val cosine: Double

    init {
        val n = floor(angle * TWO_OVER_PI + 0.5)
        val y = (angle - n * HALF_PI_HIGH) - n * HALF_PI_LOW
        val s = y * horner(y * y, SIN)
        val c = horner(y * y, COS)
        val quarter = n.toInt()
        val odd = quarter % 2 == 1
        val first = if (odd) c else s
        val second = if (odd) s else c
        sine = if (quarter % 4 >= 2) -first else first
        cosine = if ((quarter + 1) % 4 >= 2) -second else second
    }
}
