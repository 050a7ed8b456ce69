package dev.edgediff

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException

// JSON as step 2 of docs/format.md wants it; whatever else JSON may be is `syntax`. Values are [JsonObject],
// [JsonList], String, [JsonNumber], Boolean and null.

private const val MOST_DEPTH = 32
private const val MOST_DIGITS = 40
internal const val MOST_TEXT = 65_536 // characters, which are code points

/** An object's members, in the order of the file. */
internal class JsonObject : LinkedHashMap<String, Any?>()

internal class JsonList : ArrayList<Any?>()

/** A number. Whether it was written without fraction and exponent is part of its type. */
internal class JsonNumber(val value: Double, val isWhole: Boolean) {
    override fun toString(): String = if (isWhole && value in -EXACT..EXACT) "${value.toLong()}" else "$value"

    private companion object {
        const val EXACT = 9007199254740992.0
    }
}

/** A file's text. Raises `syntax` where it is not UTF-8. */
internal fun decodeUtf8(bytes: ByteArray, where: String): String = try {
    Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString()
} catch (error: CharacterCodingException) {
    throw EdgeDiffException("syntax", "is not UTF-8", where, error)
}

/** [mostText]: the longest text, in characters. */
internal fun parseJson(text: String, where: String, mostText: Int = MOST_TEXT): Any? =
    JsonParser(text, where, mostText).document()

private class JsonParser(private val text: String, private val where: String, private val mostText: Int) {
    private var at = 0

    fun document(): Any? {
        val value = value(1)
        skipSpace()
        if (at != text.length) fail("text after the end")
        return value
    }

    private fun value(depth: Int): Any? {
        skipSpace()
        return when (val char = peek()) {
            '{' -> members(depth)
            '[' -> elements(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> if (char == '-' || isDigit(char)) number() else fail("a value is expected")
        }
    }

    private fun members(depth: Int): JsonObject {
        if (depth > MOST_DEPTH) fail("nested more than $MOST_DEPTH deep")
        at++
        skipSpace()
        val result = JsonObject()
        if (takes('}')) return result
        while (true) {
            skipSpace()
            if (peek() != '"') fail("a key is expected")
            val key = string()
            skipSpace()
            expect(':')
            if (key in result) fail("key '${key.take(SHOWN)}' is given twice")
            result[key] = value(depth + 1)
            skipSpace()
            if (takes('}')) return result
            expect(',')
        }
    }

    private fun elements(depth: Int): JsonList {
        if (depth > MOST_DEPTH) fail("nested more than $MOST_DEPTH deep")
        at++
        skipSpace()
        val result = JsonList()
        if (takes(']')) return result
        while (true) {
            result.add(value(depth + 1))
            skipSpace()
            if (takes(']')) return result.also { it.trimToSize() }
            expect(',')
        }
    }

    private fun string(): String {
        val start = ++at
        while (isPlain(peek())) at++
        val value = if (peek() == '"') text.substring(start, at) else escaped(start)
        at++
        val isLong = value.length > mostText && value.codePointCount(0, value.length) > mostText
        if (isLong) fail("a text of more than $mostText characters")
        return value
    }

    /** The rest of a text that has an escape at this place; ends before its closing quote. */
    private fun escaped(start: Int): String {
        val result = StringBuilder(text.substring(start, at))
        while (true) {
            val char = peek()
            when {
                char == '"' -> break
                char == '\\' -> result.append(escape())
                isPlain(char) -> result.append(char).also { at++ }
                else -> fail("a control character in a text")
            }
        }
        return result.toString().also { if (hasLoneSurrogate(it)) fail("half of a surrogate pair") }
    }

    private fun isPlain(char: Char) = char != '"' && char != '\\' && char >= ' '

    private fun escape(): Char {
        at++
        val char = peek()
        at++
        val plain = "\"\\/".indexOf(char)
        if (plain >= 0) return char
        val control = "bfnrt".indexOf(char)
        if (control >= 0) return "\b\u000c\n\r\t"[control]
        if (char != 'u' || at + 4 > text.length) fail("an escape that JSON has not")
        var code = 0
        repeat(4) {
            val digit = "0123456789abcdef".indexOf(text[at++].let { if (it in 'A'..'F') it + 32 else it })
            if (digit < 0) fail("an escape that JSON has not")
            code = code * 16 + digit
        }
        return code.toChar()
    }

    private fun number(): JsonNumber {
        val start = at
        if (text[at] == '-') at++
        if (!takes('0')) digits()
        val end = at
        if (takes('.')) digits()
        if (takes('e') || takes('E')) {
            if (!takes('+')) takes('-')
            digits()
        }
        if (at == end && at == start + 1) return DIGITS[text[start] - '0']
        if (at - start > MOST_DIGITS) fail("a number of ${at - start} characters")
        val value = text.substring(start, at).toDouble()
        if (value.isInfinite()) fail("a number that is too large")
        return JsonNumber(value, isWhole = at == end)
    }

    private fun digits() {
        if (at == text.length || !isDigit(text[at])) fail("a digit is expected")
        while (at < text.length && isDigit(text[at])) at++
    }

    private fun isDigit(char: Char) = char in '0'..'9'

    private fun word(name: String, value: Any?): Any? {
        if (!text.startsWith(name, at)) fail("a value is expected")
        at += name.length
        return value
    }

    private fun skipSpace() {
        while (at < text.length && (text[at] == ' ' || text[at] == '\n' || text[at] == '\t' || text[at] == '\r')) at++
    }

    private fun peek(): Char = if (at < text.length) text[at] else fail("it ends too early")

    private fun takes(char: Char): Boolean = (at < text.length && text[at] == char).also { if (it) at++ }

    private fun expect(char: Char) {
        if (!takes(char)) fail("'$char' is expected")
    }

    private fun fail(what: String): Nothing = refuse("syntax", where, "is not JSON: $what (character $at)")

    private companion object {
        const val SHOWN = 60
        val DIGITS = Array(10) { JsonNumber(it.toDouble(), isWhole = true) } // the most frequent ones, shared
    }
}

internal fun hasLoneSurrogate(text: String): Boolean {
    var index = 0
    while (index < text.length) {
        val char = text[index++]
        if (!char.isSurrogate()) continue
        if (!char.isHighSurrogate() || index == text.length || !text[index].isLowSurrogate()) return true
        index++
    }
    return false
}
