package dev.edgediff

import java.io.IOException
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.Path

private const val MANIFEST_LIMIT = 16L shl 20 // bytes

/** An opened bundle: the folder, and what its manifest says. Made by [open] and [unpack]. */
public class ModelBundle internal constructor(
    public val folder: Path, public val manifest: Manifest, internal val tokenizers: Map<String, Tokenizer>,
) {
    /** Where a listed file, or a folder of listed files, lies. Raises `missing_file` for any other. */
    public fun path(relative: String): Path {
        if (manifest.files.none { it.path == relative || it.path.startsWith("$relative/") }) {
            refuse("missing_file", folder.toString(), "the bundle lists no file '$relative'")
        }
        return folder.resolve(relative)
    }

    /** A tokenizer by its name in the manifest; the first one for null, and null where there is none. */
    public fun tokenizer(name: String? = null): Tokenizer? =
        if (name == null) tokenizers.values.firstOrNull() else tokenizers[name]

    public companion object {
        /**
         * Reads and checks a bundle before anything in it is run. [verify] false leaves out the SHA-256 of the files
         * and nothing else: for an app that has checked them once, when it unpacked them.
         *
         * Raises [EdgeDiffException] with the code of the broken rule, those of docs/format.md: `not_a_bundle`,
         * `syntax`, `version`, `unknown_key`, `value`, `path`, those of its section 7, and of the files `link`,
         * `file`, `pickle`, `missing_file`, `size`, `unlisted`, `hash`, `tokenizer`.
         */
        @JvmStatic
        @JvmOverloads
        public fun open(folder: Path, verify: Boolean = true): ModelBundle {
            val shown = folder.toString()
            val (manifest, tokenizers) = reading(shown) { checkFolder(folder, shown, verify) }
            return ModelBundle(folder.toAbsolutePath().normalize(), manifest, tokenizers)
        }

        /**
         * Unpacks a packed bundle (`edgediff pack`) into a new folder [out], as strictly as a folder is read: nothing
         * is left behind when it is refused. Further codes: `archive` (damaged, encrypted, a name twice), `limit`
         * (entries, size, ratio), `exists`.
         */
        @JvmStatic
        public fun unpack(file: Path, out: Path): ModelBundle {
            val (manifest, tokenizers) = unpackArchive(file, out)
            return ModelBundle(out.toAbsolutePath().normalize(), manifest, tokenizers)
        }
    }
}

/** What the system refuses while reading is the bundle's fault. */
internal fun <T> reading(shown: String, read: () -> T): T = try {
    read()
} catch (error: IOException) {
    throw EdgeDiffException("file", "cannot be read: ${error.message ?: error}", shown, error)
}

/** Steps 1 to 6 of docs/format.md, section 2. */
internal fun checkFolder(folder: Path, shown: String, verify: Boolean): Pair<Manifest, Map<String, Tokenizer>> {
    val manifest = readManifest(folder, shown)
    val present = scanFolder(folder, shown)
    checkFiles(manifest, folder, present, shown)
    if (verify) checkHashes(manifest, folder, shown)
    return manifest to manifest.tokenizers.mapValues { loadTokenizer(it.value, folder, shown) }
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
    return parseManifest(Files.readAllBytes(file), where)
}
