package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path
import java.util.Base64

/** The golden files that pytest writes and checks: `tests/golden`. */
internal object Golden {
    private val folder = Path.of(System.getProperty("edgediff.golden"))

    fun read(name: String): Json = readJson(folder.resolve(name))
}

/** A file of results that no limit of a manifest binds. */
internal fun readJson(file: Path): Json = Json(parseJson(Files.readString(file), "$file", Int.MAX_VALUE))

/** A JSON value with short ways in; a wrong step is the test's failure. */
internal class Json(val value: Any?) {
    operator fun get(key: String): Json = Json((value as Map<*, *>).let { require(key in it) { "no '$key'" }; it[key] })

    fun find(key: String): Json? = (value as Map<*, *>)[key]?.let(::Json)

    val items: List<Json> get() = (value as List<*>).map(::Json)
    val entries: Map<String, Json>
        get() = (value as Map<*, *>).entries.associate { (it.key as String) to Json(it.value) }
    val text: String get() = value as String
    val int: Int get() = value.toString().toInt()
    val long: Long get() = value.toString().toLong()
    val double: Double get() = value.toString().toDouble()
    val doubles: List<Double> get() = items.map { it.double }
    val ints: List<Int> get() = items.map { it.int }
    val bytes: ByteArray get() = Base64.getDecoder().decode(text)
}

/** Numbers are equal as numbers, whatever their spelling. */
internal fun plain(value: Any?): Any? = when (value) {
    is JsonNumber -> value.value
    is Number -> value.toDouble()
    is Map<*, *> -> value.mapValues { plain(it.value) }
    is List<*> -> value.map(::plain)
    else -> value
}

internal fun codeOf(act: () -> Any?): String = try {
    act()
    "no error"
} catch (error: EdgeDiffException) {
    error.code
}
