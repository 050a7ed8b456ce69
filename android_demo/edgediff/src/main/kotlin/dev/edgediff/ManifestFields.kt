package dev.edgediff

// Step 4 of docs/format.md: values taken out of JSON by type and within their limits, depth first. Codes: `value`,
// `unknown_key`, `path`.

/** A type and its limits: gives the value, or refuses it with its place. */
internal typealias Read<T> = (value: Any?, place: Place) -> T

/** Where a value stands in [where], spelled out only once it is refused. [isNewer]: the file's minor version is. */
internal class Place(
    private val where: String, private val isNewer: Boolean, private val parent: Place? = null,
    private val key: Any? = null,
) {
    fun at(key: Any): Place = Place(where, isNewer, this, key)

    fun refuse(code: String, message: String): Nothing = refuse(code, where, message)

    fun wrong(value: Any?, allowed: String): Nothing = refuse("value", "'$this' = ${shown(value)}: must be $allowed")

    /** A word or key that a later minor version may have. */
    fun unknown(code: String, message: String): Nothing =
        refuse(code, message + if (isNewer) "; the bundle is newer than this reader: update the app" else "")

    override fun toString(): String {
        val parts = generateSequence(this) { it.parent }.mapNotNull { it.key }.toList()
        return parts.reversed().joinToString(".").ifEmpty { "manifest" }
    }

    private fun shown(value: Any?): String = when (value) {
        is JsonObject -> "an object"
        is JsonList -> "a list"
        is String -> "\"${value.take(SHOWN)}\""
        else -> "$value"
    }

    private companion object {
        const val SHOWN = 60
    }
}

/** The keys of one object, to be taken in the order of its table. */
internal class Fields(private val members: JsonObject, private val place: Place) {
    private val known = ArrayList<String>()

    fun <T> one(key: String, read: Read<T>): T {
        known.add(key)
        if (key !in members) place.refuse("value", "key '${place.at(key)}' is missing")
        return read(members[key], place.at(key))
    }

    fun <T> oneOr(key: String, default: T, read: Read<T>): T {
        known.add(key)
        return if (key in members) read(members[key], place.at(key)) else default
    }

    /** Null where the key is left out, or null. */
    fun <T> optional(key: String, read: Read<T>): T? {
        known.add(key)
        return read(members[key] ?: return null, place.at(key))
    }

    fun refuse(code: String, message: String): Nothing = place.refuse(code, "'$place': $message")

    /** Raises `unknown_key` for the first key that nobody took. */
    fun finish() {
        if (members.size <= known.size && known.containsAll(members.keys)) return
        val unknown = members.keys.firstOrNull { it !in known } ?: return
        place.unknown("unknown_key", "unknown key '${place.at(unknown)}'${didYouMean(unknown, known)}")
    }
}

/** An object that [build] reads by its table. */
internal fun <T> record(build: (Fields) -> T): Read<T> = { value, place ->
    val fields = Fields(value as? JsonObject ?: place.wrong(value, "an object"), place)
    build(fields).also { fields.finish() }
}

/** The lengths of lists and maps come after their items. */
internal fun <T> listOf(length: IntRange, read: Read<T>): Read<List<T>> = { value, place ->
    val items = (value as? JsonList ?: place.wrong(value, "a list"))
    val result = items.mapIndexed { index, item -> read(item, place.at(index)) }
    if (result.size !in length) place.refuse("value", "'$place' has ${result.size} items; ${spelled(length)}")
    result
}

internal fun <T> mapOf(length: IntRange, read: Read<T>): Read<Map<String, T>> = { value, place ->
    val members = (value as? JsonObject ?: place.wrong(value, "an object"))
    val result = LinkedHashMap<String, T>()
    for ((key, item) in members) result[readName(key, place.at(key))] = read(item, place.at(key))
    if (result.size !in length) place.refuse("value", "'$place' has ${result.size} entries; ${spelled(length)}")
    result
}

internal fun text(length: IntRange): Read<String> = { value, place ->
    val text = value as? String ?: place.wrong(value, "a text")
    if (text.codePointCount(0, text.length) !in length) place.wrong(value, "a text of ${spelled(length)} characters")
    text
}

internal val anyText: Read<String> = text(0..MOST_TEXT)

private val SHORT = text(1..200)

/** A name: no control characters. */
internal val readName: Read<String> = { value, place ->
    SHORT(value, place).also { name ->
        if (name.any { it < ' ' || it == '\u007f' }) place.wrong(value, "a name without control characters")
    }
}

internal val readPath: Read<String> = { value, place ->
    safePath(value as? String ?: place.wrong(value, "a path")) { message -> place.refuse("path", message) }
}

internal fun whole(range: LongRange): Read<Long> = { value, place ->
    val number = (value as? JsonNumber)?.takeIf { it.isWhole }?.value
    if (number == null || number < range.first || number > range.last) {
        place.wrong(value, "a whole number from ${range.first} to ${range.last}")
    }
    number.toLong()
}

internal fun whole(range: IntRange): Read<Int> {
    val read = whole(range.first.toLong()..range.last.toLong())
    return { value, place -> read(value, place).toInt() }
}

internal const val LARGEST = 1e30

internal fun number(range: ClosedFloatingPointRange<Double>): Read<Double> = { value, place ->
    val number = (value as? JsonNumber)?.value ?: place.wrong(value, "a number")
    if (number < range.start || number > range.endInclusive) {
        place.wrong(value, "a number from ${range.start} to ${range.endInclusive}")
    }
    number
}

internal val anyNumber: Read<Double> = number(-LARGEST..LARGEST)

/** A number above 0. */
internal fun positive(most: Double): Read<Double> = { value, place ->
    number(0.0..most)(value, place).also { if (it == 0.0) place.wrong(value, "above 0") }
}

internal val yesOrNo: Read<Boolean> = { value, place -> value as? Boolean ?: place.wrong(value, "true or false") }

internal fun word(vararg allowed: String): Read<String> = { value, place ->
    val word = value as? String ?: place.wrong(value, "one of ${allowed.joinToString()}")
    if (word !in allowed) {
        place.unknown("value", "'$place' = '${word.take(60)}' is unknown${didYouMean(word, allowed.toList())}")
    }
    word
}

private fun isInPath(char: Char) = char in 'A'..'Z' || char in 'a'..'z' || char in '0'..'9' || char in "._+-/@"

/** A relative path that stays inside the bundle (section 4); [fail] is told what is wrong with any other. */
internal fun safePath(path: String, fail: (String) -> Nothing): String {
    if (path.length !in 1..400 || !path.all(::isInPath)) {
        fail("'${path.take(60)}': a path has 1 to 400 characters of A-Z a-z 0-9 . _ + - / @")
    }
    if (path.split('/').any { it.isEmpty() || it == "." || it == ".." }) {
        fail("'$path': a path in a bundle is relative, with one slash between its parts, and never leaves it")
    }
    return path
}

private fun spelled(range: IntRange): String =
    if (range.first == range.last) "${range.first} are needed" else "${range.first} to ${range.last} are allowed"
