package dev.edgediff

/**
 * The keys of one JSON object, taken out by type; a key that nobody took is unknown. Codes: `value` for what is
 * missing or of another type, `unknown_key`, `path`.
 */
internal class Fields(value: Any?, private val where: String, private val path: String) {
    private val map: Map<*, *> = value as? Map<*, *> ?: refuse("value", where, "'$path' is not an object")
    private val taken = HashSet<String>()

    fun string(key: String, default: String? = null): String =
        take(key, default) { it as? String ?: wrong(key, "a text") }

    fun optionalString(key: String): String? = if (isNull(key)) null else string(key)

    fun long(key: String, default: Long? = null, least: Long = Long.MIN_VALUE): Long =
        take(key, default) { whole(key, it, least) }

    fun optionalLong(key: String, least: Long = Long.MIN_VALUE): Long? =
        if (isNull(key)) null else long(key, least = least)

    fun int(key: String, least: Long = Int.MIN_VALUE.toLong()): Int = narrow(key, long(key, least = least))

    fun double(key: String, default: Double? = null): Double = take(key, default) { real(key, it) }

    fun optionalDouble(key: String): Double? = if (isNull(key)) null else double(key)

    fun doubles(key: String): List<Double> = list(key) { real(key, it) }

    fun optionalDoubles(key: String): List<Double>? = if (isNull(key)) null else doubles(key)

    fun ints(key: String): List<Int> = list(key) { narrow(key, whole(key, it)) }

    fun strings(key: String): List<String> = list(key, emptyList()) { it as? String ?: wrong(key, "a list of texts") }

    fun choice(key: String, allowed: List<String>, default: String? = null): String = string(key, default).also {
        if (it !in allowed) wrong(key, "one of ${allowed.joinToString()}")
    }

    fun path(key: String): String = safePath(string(key), where)

    fun paths(key: String): List<String> = strings(key).map { safePath(it, where) }

    fun sizes(key: String): List<Int?> = list(key) { item ->
        if (item == "batch") null else narrow(key, whole(key, item))
    }

    fun <T> one(key: String, read: (Fields) -> T): T = take(key, null) { inside(it, at(key), read) }

    fun <T> oneOrDefault(key: String, default: T & Any, read: (Fields) -> T & Any): T & Any =
        take(key, default) { inside(it, at(key), read) }

    fun <T> optional(key: String, read: (Fields) -> T): T? = if (isNull(key)) null else one(key, read)

    fun <T> list(key: String, default: List<T>? = null, read: (Any?) -> T): List<T> =
        take(key, default) { value -> (value as? List<*> ?: wrong(key, "a list")).map(read) }

    fun <T> objects(key: String, read: (Fields) -> T): List<T> {
        var index = 0
        return list(key) { inside(it, "${at(key)}.${index++}", read) }
    }

    fun stringTable(key: String): Map<String, String> =
        table(key, emptyMap()) { value, _ -> value as? String ?: wrong(key, "texts by name") }

    fun longsTable(key: String): Map<String, Long> = table(key, emptyMap()) { value, _ -> whole(key, value) }

    fun doublesTable(key: String): Map<String, List<Double>> = table(key, emptyMap()) { value, _ ->
        (value as? List<*> ?: wrong(key, "lists of numbers by name")).map { real(key, it) }
    }

    fun <T> objectTable(key: String, default: Map<String, T>? = emptyMap(), read: (Fields) -> T): Map<String, T> =
        table(key, default) { item, place -> inside(item, place, read) }

    private fun <T> table(key: String, default: Map<String, T>?, read: (Any?, String) -> T): Map<String, T> =
        take(key, default) { value ->
            (value as? Map<*, *> ?: wrong(key, "an object")).entries.associate { (name, item) ->
                name as String to read(item, "${at(key)}.$name")
            }
        }

    /** Anything at all, or nothing: results that the phone does not read. */
    fun anyObject(key: String) {
        if (!isNull(key)) take(key, Unit) { it as? Map<*, *> ?: wrong(key, "an object") }
    }

    /** Raises `unknown_key` for a key that nobody asked for. */
    fun finish() {
        val unknown = map.keys.firstOrNull { it !in taken } as String? ?: return
        refuse("unknown_key", where, "unknown key '${at(unknown)}'${didYouMean(unknown, taken)}")
    }

    private fun <T> inside(value: Any?, place: String, read: (Fields) -> T): T {
        val fields = Fields(value, where, place)
        return read(fields).also { fields.finish() }
    }

    private fun <T> take(key: String, default: T?, read: (Any?) -> T): T {
        taken.add(key)
        if (key in map) return read(map[key])
        return default ?: refuse("value", where, "key '${at(key)}' is missing")
    }

    private fun isNull(key: String): Boolean {
        taken.add(key)
        return map[key] == null
    }

    private fun whole(key: String, value: Any?, least: Long = Long.MIN_VALUE): Long {
        val number = (value as? JsonNumber)?.takeIf { it.isWhole }?.text?.toLongOrNull() ?: wrong(key, "a whole number")
        return if (number >= least) number else wrong(key, "a whole number of at least $least")
    }

    private fun real(key: String, value: Any?): Double =
        (value as? JsonNumber)?.text?.toDouble()?.takeIf { it.isFinite() } ?: wrong(key, "a number")

    private fun narrow(key: String, value: Long): Int =
        if (value in Int.MIN_VALUE..Int.MAX_VALUE) value.toInt() else wrong(key, "a number below 2^31")

    fun wrong(key: String, what: String): Nothing = refuse("value", where, "'${at(key)}' must be $what")

    private fun at(key: String): String = if (path.isEmpty()) key else "$path.$key"
}

/** A relative path that stays inside the bundle. Raises `path` for any other. */
internal fun safePath(path: String, where: String): String {
    val parts = path.split('/')
    val problem = when {
        path.isEmpty() || '\\' in path || DRIVE.containsMatchIn(path) -> "is relative, with forward slashes"
        path.any { it < ' ' || it == '\u007f' || it.isSurrogate() && hasLoneSurrogate(path) } ->
            "has no control characters and no half of a surrogate pair"
        path.startsWith("/") -> "is never absolute"
        ".." in parts || "." in parts || "" in parts -> "never leaves it"
        else -> return path
    }
    refuse("path", where, "'$path': a path in a bundle $problem")
}

private val DRIVE = Regex("^[A-Za-z]:")
