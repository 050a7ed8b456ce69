package dev.edgediff

import java.io.IOException
import java.nio.file.Files
import java.nio.file.Path
import java.util.zip.ZipFile

// Nothing in a bundle is ever unpickled, and a file that looks like a pickle is refused.

private val SUFFIXES = listOf(".pt", ".pth", ".pkl", ".pickle", ".ckpt")
private const val HEAD = 4096
private const val ENOUGH = 8 // weights may begin with a pickle's two bytes by chance, but not go on with 8 opcodes

/**
 * Raises `pickle` for a pickle by name or by content: a pickle stream of protocol 2 to 5 (which is how old `.bin`
 * checkpoints begin), or a zip that holds a `data.pkl` (`torch.save`).
 */
internal fun refusePickle(file: Path, path: String, shown: String) {
    val name = path.lowercase()
    if (SUFFIXES.any { name.endsWith(it) } || isPickled(file)) {
        refuse("pickle", shown, "'$path' is a pickle, which can run code; convert it to safetensors")
    }
}

private fun isPickled(file: Path): Boolean {
    val buffer = ByteArray(HEAD)
    var count = 0
    Files.newInputStream(file).use { stream ->
        while (count < HEAD) count += stream.read(buffer, count, HEAD - count).also { if (it < 0) return@use }
    }
    val head = buffer.copyOf(count)
    if (head.startsWith(0x50, 0x4b, 3, 4)) return holdsPickle(file)
    val protocol = if (head.startsWith(0x80) && count > 1) head[1].toInt() else return false
    return protocol in 2..5 && PickleScan(head).looksLikeOne()
}

private fun ByteArray.startsWith(vararg bytes: Int): Boolean =
    size >= bytes.size && bytes.indices.all { this[it] == bytes[it].toByte() }

private fun holdsPickle(file: Path): Boolean = try {
    ZipFile(file.toFile()).use { zip ->
        zip.entries().asSequence().any { it.name.substringAfterLast('/') == "data.pkl" }
    }
} catch (_: IOException) {
    false
}

/** Reads opcodes of Python's pickle machine, without doing what they say. */
private class PickleScan(private val data: ByteArray) {
    private var at = 0

    fun looksLikeOne(): Boolean {
        repeat(ENOUGH) {
            if (at >= data.size) return false
            val opcode = data[at++].toInt().toChar()
            if (opcode == '.') return true
            if (!skipArgument(opcode.code and 0xff)) return false
        }
        return true
    }

    private fun skipArgument(opcode: Int): Boolean = when (opcode.toChar()) {
        in NO_ARGUMENT -> true
        '\u0080', 'K', 'h', 'q', '\u0082' -> skip(1)
        'M', '\u0083' -> skip(2)
        'J', 'j', 'r', '\u0084' -> skip(4)
        'G', '\u0095' -> skip(8)
        'U', 'C', '\u008c', '\u008a' -> skipCounted(1)
        'T', 'B', 'X', '\u008b' -> skipCounted(4)
        '\u008e', '\u008d', '\u0096' -> skipCounted(8)
        'I', 'L', 'F', 'S', 'V', 'P', 'g', 'p' -> skipLine()
        'c', 'i' -> skipLine() && skipLine()
        else -> false
    }

    private fun skip(count: Long): Boolean {
        if (count < 0 || count > data.size - at) return false
        at += count.toInt()
        return true
    }

    private fun skipCounted(width: Int): Boolean {
        val start = at
        if (!skip(width.toLong())) return false
        var count = 0L
        for (index in width - 1 downTo 0) count = (count shl 8) or (data[start + index].toLong() and 0xff)
        return skip(count)
    }

    private fun skipLine(): Boolean {
        while (at < data.size) if (data[at++] == '\n'.code.toByte()) return true
        return false
    }

    private companion object {
        // MARK POP POP_MARK DUP NONE the containers' opcodes REDUCE BUILD OBJ PERSID NEWOBJ TUPLE1-3 bools
        // EMPTY_SET ADDITEMS FROZENSET NEWOBJ_EX STACK_GLOBAL MEMOIZE NEXT_BUFFER READONLY_BUFFER
        val NO_ARGUMENT = ("(012NRQbo]a})etlud)s" +
            "\u0081\u0085\u0086\u0087\u0088\u0089\u008f\u0090\u0091\u0092\u0093\u0094\u0097\u0098").toSet()
    }
}
