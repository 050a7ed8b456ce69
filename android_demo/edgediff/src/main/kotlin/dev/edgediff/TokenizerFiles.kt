package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path

private val DEFAULTS = linkedMapOf(
    "bos_token" to "<|startoftext|>", "eos_token" to "<|endoftext|>", "unk_token" to "<|endoftext|>",
    "pad_token" to "<|endoftext|>",
)

internal fun loadTokenizer(folder: Path): Tokenizer {
    val vocabulary = readVocabulary(folder.resolve("vocab.json"))
    val merges = readMerges(folder.resolve("merges.txt"), vocabulary)
    val (named, added) = readSpecial(folder)
    val ids = named.mapValues { (key, token) ->
        vocabulary[token.content] ?: refuse(
            "config", folder.resolve("vocab.json").toString(),
            "$key '${token.content}' is not in this vocabulary; it and the special tokens must come from one tokenizer",
        )
    }
    val pairs = BytePairs(vocabulary, merges, ids.getValue("unk_token"))
    val tokens = AddedTokens(withIds(added, vocabulary))
    return Tokenizer(ids.getValue("bos_token"), ids.getValue("eos_token"), ids.getValue("pad_token"), pairs, tokens)
}

/** The last of several tokens with one text counts; a token that the vocabulary lacks gets an id behind it. */
private fun withIds(added: List<AddedToken>, vocabulary: Map<String, Int>): List<AddedToken> {
    var next = vocabulary.size
    val byText = LinkedHashMap<String, AddedToken>()
    for (token in added) {
        val id = vocabulary[token.content] ?: byText[token.content]?.id ?: next++
        byText[token.content] = token.copy(id = id)
    }
    return byText.values.toList()
}

private fun readVocabulary(file: Path): Map<String, Int> {
    val where = file.toString()
    val vocabulary = readObject(file).mapValues { (token, value) ->
        (value as? JsonNumber)?.takeIf { it.isWhole }?.text?.toIntOrNull()?.takeIf { it >= 0 }
            ?: refuse("config", where, "token '$token' has id $value; ids are whole numbers from 0")
    }
    if (vocabulary.isEmpty()) refuse("config", where, "holds no tokens; it must map each token to its id")
    if (vocabulary.values.toSet().size != vocabulary.size) {
        refuse("config", where, "two tokens have the same id; every token needs its own")
    }
    return vocabulary
}

/** Pairs in order of preference; lines that begin with `#version` are skipped. */
private fun readMerges(file: Path, vocabulary: Map<String, Int>): List<Pair<String, String>> {
    val where = file.toString()
    val merges = ArrayList<Pair<String, String>>()
    readText(file).removeSuffix("\n").split("\n").forEachIndexed { index, raw ->
        val line = raw.removeSuffix("\r")
        if (line.startsWith("#version")) return@forEachIndexed
        val parts = line.split(" ")
        if (parts.size != 2 || parts.any { it.isEmpty() }) {
            refuse("config", where, "line ${index + 1} is '${line.take(40)}'; it must be two tokens and one space")
        }
        val (first, second) = parts
        val missing = listOf(first, second, first + second).firstOrNull { it !in vocabulary }
        if (missing != null) {
            refuse("config", where, "line ${index + 1} merges '$first' and '$second', but vocab.json has no '$missing'")
        }
        merges.add(first to second)
    }
    return merges
}

/**
 * Begin, end, unknown and padding by their keys, and all added tokens, by transformers' rules: `added_tokens_decoder`
 * in tokenizer_config.json decides where it exists; otherwise special_tokens_map.json goes before
 * tokenizer_config.json, and CLIP's own tokens stand for what neither names.
 */
private fun readSpecial(folder: Path): Pair<Map<String, AddedToken>, List<AddedToken>> {
    val file = folder.resolve("tokenizer_config.json")
    val config = readOptional(file)
    val decoder = config["added_tokens_decoder"] as Map<*, *>?
    val overlay = folder.resolve("special_tokens_map.json")
    val settings = if (decoder == null) config + readOptional(overlay) else config
    val named = DEFAULTS.mapValues { (key, text) ->
        readToken(settings[key].takeUnless { it == null || it == "" } ?: text, if (decoder == null) overlay else file)
    }
    val texts = named.values.map { it.content }.toSet()
    val added = decoder.orEmpty().entries.sortedWith(compareBy({ (it.key as String).length }, { it.key as String }))
        .map { readToken(it.value, file, texts) }
    val known = added.map { it.content }.toSet()
    return named to added + named.values.filter { it.content !in known }
}

/** A token given as text is matched before normalizing; as an object, it says so itself. */
private fun readToken(value: Any?, file: Path, named: Set<String> = emptySet()): AddedToken {
    if (value is String) return AddedToken(value, -1, false, false, false, false)
    val map = value as? Map<*, *>
    val content = map?.get("content") as? String
        ?: refuse("config", file.toString(), "a special token is $value; it must be text, or an object with 'content'")
    val special = content in named || map["special"] as? Boolean ?: true
    return AddedToken(
        content, -1, isNormalized = map["normalized"] as? Boolean ?: !special,
        singleWord = map["single_word"] == true, takesLeft = map["lstrip"] == true, takesRight = map["rstrip"] == true,
    )
}

private fun readOptional(file: Path): Map<String, Any?> = if (Files.exists(file)) readObject(file) else emptyMap()

private fun readObject(file: Path): Map<String, Any?> {
    val map = parseJson(readText(file), file.toString()).root as? Map<*, *>
        ?: refuse("config", file.toString(), "must be a JSON object")
    return map.entries.associate { (key, value) -> key as String to value }
}

private fun readText(file: Path): String {
    val where = file.toString()
    if (!Files.isRegularFile(file)) refuse("missing", where, "there is no such file")
    return reading(where) { readUtf8(file, where) }
}
