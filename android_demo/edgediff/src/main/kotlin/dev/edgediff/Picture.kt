package dev.edgediff

import java.io.ByteArrayOutputStream
import java.io.DataOutputStream
import java.util.zip.CRC32
import java.util.zip.DeflaterOutputStream

/**
 * A picture: [pixels] are [height] x [width] x [channels] bytes, row by row; 1 channel is grey, 3 are RGB. [isFlagged]:
 * the bundle's safety checker marks it.
 */
public class Picture @JvmOverloads constructor(
    public val width: Int, public val height: Int, public val channels: Int, public val pixels: ByteArray,
    public val isFlagged: Boolean = false,
) {
    init {
        require(pixels.size.toLong() == 1L * width * height * channels) {
            "${pixels.size} bytes for $height x $width x $channels"
        }
    }

    /** `0xAARRGGBB` of every pixel, as Android's `Bitmap.createBitmap` takes them. */
    public fun argb(): IntArray = IntArray(width * height) { index ->
        val red = value(index * channels)
        val green = if (channels < 3) red else value(index * channels + 1)
        val blue = if (channels < 3) red else value(index * channels + 2)
        (0xff shl 24) or (red shl 16) or (green shl 8) or blue
    }

    /** The picture as a PNG file. */
    public fun png(): ByteArray {
        val out = ByteArrayOutputStream()
        out.write(byteArrayOf(0x89.toByte(), 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a))
        out.chunk("IHDR") {
            writeInt(width)
            writeInt(height)
            write(byteArrayOf(8, if (channels == 1) 0 else 2, 0, 0, 0))
        }
        out.chunk("IDAT") {
            val packed = DeflaterOutputStream(this)
            for (row in 0 until height) {
                packed.write(0) // no filter
                packed.write(pixels, row * width * channels, width * channels)
            }
            packed.finish()
        }
        out.chunk("IEND") {}
        return out.toByteArray()
    }

    private fun value(index: Int): Int = pixels[index].toInt() and 0xff

    internal companion object {
        /** From samples in [-1, 1], [channels, height, width], rounding halves to even as numpy does. */
        fun of(samples: FloatArray, shape: List<Int>, isFlagged: Boolean = false): Picture {
            if (shape.size != 3 || shape[0] != 1 && shape[0] != 3) {
                refuse("output", null, "the program puts out the shape $shape, which is no picture")
            }
            val (channels, height, width) = shape
            val pixels = ByteArray(samples.size)
            for (channel in 0 until channels) {
                for (at in 0 until height * width) {
                    val sample = (samples[channel * height * width + at] * 0.5f + 0.5f).coerceIn(0f, 1f) * 255f
                    pixels[at * channels + channel] = Math.rint(sample.toDouble()).toInt().toByte()
                }
            }
            return Picture(width, height, channels, pixels, isFlagged)
        }
    }
}

private fun ByteArrayOutputStream.chunk(name: String, write: DataOutputStream.() -> Unit) {
    val body = ByteArrayOutputStream()
    DataOutputStream(body).write()
    val data = name.toByteArray(Charsets.US_ASCII) + body.toByteArray()
    val frame = DataOutputStream(this)
    frame.writeInt(body.size())
    frame.write(data)
    frame.writeInt(CRC32().apply { update(data) }.value.toInt())
}
