package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertNotNull
import kotlin.test.assertTrue
import org.junit.jupiter.api.io.TempDir

class ModelBundleTest {
    @TempDir
    lateinit var folder: Path

    @Test
    fun `the valid bundle opens`() {
        val bundle = ModelBundle.open(Trees.write(folder.resolve("b"), Trees.valid))
        assertEquals("red-panda", bundle.manifest.name)
        assertNotNull(bundle.tokenizer())
        assertEquals("missing_file", codeOf { bundle.path("nowhere") })
    }

    @Test
    fun `a bundle of the first format is refused with one sentence`() {
        val old = Trees.valid + (MANIFEST to "{\"schema_version\": \"1.0\"}".toByteArray())
        val error = assertFailsWith<EdgeDiffException> { ModelBundle.open(Trees.write(folder.resolve("old"), old)) }
        assertEquals("version", error.code)
        assertTrue("build it again" in error.message!!, error.message)
    }

    @Test
    fun `a manifest of brackets is refused, and so is a folder that is none`() {
        val deep = "{\"evidence\":" + "[".repeat(200_000)
        val bundle = Trees.write(folder.resolve("deep"), Trees.valid + ("manifest.json" to deep.toByteArray()))
        assertEquals("syntax", codeOf { ModelBundle.open(bundle) })
        assertEquals("not_a_bundle", codeOf { ModelBundle.open(folder.resolve("nowhere")) })
        assertEquals("not_a_bundle", codeOf { ModelBundle.open(bundle.resolve("plan.json")) })
    }

    @Test
    fun `hashes are left out on request, and nothing else`() {
        val files = Trees.valid + ("plan.json" to Trees.valid.getValue("plan.json").reversedArray())
        val bundle = Trees.write(folder.resolve("b"), files)
        assertEquals("hash", codeOf { ModelBundle.open(bundle) })
        ModelBundle.open(bundle, verify = false)
        Files.writeString(bundle.resolve("plan.json"), "#")
        assertEquals("size", codeOf { ModelBundle.open(bundle, verify = false) })
    }

    @Test
    fun `a packed bundle unpacks, stored and deflated`() {
        for (method in listOf(0, 8)) {
            val zip = folder.resolve("$method.zip")
            Files.write(zip, zipOf(Trees.valid.map { ZipPart(it.key, it.value, method = method) }))
            val out = folder.resolve("out$method")
            assertEquals("red-panda", ModelBundle.unpack(zip, out).manifest.name)
            assertEquals("exists", codeOf { ModelBundle.unpack(zip, out) })
            assertEquals(Trees.valid.keys, scanFolder(out, "out").keys)
        }
    }

    @Test
    fun `a packed bundle may have one folder around it, and only one`() {
        val zip = folder.resolve("around.zip")
        val inside = { top: String -> Trees.valid.map { ZipPart("$top/${it.key}", it.value) } }
        Files.write(zip, zipOf(listOf(ZipPart("red panda/", ByteArray(0), 0x41ed)) + inside("red panda")))
        assertEquals("red-panda", ModelBundle.unpack(zip, folder.resolve("out")).manifest.name)
        for ((top, code) in listOf("a/b" to "not_a_bundle", ".." to "path", "." to "path")) {
            Files.write(zip, zipOf(inside(top)))
            assertEquals(code, codeOf { ModelBundle.unpack(zip, folder.resolve("no")) }, top)
        }
    }

    @Test
    fun `a damaged zip is refused wherever it is cut`() {
        val whole = zipOf(Trees.valid.map { ZipPart(it.key, it.value) })
        val zip = folder.resolve("cut.zip")
        for (length in listOf(0, 1, 21, 100, whole.size / 2, whole.size - 1)) {
            Files.write(zip, whole.copyOf(length))
            assertEquals("not_a_bundle", codeOf { ModelBundle.unpack(zip, folder.resolve("out")) }, "$length bytes")
        }
        for (at in whole.indices step 97) {
            Files.write(zip, whole.copyOf().also { it[at] = (it[at].toInt() xor 0x55).toByte() })
            val out = folder.resolve("out$at")
            val code = codeOf { ModelBundle.unpack(zip, out) }
            assertTrue(code != "no error" || isSame(out), "byte $at changed: $code")
            assertEquals(code == "no error", Files.exists(out))
        }
        assertFalse(folder.toFile().list().orEmpty().any { "partial" in it })
    }

    /** A changed time or checksum in the zip changes no file. */
    private fun isSame(out: Path) = Trees.valid.all { Files.readAllBytes(out.resolve(it.key)).contentEquals(it.value) }
}
