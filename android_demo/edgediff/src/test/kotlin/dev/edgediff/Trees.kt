package dev.edgediff

import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Files
import java.nio.file.Path
import java.util.zip.CRC32
import java.util.zip.Deflater
import java.util.zip.DeflaterOutputStream

/** The bundles of `tests/hostile.py`, written out. */
internal object Trees {
    private val golden = Golden.read("manifest_cases.json")
    val cases: List<Json> get() = golden["cases"].items
    val valid: Map<String, ByteArray> get() = golden["valid"]["files"].entries.mapValues { it.value.bytes }

    fun write(folder: Path, files: Map<String, ByteArray>, links: Map<String, String> = emptyMap()): Path {
        Files.createDirectories(folder)
        for ((path, data) in files) {
            val file = folder.resolve(path)
            Files.createDirectories(file.parent)
            Files.write(file, data)
        }
        for ((path, target) in links) {
            Files.createDirectories(folder.resolve(path).parent)
            Files.createSymbolicLink(folder.resolve(path), Path.of(target))
        }
        return folder
    }

    /** The valid bundle's files with a case's changes. */
    fun changed(case: Json): Map<String, ByteArray> {
        val files = valid.toMutableMap()
        for ((path, data) in case["files"].entries) {
            if (data.value == null) files.remove(path) else files[path] = data.bytes
        }
        return files
    }
}

internal class ZipPart(val name: String, val data: ByteArray, val mode: Int = 0x81a4, val method: Int = 8)

/** A zip with the unix modes that its entries claim. */
internal fun zipOf(parts: List<ZipPart>): ByteArray {
    val out = ByteArrayOutputStream()
    val directory = ByteArrayOutputStream()
    for (part in parts) {
        val name = part.name.toByteArray()
        val packed = if (part.method == 8) deflate(part.data) else part.data
        val crc = CRC32().apply { update(part.data) }.value.toInt()
        val common = little(26) {
            putShort(20).putShort(0).putShort(part.method.toShort()).putShort(0).putShort(33).putInt(crc)
            putInt(packed.size).putInt(part.data.size).putShort(name.size.toShort()).putShort(0)
        }
        val offset = out.size()
        out.write(little(4) { putInt(0x04034b50) } + common + name + packed)
        directory.write(little(6) { putInt(0x02014b50).putShort(0x0314) } + common)
        directory.write(little(6) { putShort(0).putShort(0).putShort(0) })
        directory.write(little(8) { putInt(part.mode shl 16).putInt(offset) } + name)
    }
    val start = out.size()
    out.write(directory.toByteArray())
    val count = parts.size.toShort()
    out.write(little(22) {
        putInt(0x06054b50).putInt(0).putShort(count).putShort(count).putInt(directory.size()).putInt(start).putShort(0)
    })
    return out.toByteArray()
}

private fun deflate(data: ByteArray): ByteArray = ByteArrayOutputStream().also { out ->
    DeflaterOutputStream(out, Deflater(Deflater.DEFAULT_COMPRESSION, true)).use { it.write(data) }
}.toByteArray()

private fun little(size: Int, fill: ByteBuffer.() -> Unit): ByteArray =
    ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN).apply(fill).array()
