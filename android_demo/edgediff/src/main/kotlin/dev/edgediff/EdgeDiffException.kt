package dev.edgediff

/**
 * Anything that the user can put right. [code] is a stable word, the same one that the Python reader gives
 * (`hash`, `path`, `carry_before_write`, ...); [where] is a file, with the key inside it where that is known.
 */
public class EdgeDiffException(
    public val code: String,
    message: String,
    public val where: String? = null,
    cause: Throwable? = null,
) : Exception(if (where == null) message else "$where: $message", cause)

internal fun refuse(code: String, where: String?, message: String): Nothing =
    throw EdgeDiffException(code, message, where)

/** The end of an error about an unknown word: the nearest one, then all that are allowed. */
internal fun didYouMean(word: String, allowed: Collection<String>): String {
    if (allowed.isEmpty() || allowed.size > MOST_COMPARED) return ""
    val near = allowed.minBy { editDistance(word, it) }
    val isNear = editDistance(word, near) <= maxOf(word.length, near.length) * 2 / 5
    val hint = if (isNear) "; did you mean '$near'?" else ""
    return if (allowed.size <= MOST_SHOWN) "$hint (allowed: ${allowed.sorted().joinToString()})" else hint
}

private const val MOST_SHOWN = 24
private const val MOST_COMPARED = 1000

private fun editDistance(a: String, b: String): Int {
    if (maxOf(a.length, b.length) > 200) return maxOf(a.length, b.length)
    var row = IntArray(b.length + 1) { it }
    for (i in 1..a.length) {
        val next = IntArray(b.length + 1)
        next[0] = i
        for (j in 1..b.length) {
            val change = row[j - 1] + if (a[i - 1] == b[j - 1]) 0 else 1
            next[j] = minOf(row[j] + 1, next[j - 1] + 1, change)
        }
        row = next
    }
    return row[b.length]
}
