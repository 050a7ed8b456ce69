package dev.edgediff

import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.util.zip.ZipException

private const val DIRECTORY_LIMIT = 8L shl 20
private const val END = 22
private const val END_64 = 56
private const val LOCATOR_64 = 20
private const val ENTRY = 46
private const val MAX_32 = 0xffffffffL

/** The directory at the end of a zip, bounded before it is read. A zip with a comment is none of ours. */
internal class ZipDirectory(private val archive: RandomAccessFile, private val shown: String) {
    fun entries(): List<ZipEntryInfo> {
        val (offset, size) = place()
        if (size > DIRECTORY_LIMIT) {
            refuse("limit", shown, "has a directory of $size bytes; at most $DIRECTORY_LIMIT are read")
        }
        if (offset < 0 || size < 0 || offset + size > archive.length()) throw ZipException("no directory at its place")
        val data = read(offset, size.toInt())
        val found = ArrayList<ZipEntryInfo>()
        var at = 0
        while (at < data.size) {
            if (data.size - at < ENTRY || data.int(at) != 0x02014b50L) throw ZipException("a broken directory")
            val next = at + ENTRY + data.short(at + 28) + data.short(at + 30) + data.short(at + 32)
            if (next > data.size) throw ZipException("a broken directory")
            found.add(entry(data, at))
            at = next
        }
        return found
    }

    /** Offset and size of the directory, from the zip's last bytes. */
    private fun place(): Pair<Long, Long> {
        val length = archive.length()
        if (length < END) noBundle()
        val end = read(length - END, END)
        if (end.int(0) != 0x06054b50L || end.short(20) != 0) noBundle()
        val size = end.int(12)
        val offset = end.int(16)
        if (size != MAX_32 && offset != MAX_32 && end.short(10) != 0xffff || length < END + LOCATOR_64 + END_64) {
            return offset to size
        }
        val locator = read(length - END - LOCATOR_64, LOCATOR_64)
        if (locator.int(0) != 0x07064b50L) return offset to size
        val place = locator.long(8)
        if (place < 0 || place > length - END_64) throw ZipException("no directory at its place")
        val end64 = read(place, END_64)
        if (end64.int(0) != 0x06064b50L) throw ZipException("no directory at its place")
        return end64.long(48) to end64.long(40)
    }

    private fun entry(data: ByteArray, at: Int): ZipEntryInfo {
        val wide = Wide(data, at)
        val name = try {
            Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data, at + ENTRY, data.short(at + 28))).toString()
        } catch (error: CharacterCodingException) {
            throw ZipException("a name that is not UTF-8").initCause(error)
        }
        val size = wide.value(24)
        val packed = wide.value(20)
        return ZipEntryInfo(
            name, method = data.short(at + 10), isEncrypted = data.short(at + 8) and 1 != 0,
            fileType = (data.int(at + 38) shr 28).toInt(), packed = packed, size = size, offset = wide.value(42),
        )
    }

    /** The fields that move to an entry's extra data where 32 bits do not hold them, in this order of reading. */
    private class Wide(private val data: ByteArray, private val at: Int) {
        private var extra = find()

        fun value(field: Int): Long {
            val narrow = data.int(at + field)
            if (narrow != MAX_32 || extra < 0 || extra + 8 > data.size) return narrow
            return data.long(extra).also { extra += 8 }
        }

        private fun find(): Int {
            var place = at + ENTRY + data.short(at + 28)
            val end = place + data.short(at + 30)
            while (place + 4 <= end) {
                if (data.short(place) == 1) return place + 4
                place += 4 + data.short(place + 2)
            }
            return -1
        }
    }

    private fun noBundle(): Nothing =
        refuse("not_a_bundle", shown, "is not a packed bundle: no zip, or one with a comment")

    private fun read(offset: Long, size: Int): ByteArray {
        archive.seek(offset)
        return ByteArray(size).also(archive::readFully)
    }
}
