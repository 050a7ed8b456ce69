package dev.edgediff

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** A sound: 16-bit [samples], those of one moment side by side, [rate] moments a second. */
public class Sound(public val samples: ShortArray, public val channels: Int, public val rate: Int) {
    /** The sound as a WAV file. */
    public fun wav(): ByteArray {
        val size = samples.size * 2
        val file = ByteBuffer.allocate(HEAD + size).order(ByteOrder.LITTLE_ENDIAN)
        file.put("RIFF".toByteArray()).putInt(HEAD - 8 + size).put("WAVEfmt ".toByteArray()).putInt(16)
        file.putShort(1).putShort(channels.toShort()).putInt(rate).putInt(rate * channels * 2)
        file.putShort((channels * 2).toShort()).putShort(16).put("data".toByteArray()).putInt(size)
        file.asShortBuffer().put(samples)
        return file.array()
    }

    internal companion object {
        private const val HEAD = 44
        private const val PEAK = 32767f

        /** From values in [-1, 1], [channels, length], rounding halves to even as numpy does. */
        fun of(values: FloatArray, channels: Int, rate: Int): Sound {
            val length = values.size / channels
            val samples = ShortArray(values.size) { at ->
                val value = values[at % channels * length + at / channels].coerceIn(-1f, 1f) * PEAK
                Math.rint(value.toDouble()).toInt().toShort()
            }
            return Sound(samples, channels, rate)
        }
    }
}
