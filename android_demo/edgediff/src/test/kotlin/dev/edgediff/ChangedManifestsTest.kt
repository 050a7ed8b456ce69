package dev.edgediff

import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** Every value of a manifest replaced in turn: `tests/kotlin_vectors.py` says what Python's reader makes of each. */
class ChangedManifestsTest {
    private val file = Path.of(System.getProperty("edgediff.vectors"), "manifests.json")
    private val golden = readJson(file)

    @Test
    fun `each change has the code that Python gives it`() {
        val wrong = golden.items.flatMap { one -> one["cases"].items.mapNotNull { differs(one["valid"].text, it) } }
        assertTrue(golden.items.sumOf { it["cases"].items.size } > 5000)
        assertEquals(emptyList(), wrong.take(60), "${wrong.size} differ")
    }

    private fun differs(valid: String, case: Json): String? {
        val (path, value, code) = case.items
        val text = writeJson(changed(valid, path.items, value))
        val have = codeOf { Manifest.read(text.toByteArray()) }
        val place = path.items.joinToString(".") { "${it.value}" }
        return if (have == code.text) null else "$place = ${writeJson(value.value).trim()}: $have, not ${code.text}"
    }

    @Suppress("UNCHECKED_CAST")
    private fun changed(valid: String, path: List<Json>, value: Json): Any? {
        val tree = parseJson(valid, "valid", Int.MAX_VALUE)
        val parent = path.dropLast(1).fold(tree) { at, part ->
            if (at is List<*>) at[part.int] else (at as Map<*, *>)[part.value]
        }
        val isAbsent = (value.value as? Map<*, *>)?.get("absent") == true
        val last = path.last()
        when {
            parent is MutableList<*> && isAbsent -> parent.removeAt(last.int)
            parent is MutableList<*> -> (parent as MutableList<Any?>)[last.int] = value.value
            isAbsent -> (parent as MutableMap<String, Any?>).remove(last.text)
            else -> (parent as MutableMap<String, Any?>)[last.text] = value.value
        }
        return tree
    }
}
