package dev.edgediff

/**
 * Strict JSON, as Python's `config.load_plain` reads it: a key given twice, NaN, a trailing comma or text after the
 * end are errors. Values are Map, List, String, Boolean, null and [JsonNumber].
 *
 * [unholdable] names the first number or text that the JSON can spell but no file may hold (1e999, half of a
 * surrogate pair). The caller decides when to complain: a manifest's version comes first.
 */
internal class JsonDocument(val root: Any?, val unholdable: String?)

/** A number as it was written: whether it is whole is part of its type. */
internal class JsonNumber(val text: String) {
    val isWhole: Boolean get() = text.none { it == '.' || it == 'e' || it == 'E' }

    override fun toString(): String = text
}

internal fun parseJson(text: String, where: String): JsonDocument {
    val parser = JsonParser(text, where)
    return JsonDocument(parser.document(), parser.unholdable)
}

private const val MAX_DEPTH = 400
private const val MAX_DIGITS = 4300 // Python's own limit for whole numbers

private class JsonParser(private val text: String, private val where: String) {
    private var at = 0
    var unholdable: String? = null
        private set

    fun document(): Any? {
        val value = value(0)
        space()
        if (at != text.length) fail("text after the end")
        return value
    }

    private fun value(depth: Int): Any? {
        if (depth > MAX_DEPTH) fail("nested too deeply")
        space()
        return when (val char = peek()) {
            '{' -> members(depth)
            '[' -> elements(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> if (char == '-' || char in '0'..'9') number() else fail("a value is expected")
        }
    }

    private fun members(depth: Int): Map<String, Any?> {
        val result = LinkedHashMap<String, Any?>()
        at++
        space()
        if (peek() == '}') return result.also { at++ }
        while (true) {
            space()
            if (peek() != '"') fail("a key is expected")
            val key = string()
            space()
            expect(':')
            if (key in result) fail("key '$key' is given twice")
            result[key] = value(depth + 1)
            space()
            if (peek() == '}') return result.also { at++ }
            expect(',')
        }
    }

    private fun elements(depth: Int): List<Any?> {
        val result = ArrayList<Any?>()
        at++
        space()
        if (peek() == ']') return result.also { at++ }
        while (true) {
            result.add(value(depth + 1))
            space()
            if (peek() == ']') return result.also { at++ }
            expect(',')
        }
    }

    private fun string(): String {
        val result = StringBuilder()
        at++
        while (true) {
            val char = peek()
            if (char < ' ') fail("a control character in a text")
            at++
            when (char) {
                '"' -> break
                '\\' -> result.append(escape())
                else -> result.append(char)
            }
        }
        val value = result.toString()
        if (unholdable == null && hasLoneSurrogate(value)) unholdable = "half of a surrogate pair"
        return value
    }

    private fun escape(): Char {
        val char = peek()
        at++
        val plain = "\"\\/".indexOf(char)
        if (plain >= 0) return char
        val control = "bfnrt".indexOf(char)
        if (control >= 0) return "\b\u000c\n\r\t"[control]
        if (char != 'u' || at + 4 > text.length) fail("an escape that JSON has not")
        val digits = text.substring(at, at + 4)
        if (!digits.all { it in '0'..'9' || it in 'a'..'f' || it in 'A'..'F' }) fail("an escape that JSON has not")
        at += 4
        return digits.toInt(16).toChar()
    }

    private fun number(): JsonNumber {
        val match = NUMBER.matchAt(text, at) ?: fail("a value is expected")
        at = match.range.last + 1
        val number = JsonNumber(match.value)
        if (number.isWhole && number.text.length > MAX_DIGITS) fail("a number of ${number.text.length} digits")
        if (!number.isWhole && unholdable == null && number.text.toDouble().isInfinite()) unholdable = number.text
        return number
    }

    private fun word(name: String, value: Any?): Any? {
        if (!text.startsWith(name, at)) fail("a value is expected")
        at += name.length
        return value
    }

    private fun space() {
        while (at < text.length && text[at] in " \t\n\r") at++
    }

    private fun peek(): Char = if (at < text.length) text[at] else fail("it ends too early")

    private fun expect(char: Char) {
        if (peek() != char) fail("'$char' is expected")
        at++
    }

    private fun fail(what: String): Nothing = refuse("syntax", where, "is not JSON: $what (character $at)")

    private companion object {
        val NUMBER = Regex("-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?")
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

/** Canonical JSON: sorted keys, two spaces, one newline at the end. NaN and infinity are programming errors. */
internal fun writeJson(value: Any?): String = buildString {
    writeValue(value, "\n")
    append('\n')
}

private fun StringBuilder.writeValue(value: Any?, line: String) {
    when (value) {
        is Map<*, *> -> writeAll("{", "}", value.entries.sortedBy { it.key as String }, line) { entry, inner ->
            writeText(entry.key as String)
            append(": ")
            writeValue(entry.value, inner)
        }
        is Iterable<*> -> writeAll("[", "]", value.toList(), line) { item, inner -> writeValue(item, inner) }
        is String -> writeText(value)
        is Double -> append(value.also { require(it.isFinite()) { "JSON holds no $it" } })
        else -> append(value)
    }
}

private fun <T> StringBuilder.writeAll(
    open: String, close: String, items: List<T>, line: String, write: StringBuilder.(T, String) -> Unit,
) {
    append(open)
    items.forEachIndexed { index, item ->
        append(if (index == 0) "" else ",").append(line).append("  ")
        write(item, "$line  ")
    }
    if (items.isNotEmpty()) append(line)
    append(close)
}

private fun StringBuilder.writeText(text: String) {
    append('"')
    for (char in text) {
        when {
            char == '"' || char == '\\' -> append('\\').append(char)
            char < ' ' -> append("\\u%04x".format(char.code))
            else -> append(char)
        }
    }
    append('"')
}
