package dev.edgediff

import kotlin.test.Test
import kotlin.test.assertEquals

/** Step 2 of docs/format.md, section 2. */
class JsonTest {
    @Test
    fun `what JSON has not is refused`() {
        val texts = listOf(
            "", " ", "{", "[1,]", "{\"a\":1,}", "[1 2]", "01", "-", "+1", ".5", "5.", "1e", "1e+", "0x1", "NaN",
            "Infinity", "-Infinity", "tru", "nul", "'a'", "[1]x", "{\"a\" 1}", "{1: 2}", "\"\\x\"", "\"\\u12\"",
            "\"\\u12g4\"", "\"a", "\"\t\"", "\"\u0000\"", "\u00a0[]", "\ufeff[]", "// a\n[]",
            "{\"a\": 1, \"a\": 2}", "{\"a\": 1, \"\\u0061\": 2}", "\"\\ud83d\"", "\"\\ude00\\ud83d\"",
            "{\"\\ud83d\": 1}",
        )
        for (text in texts) assertEquals("syntax", codeOf { parseJson(text, "m") }, text)
    }

    @Test
    fun `limits are met exactly`() {
        val emoji = "\ud83d\ude00"
        val sound = listOf(
            "[".repeat(32) + "]".repeat(32), "1".repeat(40), "0." + "1".repeat(38), "1e308", "1e-400",
            "\"${"a".repeat(65_536)}\"", "\"${emoji.repeat(65_536)}\"", "\"\\ud83d\\ude00\"",
            "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
            "{\"a\":1,\"A\":2}", "\t\r\n [ ] ",
        )
        for (text in sound) assertEquals("no error", codeOf { parseJson(text, "m") }, text.take(40))
        val beyond = listOf(
            "[".repeat(33) + "]".repeat(33), "{\"a\":".repeat(33) + "1" + "}".repeat(33), "1".repeat(41),
            "0." + "1".repeat(39), "1e309", "-1e309", "\"${"a".repeat(65_537)}\"", "\"${emoji.repeat(65_537)}\"",
            "{\"${"a".repeat(65_537)}\":1}",
        )
        for (text in beyond) assertEquals("syntax", codeOf { parseJson(text, "m") }, text.take(40))
    }

    @Test
    fun `bytes that are no UTF-8 are refused`() {
        val starts = listOf(listOf(0xff), listOf(0xc0, 0x80), listOf(0xed, 0xa0, 0x80), listOf(0xf4, 0x90, 0x80, 0x80))
        for (bytes in starts) {
            val text = byteArrayOf('"'.code.toByte()) + bytes.map { it.toByte() } + '"'.code.toByte()
            assertEquals("syntax", codeOf { Manifest.read(text) }, "$bytes")
        }
    }
}
