package dev.edgediff

/** A token that is taken out of the text as it stands; several [ids]: a textual inversion of several vectors. */
internal class AddedToken(
    val content: String, val ids: List<Int>, val isNormalized: Boolean, val singleWord: Boolean,
    val takesLeft: Boolean, val takesRight: Boolean,
) {
    fun renamed(content: String) = AddedToken(content, ids, isNormalized, singleWord, takesLeft, takesRight)
}

/** Part of a text: an added token's [ids], or text that is encoded as usual. */
internal class TextPart(val text: String, val ids: List<Int>?)

/**
 * Takes added tokens out of a text: those that are not normalized from the text as it stands, the others from what
 * lies between once that is normalized. The leftmost, then the longest match counts.
 */
internal class AddedTokens(tokens: List<AddedToken>) {
    private val unique = tokens.associateBy { it.content }.values // the last of several with one text counts
    private val exact = longestFirst(unique.filter { !it.isNormalized })
    private val normalized = unique.filter { it.isNormalized }

    private fun longestFirst(tokens: List<AddedToken>) =
        tokens.filter { it.content.isNotEmpty() }.sortedByDescending { it.content.length }

    fun split(text: String, normalize: (String) -> String): List<TextPart> {
        val inside = longestFirst(normalized.map { it.renamed(normalize(it.content)) })
        return take(text, exact).flatMap { part ->
            if (part.ids != null) listOf(part) else take(normalize(part.text), inside)
        }
    }

    private fun take(text: String, tokens: List<AddedToken>): List<TextPart> {
        val parts = ArrayList<TextPart>()
        var done = 0
        var at = 0
        while (at < text.length) {
            val token = tokens.firstOrNull { text.startsWith(it.content, at) }
            if (token == null) {
                at++
                continue
            }
            var start = at
            var end = at + token.content.length
            at = end
            if (token.singleWord && !standsAlone(text, start, end)) continue
            if (token.takesLeft) while (start > done && isSpace(text[start - 1].code)) start--
            if (token.takesRight) while (end < text.length && isSpace(text[end].code)) end++
            if (done < start) parts.add(TextPart(text.substring(done, start), null))
            parts.add(TextPart(text.substring(start, end), token.ids))
            done = end
            at = maxOf(at, end)
        }
        if (done < text.length) parts.add(TextPart(text.substring(done), null))
        return parts
    }

    private fun standsAlone(text: String, start: Int, end: Int): Boolean {
        val before = start == 0 || !isWord(text.codePointBefore(start))
        val after = end == text.length || !isWord(text.codePointAt(end))
        return before && after
    }

    private fun isWord(code: Int): Boolean = Character.isLetterOrDigit(code) || code == '_'.code ||
        Character.getType(code).toByte() in setOf(
            Character.NON_SPACING_MARK, Character.ENCLOSING_MARK, Character.COMBINING_SPACING_MARK,
            Character.LETTER_NUMBER, Character.CONNECTOR_PUNCTUATION,
        )
}
