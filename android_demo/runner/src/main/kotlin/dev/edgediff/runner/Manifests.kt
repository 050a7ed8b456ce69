package dev.edgediff.runner

import dev.edgediff.EdgeDiffException
import dev.edgediff.Manifest
import java.io.BufferedInputStream
import java.io.InputStream
import java.io.PrintStream

private const val MOST_BYTES = 1 shl 28

/**
 * Manifests by the thousand, for the comparison of readers: each frame of [input] is a decimal count of bytes, a
 * newline, and that many bytes. Each answer is a line, `ok` or the code, told at once.
 */
internal fun readManifests(input: InputStream, out: PrintStream) {
    val frames = BufferedInputStream(input, 1 shl 16)
    while (true) {
        val size = readSize(frames) ?: return
        val bytes = frames.readNBytes(size)
        if (bytes.size < size) throw EdgeDiffException("usage", "a frame of $size bytes ends after ${bytes.size}")
        out.print("${judge(bytes)}\n")
        out.flush()
    }
}

private fun judge(bytes: ByteArray): String = try {
    Manifest.read(bytes)
    "ok"
} catch (error: EdgeDiffException) {
    error.code
}

/** Null at the end of the input. */
private fun readSize(frames: InputStream): Int? {
    val digits = StringBuilder()
    while (true) {
        val byte = frames.read()
        if (byte < 0 && digits.isEmpty()) return null
        if (byte == '\n'.code) break
        if (byte < 0 || digits.length > 9) throw EdgeDiffException("usage", "a frame has no size")
        digits.append(byte.toChar())
    }
    return digits.toString().toIntOrNull()?.takeIf { it in 0..MOST_BYTES }
        ?: throw EdgeDiffException("usage", "a frame begins with '$digits'; it must be a count of bytes")
}
