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
            val tokenizer = load(spec(group))
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
        val tokenizer = load(plain)
        for (text in listOf("a".repeat(10_000), "a photo of ".repeat(1000), "\u05d0\u05d1 ".repeat(3400))) {
            val ids = tokenizer.encode(text, 77)
            assertEquals(77, ids.size)
            assertEquals(listOf(tokenizer.begin, tokenizer.end), listOf(ids.first(), ids.last()))
            assertEquals(1, ids.count { it == tokenizer.begin })
        }
    }

    @Test
    fun `an added token may be several ids, and is cut like a text`() {
        val tokenizer = load(makeSpec(added = listOf(AddedToken("<cat>", listOf(7, 8, 9), false, false, false, false))))
        assertEquals(listOf(tokenizer.begin, 7, 8, 9, tokenizer.end), tokenizer.encode("<cat>", 5).toList())
        assertEquals(listOf(tokenizer.begin, 7, 8, tokenizer.end), tokenizer.encode("<cat>", 4).toList())
    }

    @Test
    fun `damaged files and half a surrogate pair are refused`() {
        val tokenizer = load(plain)
        assertEquals("prompt", codeOf { tokenizer.encode("\ud83d", 77) })
        assertEquals("prompt", codeOf { tokenizer.encode("a", 1) })
        val damage = listOf(
            "merges.txt" to "t h x\n", "merges.txt" to "t zz9\n", "merges.txt" to "t h\r\n",
            "merges.txt" to "t  h\n", "merges.txt" to "\nt h\n",
            "merges.txt" to "t h\n\n", "merges.txt" to "t h\n#version: 0.2\n", "vocab.json" to "{\"a\": -1}",
            "vocab.json" to "{\"a\": 1, \"b\": 1}", "vocab.json" to "{", "vocab.json" to "[]", "vocab.json" to "{}",
            "vocab.json" to "{\"a\": 1.0}", "vocab.json" to "{\"a\": 16777217}",
            "vocab.json" to "{\"a\": 1, \"a\": 2}",
        )
        for ((file, text) in damage) {
            load(plain)
            Files.writeString(folder.resolve(file), text)
            assertEquals("tokenizer", codeOf { loadTokenizer(plain, folder, "b") }, "$file: $text")
        }
        val twice = AddedToken("<cat>", listOf(7, 8), false, false, false, false)
        for (spec in listOf(makeSpec(pad = "nowhere"), makeSpec(pad = "<cat>", added = listOf(twice)))) {
            assertEquals("tokenizer", codeOf { load(spec) })
        }
    }

    private val plain = makeSpec()

    private fun makeSpec(
        begin: String = "<|startoftext|>", end: String = "<|endoftext|>", pad: String = end, unknown: String = end,
        added: List<AddedToken> = listOf(begin, end).map(::exact),
    ) = TokenizerSpec("clip", "vocab.json", "merges.txt", 77, begin, end, pad, unknown, added)

    private fun exact(token: String) =
        AddedToken(token, listOf(golden["vocab"].find(token)?.int ?: 0), false, false, false, false)

    /** A group's tokenizer, as a manifest has it. */
    private fun spec(group: Json): TokenizerSpec =
        record(::readTokenizer)(group["tokenizer"].value, Place("tokenizer.json", isNewer = false))

    private fun load(spec: TokenizerSpec): Tokenizer {
        Files.writeString(folder.resolve("vocab.json"), writeJson(golden["vocab"].value))
        Files.writeString(folder.resolve("merges.txt"), golden["merges"].items.joinToString("\n") { it.text } + "\n")
        val files = TokenizerSpec(
            spec.kind, plain.vocab, plain.merges, spec.length, spec.begin, spec.end, spec.pad, spec.unknown, spec.added,
        )
        return loadTokenizer(files, folder, "b")
    }
}
