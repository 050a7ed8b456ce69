package dev.edgediff

import java.io.IOException
import java.io.InputStream
import java.io.RandomAccessFile
import java.nio.channels.Channels
import java.nio.file.FileAlreadyExistsException
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.Path
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.nio.file.StandardOpenOption.CREATE_NEW
import java.nio.file.StandardOpenOption.WRITE
import java.util.UUID
import java.util.zip.Inflater
import java.util.zip.InflaterInputStream
import java.util.zip.ZipException

private const val MOST_ENTRIES = 10_000
private const val MOST_BYTES = 32L shl 30
private const val MOST_RATIO = 200

/**
 * Unpacks a zip into a hidden folder beside [out], checks that folder as strictly as any bundle, and only then
 * renames it to [out].
 */
internal fun unpackArchive(file: Path, out: Path): Pair<Manifest, Map<String, Tokenizer>> {
    val shown = file.toString()
    if (Files.exists(out, NOFOLLOW_LINKS)) refuse("exists", out.toString(), "exists already; choose another name")
    val parent = out.toAbsolutePath().normalize().parent
    val partial = parent.resolve(".${out.fileName}.partial-${UUID.randomUUID().toString().take(8)}")
    return try {
        reading(shown) {
            Files.createDirectory(partial)
            RandomAccessFile(file.toFile(), "r").use { archive ->
                try {
                    val entries = withoutTopFolder(ZipDirectory(archive, shown).entries())
                    checkEntries(entries, archive.length(), shown)
                    for (entry in entries) if (!entry.isFolder) extract(archive, entry, partial, shown)
                } catch (error: ZipException) {
                    throw EdgeDiffException("archive", "is damaged: ${error.message}; copy it again", shown, error)
                }
            }
            checkFolder(partial, shown, verify = true).also { Files.move(partial, out, ATOMIC_MOVE) }
        }
    } finally {
        partial.toFile().deleteRecursively()
    }
}

/** A packed bundle may have one folder around its files, which holds the manifest. */
private fun withoutTopFolder(entries: List<ZipEntryInfo>): List<ZipEntryInfo> {
    val top = entries.firstOrNull()?.name?.substringBefore('/', "").orEmpty()
    val isAround = top !in setOf("", ".", "..") && entries.all { it.name.startsWith("$top/") } &&
        entries.any { it.name == "$top/$MANIFEST" }
    if (!isAround) return entries
    return entries.filter { it.name != "$top/" }.map { it.renamed(it.name.removePrefix("$top/")) }
}

private fun checkEntries(entries: List<ZipEntryInfo>, packed: Long, shown: String) {
    for (entry in entries) checkEntry(entry, shown)
    val files = entries.filter { !it.isFolder }
    val names = files.map { it.name }.sorted()
    names.zipWithNext().firstOrNull { (a, b) -> a == b }
        ?.let { refuse("archive", shown, "holds '${it.first}' twice; pack the bundle again") }
    val folded = names.groupBy { it.lowercase() }.values.firstOrNull { it.size > 1 }
    folded?.let { refuse("path", shown, "'${it[0]}' and '${it[1]}' are one file where case is ignored; rename one") }
    val total = files.sumOf { it.size }
    limit(shown, "entries", entries.size.toLong(), MOST_ENTRIES.toLong())
    limit(shown, "bytes unpacked", total, MOST_BYTES)
    limit(shown, "times its packed size", total / maxOf(packed, 1), MOST_RATIO.toLong())
}

private fun checkEntry(entry: ZipEntryInfo, shown: String) {
    safePath(entry.name.removeSuffix("/")) { message -> refuse("path", shown, message) }
    if (entry.fileType != 0 && entry.fileType != REGULAR && entry.fileType != FOLDER) {
        refuse("link", shown, "'${entry.name}' is a link or a special file; a bundle has none")
    }
    if (entry.isEncrypted || entry.method != STORED && entry.method != DEFLATED) {
        refuse("archive", shown, "'${entry.name}' is encrypted or not deflated; pack the bundle again")
    }
}

private fun limit(shown: String, what: String, value: Long, most: Long) {
    if (value > most) refuse("limit", shown, "has $value $what; at most $most are read")
}

private fun extract(archive: RandomAccessFile, entry: ZipEntryInfo, folder: Path, shown: String) {
    val target = folder.resolve(entry.name)
    try {
        Files.createDirectories(target.parent)
        Files.newOutputStream(target, CREATE_NEW, WRITE).use { output ->
            entry.open(archive).use { source -> copyExactly(source, output, entry, shown) }
        }
    } catch (error: FileAlreadyExistsException) {
        throw EdgeDiffException("archive", "'${entry.name}' is both a file and a folder", shown, error)
    }
}

private fun copyExactly(source: InputStream, target: java.io.OutputStream, entry: ZipEntryInfo, shown: String) {
    val buffer = ByteArray(1 shl 16)
    var left = entry.size
    while (true) {
        val count = source.read(buffer)
        if (count < 0) break
        left -= count
        if (left < 0) refuse("archive", shown, "'${entry.name}' is longer than it says")
        target.write(buffer, 0, count)
    }
    if (left > 0) refuse("archive", shown, "'${entry.name}' is shorter than it says")
}

private const val STORED = 0
private const val DEFLATED = 8
private const val REGULAR = 0x8
private const val FOLDER = 0x4

/** One entry of a zip's directory, with the fields that `java.util.zip` does not show. */
internal class ZipEntryInfo(
    val name: String, val method: Int, val isEncrypted: Boolean, val fileType: Int, val packed: Long, val size: Long,
    private val offset: Long,
) {
    val isFolder: Boolean get() = name.endsWith("/")

    fun renamed(name: String): ZipEntryInfo =
        ZipEntryInfo(name, method, isEncrypted, fileType, packed, size, offset)

    /** The entry's bytes, unpacked; the archive must stay open. */
    fun open(archive: RandomAccessFile): InputStream {
        archive.seek(offset)
        val head = ByteArray(30).also(archive::readFully)
        if (head.int(0) != 0x04034b50L) throw ZipException("'$name' has no header")
        archive.seek(offset + 30 + head.short(26) + head.short(28))
        val raw = Bounded(Channels.newInputStream(archive.channel), packed)
        return if (method == STORED) raw else InflaterInputStream(raw, Inflater(true), 1 shl 16)
    }
}

private class Bounded(private val source: InputStream, private var left: Long) : InputStream() {
    override fun read(): Int = if (left <= 0) -1 else source.read().also { left-- }

    override fun read(bytes: ByteArray, offset: Int, length: Int): Int {
        if (left <= 0) return -1
        return source.read(bytes, offset, minOf(length.toLong(), left).toInt()).also { if (it > 0) left -= it }
    }
}

internal fun ByteArray.short(at: Int): Int = (this[at].toInt() and 0xff) or ((this[at + 1].toInt() and 0xff) shl 8)

internal fun ByteArray.int(at: Int): Long = short(at).toLong() or (short(at + 2).toLong() shl 16)

internal fun ByteArray.long(at: Int): Long = int(at) or (int(at + 4) shl 32)
