package dev.edgediff

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
