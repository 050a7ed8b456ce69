package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path

private const val MOST_ID = (1 shl 24).toDouble()
private const val SHOWN = 40

/** A tokenizer of the bundle in [folder], from its two files in their one normal form. Raises `tokenizer`. */
internal fun loadTokenizer(spec: TokenizerSpec, folder: Path, shown: String): Tokenizer {
    val vocabulary = readVocabulary(readText(folder, spec.vocab, shown), "$shown/${spec.vocab}")
    val merges = readMerges(readText(folder, spec.merges, shown), vocabulary, "$shown/${spec.merges}")
    return makeTokenizer(spec, vocabulary, merges, "$shown/${spec.vocab}")
}

/** What the manifest and the two files say together. Raises `tokenizer` for a token that is in neither. */
internal fun makeTokenizer(
    spec: TokenizerSpec, vocabulary: Map<String, Int>, merges: List<Pair<String, String>>, where: String,
): Tokenizer {
    val id = { key: String, token: String ->
        val ids = spec.added.lastOrNull { it.content == token }?.ids ?: listOfNotNull(vocabulary[token])
        ids.singleOrNull()
            ?: refuse("tokenizer", where, "$key '$token' is no one token, of this vocabulary or added")
    }
    val unknown = vocabulary[spec.unknown]
        ?: refuse("tokenizer", where, "has no token '${spec.unknown}', which is the unknown one")
    val pairs = BytePairs(vocabulary, merges, unknown)
    return Tokenizer(id("begin", spec.begin), id("end", spec.end), id("pad", spec.pad), pairs, AddedTokens(spec.added))
}

private fun readText(folder: Path, path: String, shown: String): String =
    asTokenizer { decodeUtf8(Files.readAllBytes(folder.resolve(path)), "$shown/$path") }

/** What is no UTF-8 or no JSON is a fault of the tokenizer here. */
private fun <T> asTokenizer(read: () -> T): T = try {
    read()
} catch (error: EdgeDiffException) {
    throw EdgeDiffException("tokenizer", error.message.orEmpty(), null, error)
}

private fun readVocabulary(text: String, where: String): Map<String, Int> {
    val members = asTokenizer { parseJson(text, where) } as? JsonObject
        ?: refuse("tokenizer", where, "must be a JSON object: token -> id")
    if (members.isEmpty()) refuse("tokenizer", where, "holds no tokens; it must map each token to its id")
    val ids = HashSet<Int>()
    return members.mapValues { (token, value) ->
        val number = (value as? JsonNumber)?.takeIf { it.isWhole && it.value >= 0 && it.value <= MOST_ID }
            ?: refuse("tokenizer", where, "token '${token.take(SHOWN)}' has id $value; ids are 0 to 2^24")
        number.value.toInt().also {
            if (!ids.add(it)) refuse("tokenizer", where, "two tokens have the id $it; every token needs its own")
        }
    }
}

/** Pairs in order of preference. Lines end with `\n` alone; a first line that begins with `#version` is skipped. */
private fun readMerges(text: String, vocabulary: Map<String, Int>, where: String): List<Pair<String, String>> {
    if ('\r' in text) {
        val number = text.substringBefore('\r').count { it == '\n' } + 1
        refuse("tokenizer", where, "line $number holds a carriage return; lines end with \\n alone")
    }
    val lines = if (text.isEmpty()) emptyList() else text.removeSuffix("\n").split("\n")
    val first = if (lines.firstOrNull()?.startsWith("#version") == true) 1 else 0
    return lines.drop(first).mapIndexed { index, line ->
        val parts = line.split(" ")
        if (parts.size != 2 || parts.any { it.isEmpty() }) {
            val what = "line ${index + first + 1} is '${line.take(SHOWN)}'"
            refuse("tokenizer", where, "$what; it must be two tokens and one space")
        }
        val (left, right) = parts
        listOf(left, right, left + right).firstOrNull { it !in vocabulary }?.let {
            refuse("tokenizer", where, "line ${index + first + 1} needs '${it.take(SHOWN)}', which is no token")
        }
        left to right
    }
}
