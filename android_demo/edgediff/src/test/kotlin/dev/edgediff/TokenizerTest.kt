package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
import org.junit.jupiter.api.io.TempDir

class TokenizerTest {
    @TempDir
    lateinit var folder: Path
    private val golden = Golden.read("tokenizer.json")

    @Test
    fun `every golden text has Python's ids`() {
        var count = 0
        for (group in golden["groups"].items) {
            val tokenizer = load(group["special_tokens_map"].value)
            for (case in group["cases"].items) {
                val ids = tokenizer.encode(case["text"].text, case["max_length"].int).toList()
                assertEquals(case["ids"].ints, ids, "${group["name"].text}: '${case["text"].text}'")
                count++
            }
        }
        assert(count >= 500) { "$count texts" }
    }

    @Test
    fun `a very long text is cut and keeps its end`() {
        val tokenizer = load(emptyMap<String, Any>())
        for (text in listOf("a".repeat(10_000), "a photo of ".repeat(1000), "\u05d0\u05d1 ".repeat(3400))) {
            val ids = tokenizer.encode(text, 77)
            assertEquals(77, ids.size)
            assertEquals(listOf(tokenizer.begin, tokenizer.end), listOf(ids.first(), ids.last()))
            assertEquals(1, ids.count { it == tokenizer.begin })
        }
    }

    @Test
    fun `damaged files and half a surrogate pair are refused`() {
        val tokenizer = load(emptyMap<String, Any>())
        assertEquals("text", codeOf { tokenizer.encode("\ud83d", 77) })
        assertEquals("text", codeOf { tokenizer.encode("a", 1) })
        assertEquals("missing", codeOf { Tokenizer.load(folder.resolve("nowhere")) })
        val damage = listOf(
            "merges.txt" to "t h x\n" to "config", "merges.txt" to "t zz9\n" to "config",
            "vocab.json" to "{\"a\": -1}" to "config",
            "vocab.json" to "{\"a\": 1, \"b\": 1}" to "config", "vocab.json" to "{" to "syntax",
            "special_tokens_map.json" to "{\"pad_token\": \"nowhere\"}" to "config",
        )
        for ((change, code) in damage) {
            load(emptyMap<String, Any>())
            Files.writeString(folder.resolve(change.first), change.second)
            assertEquals(code, codeOf { Tokenizer.load(folder) }, "$change")
        }
    }

    private fun load(special: Any?): Tokenizer {
        Files.writeString(folder.resolve("vocab.json"), writeJson(golden["vocab"].value))
        Files.writeString(folder.resolve("merges.txt"), golden["merges"].items.joinToString("\n") { it.text } + "\n")
        Files.writeString(folder.resolve("special_tokens_map.json"), writeJson(special))
        return Tokenizer.load(folder)
    }
}
