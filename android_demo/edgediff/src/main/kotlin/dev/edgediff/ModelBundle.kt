package dev.edgediff

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.Path

private const val MANIFEST_LIMIT = 16L shl 20 // bytes; a thousand rows with four graphs are below 1 MB

/** An opened bundle: the folder, and what its manifest says. Made by [open] and [unpack]. */
public class ModelBundle internal constructor(public val folder: Path, public val manifest: Manifest) {
    /** Where a listed file, or a folder of listed files, lies. Raises `missing_file` for any other. */
    public fun path(relative: String): Path {
        if (manifest.files.none { it.path == relative || it.path.startsWith("$relative/") }) {
            refuse("missing_file", folder.toString(), "the bundle lists no file '$relative'")
        }
        return folder.resolve(relative)
    }

    /** The tokenizer; null when the program has no text stage. */
    public fun tokenizer(): Tokenizer? = manifest.program.tokenize?.let { Tokenizer.load(path(it.folder)) }

    public companion object {
        /**
         * Reads and checks a bundle before anything in it is run. [verify] false leaves out the SHA-256 of the files
         * and nothing else: for an app that has checked them once, when it unpacked them.
         *
         * Raises [EdgeDiffException] with the code of the broken rule: `not_a_bundle`, `syntax`, `version`,
         * `unknown_key`, `value`, `graph`, `tensor`, `carry`, `carry_before_write`, `guidance`, `history`, and of
         * the files `path`, `link`, `file`, `pickle`, `missing_file`, `size`, `unlisted`, `hash`.
         */
        @JvmStatic
        @JvmOverloads
        public fun open(folder: Path, verify: Boolean = true): ModelBundle {
            val shown = folder.toString()
            val manifest = reading(shown) { checkFolder(folder, shown, verify) }
            return ModelBundle(folder.toAbsolutePath().normalize(), manifest)
        }

        /**
         * Unpacks a packed bundle (`edgediff pack`) into a new folder [out], as strictly as a folder is read: nothing
         * is left behind when it is refused. Further codes: `archive` (damaged, encrypted, a name twice), `limit`
         * (entries, size, ratio), `exists`.
         */
        @JvmStatic
        public fun unpack(file: Path, out: Path): ModelBundle {
            unpackArchive(file, out)
            return ModelBundle(out.toAbsolutePath().normalize(), readManifest(out, out.toString()))
        }
    }
}

/** What the system refuses while reading is the bundle's fault. */
internal fun <T> reading(shown: String, read: () -> T): T = try {
    read()
} catch (error: IOException) {
    throw EdgeDiffException("file", "cannot be read: ${error.message ?: error}", shown, error)
}

internal fun checkFolder(folder: Path, shown: String, verify: Boolean): Manifest {
    val manifest = readManifest(folder, shown)
    val present = scanFolder(folder, shown)
    checkFiles(manifest, folder, present, shown)
    if (verify) checkHashes(manifest, folder, shown)
    return manifest
}

private fun readManifest(folder: Path, shown: String): Manifest {
    if (!Files.isDirectory(folder)) {
        val what = if (Files.exists(folder)) "is a file; unpack it first" else "does not exist"
        refuse("not_a_bundle", shown, "is not an edgediff bundle: it $what")
    }
    val file = folder.resolve(MANIFEST)
    if (!Files.exists(file, NOFOLLOW_LINKS)) {
        refuse("not_a_bundle", shown, "is not an edgediff bundle: it has no $MANIFEST")
    }
    if (!Files.isRegularFile(file, NOFOLLOW_LINKS)) throw notAFile(file, MANIFEST, shown)
    val where = "$shown/$MANIFEST"
    val size = Files.size(file)
    if (size > MANIFEST_LIMIT) refuse("size", where, "has $size bytes; a manifest has at most $MANIFEST_LIMIT")
    return parseManifest(readUtf8(file, where), where)
}

/** A file's text. Raises `syntax` when it is not UTF-8. */
internal fun readUtf8(file: Path, where: String): String = try {
    Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(Files.readAllBytes(file))).toString()
} catch (error: CharacterCodingException) {
    throw EdgeDiffException("syntax", "is not UTF-8", where, error)
}
