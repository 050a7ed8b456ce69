package dev.edgediff

import java.text.Normalizer

/**
 * Text to token ids: CLIP's byte-level BPE as section 6 of docs/format.md says; the same ids as Python's
 * `edgediff.runtime.tokenizer`. Letters and digits are those of the Unicode version of the runtime.
 */
public class Tokenizer internal constructor(
    public val begin: Int, public val end: Int, public val pad: Int, private val pairs: BytePairs,
    private val added: AddedTokens,
) {
    /**
     * [maxLength] ids: begin, the text (cut where it is too long), end, padding. Raises `prompt` for a [maxLength]
     * below 2 and for a text that is no Unicode (half of a surrogate pair).
     */
    public fun encode(text: String, maxLength: Int): IntArray {
        if (maxLength < 2) refuse("prompt", null, "max_length = $maxLength; a text needs its begin and its end")
        if (hasLoneSurrogate(text)) refuse("prompt", null, "the prompt has half a surrogate pair; pass valid Unicode")
        val room = maxLength - 2
        val ids = ArrayList<Int>()
        for (part in added.split(text, ::normalize)) {
            if (ids.size >= room) break
            if (part.ids != null) ids.addAll(part.ids) else encodePlain(part.text, room, ids)
        }
        val shown = minOf(ids.size, room)
        return IntArray(maxLength) { index ->
            when {
                index == 0 -> begin
                index <= shown -> ids[index - 1]
                index == shown + 1 -> end
                else -> pad
            }
        }
    }

    private fun encodePlain(text: String, room: Int, ids: MutableList<Int>) {
        for (piece in cutPieces(text)) {
            if (ids.size >= room) return
            pairs.encode(piece, ids)
        }
    }
}

/** NFC, every run of white space one space, every character in lower case on its own. */
internal fun normalize(text: String): String {
    val composed = Normalizer.normalize(text, Normalizer.Form.NFC)
    val result = StringBuilder(composed.length)
    var inSpace = false
    composed.forEachCodePoint { code ->
        if (!isSpace(code)) result.appendLower(code) else if (!inSpace) result.append(' ')
        inSpace = isSpace(code)
    }
    return result.toString()
}

private fun StringBuilder.appendLower(code: Int) {
    appendCodePoint(if (code == DOTTED_I) 'i'.code else Character.toLowerCase(code))
    if (code == DOTTED_I) append('\u0307') // the one character whose lower case is two
}

private const val DOTTED_I = 0x130

internal inline fun String.forEachCodePoint(act: (Int) -> Unit) {
    var at = 0
    while (at < length) {
        val code = codePointAt(at)
        act(code)
        at += Character.charCount(code)
    }
}

/** Unicode's White_Space, which Java's own predicates are not. */
internal fun isSpace(code: Int): Boolean = when (code) {
    in 0x9..0xd, 0x20, 0x85, 0xa0, 0x1680, in 0x2000..0x200a, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000 -> true
    else -> false
}

internal fun isNumber(code: Int): Boolean = when (Character.getType(code).toByte()) {
    Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER -> true
    else -> false
}

/**
 * 's 't 're 've 'm 'll 'd, runs of letters, single digits, runs of anything else that is not a space. Spaces
 * vanish. A special token that is found here is a piece of its own, and then cut once more as ordinary text.
 */
internal fun cutPieces(text: String): List<String> {
    val pieces = ArrayList<String>()
    var at = 0
    while (at < text.length) {
        val special = SPECIAL.firstOrNull { text.startsWith(it, at) }
        val code = text.codePointAt(at)
        if (special != null) {
            pieces.add("<|")
            pieces.add(special.substring(2, special.length - 2))
            pieces.add("|>")
            at += special.length
            continue
        }
        if (isSpace(code)) {
            at += Character.charCount(code)
            continue
        }
        val end = endOfPiece(text, at, code)
        pieces.add(text.substring(at, end))
        at = end
    }
    return pieces
}

private val SPECIAL = listOf("<|startoftext|>", "<|endoftext|>")
private val ENDINGS = listOf("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")

private fun endOfPiece(text: String, at: Int, code: Int): Int {
    ENDINGS.firstOrNull { text.startsWith(it, at) }?.let { return at + it.length }
    if (isNumber(code)) return at + Character.charCount(code)
    val letters = Character.isLetter(code)
    var end = at
    while (end < text.length) {
        val next = text.codePointAt(end)
        if (letters != Character.isLetter(next) || !letters && (isSpace(next) || isNumber(next))) break
        end += Character.charCount(next)
    }
    return end
}
