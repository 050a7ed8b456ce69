package dev.edgediff

import java.io.InputStream
import java.io.OutputStream
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.Path
import java.security.MessageDigest

// The files of a bundle: plain, inside the folder, of the size and SHA-256 that the manifest states.

private const val CHUNK = 1 shl 20

/** Relative path -> bytes of every file below [folder]; links and special files are errors. */
internal fun scanFolder(folder: Path, shown: String): Map<String, Long> {
    val found = sortedMapOf<String, Long>()
    val waiting = ArrayDeque(listOf("" to folder))
    while (waiting.isNotEmpty()) {
        val (prefix, current) = waiting.removeLast()
        val entries = Files.newDirectoryStream(current).use { it.sortedBy { path -> path.fileName.toString() } }
        for (entry in entries) {
            val path = "$prefix${entry.fileName}"
            when {
                Files.isDirectory(entry, NOFOLLOW_LINKS) -> waiting.add("$path/" to entry)
                Files.isRegularFile(entry, NOFOLLOW_LINKS) -> found[path] = Files.size(entry)
                else -> throw notAFile(entry, path, shown)
            }
        }
    }
    return found
}

internal fun notAFile(file: Path, path: String, shown: String): EdgeDiffException {
    val isLink = Files.isSymbolicLink(file)
    val what = if (isLink) "a link" else "not a regular file"
    val message = "'$path' is $what; a bundle holds plain files and folders only"
    return EdgeDiffException(if (isLink) "link" else "file", message, shown)
}

internal fun checkFiles(manifest: Manifest, folder: Path, present: Map<String, Long>, shown: String) {
    for (path in present.keys) refusePickle(folder.resolve(path), path, shown)
    for (entry in manifest.files) {
        val size = present[entry.path]
        if (size == null) {
            val what = if (Files.isDirectory(folder.resolve(entry.path))) "is a folder" else "is missing"
            refuse("missing_file", shown, "'${entry.path}' $what; the manifest says a file of ${entry.bytes} bytes")
        }
        if (size != entry.bytes) {
            refuse("size", shown, "'${entry.path}' has $size bytes, the manifest says ${entry.bytes}; copy it again")
        }
    }
    val listed = manifest.files.mapTo(hashSetOf(MANIFEST)) { it.path }
    val unlisted = present.keys.firstOrNull { it !in listed } ?: return
    refuse("unlisted", shown, "'$unlisted' is not in the manifest; remove it from the folder")
}

internal fun checkHashes(manifest: Manifest, folder: Path, shown: String) {
    for (entry in manifest.files) {
        val digest = Files.newInputStream(folder.resolve(entry.path)).use { copyHashed(it, null) }
        if (digest != entry.sha256) {
            val both = "SHA-256 ${digest.take(12)}.., the manifest says ${entry.sha256.take(12)}.."
            refuse("hash", shown, "'${entry.path}' has $both; the file was changed or damaged, copy it again")
        }
    }
}

/** SHA-256 (hex) of what is left in [source], copied to [target] on the way; memory stays at 1 MiB. */
internal fun copyHashed(source: InputStream, target: OutputStream?): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val buffer = ByteArray(CHUNK)
    while (true) {
        val count = source.read(buffer)
        if (count < 0) break
        digest.update(buffer, 0, count)
        target?.write(buffer, 0, count)
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}
