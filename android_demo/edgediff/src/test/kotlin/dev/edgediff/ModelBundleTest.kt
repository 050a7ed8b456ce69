package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
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
        assertEquals(listOf("onnxruntime"), bundle.manifest.backends())
        assertEquals(listOf("text_encoder" to 1, "full" to 2, "shallow" to 2, "shallow" to 1, "vae_decoder" to 1),
            bundle.manifest.usedGraphs())
        assertNotNull(bundle.tokenizer())
        assertEquals("missing_file", codeOf { bundle.path("nowhere") })
    }

    @Test
    fun `each hostile bundle has the code that Python gives it`() {
        val wrong = Trees.cases.mapIndexedNotNull { index, case ->
            val links = case["links"].entries.mapValues { it.value.text }
            val bundle = Trees.write(folder.resolve("case$index"), Trees.changed(case), links)
            val code = codeOf { ModelBundle.open(bundle) }
            if (code == case["code"].text) null else "${case["name"].text}: $code, not ${case["code"].text}"
        }
        assertTrue(Trees.cases.size >= 74)
        assertEquals(emptyList(), wrong)
    }

    @Test
    fun `a manifest of brackets is refused, and so is a folder that is none`() {
        val deep = "{\"parity\":" + "[".repeat(200_000)
        val bundle = Trees.write(folder.resolve("deep"), Trees.valid + ("manifest.json" to deep.toByteArray()))
        assertEquals("syntax", codeOf { ModelBundle.open(bundle) })
        assertEquals("not_a_bundle", codeOf { ModelBundle.open(folder.resolve("nowhere")) })
        assertEquals("not_a_bundle", codeOf { ModelBundle.open(bundle.resolve("plan.json")) })
    }

    @Test
    fun `hashes are left out on request, and nothing else`() {
        val files = Trees.valid + ("tokenizer/merges.txt" to "#version: 0.3\n".toByteArray())
        val bundle = Trees.write(folder.resolve("b"), files)
        assertEquals("hash", codeOf { ModelBundle.open(bundle) })
        ModelBundle.open(bundle, verify = false)
        Files.writeString(bundle.resolve("tokenizer/merges.txt"), "#")
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
    fun `each hostile zip has the code that Python gives it, and leaves nothing behind`() {
        val cases = Golden.read("zip_cases.json")["cases"].items
        val wrong = cases.mapNotNull { case ->
            val extra = case["entries"].items.map { entry ->
                val data = entry.find("data")?.bytes ?: ByteArray(entry["zeros"].int)
                ZipPart(entry["name"].text, data, entry["mode"].int)
            }
            val names = extra.map { it.name }.toSet()
            val zip = folder.resolve("case.zip")
            Files.write(zip, zipOf(Trees.valid.filterKeys { it !in names }.map { ZipPart(it.key, it.value) } + extra))
            val code = codeOf { ModelBundle.unpack(zip, folder.resolve("out")) }
            if (code == case["code"].text) null else "${case["name"].text}: $code, not ${case["code"].text}"
        }
        assertTrue(cases.size >= 14)
        assertEquals(emptyList(), wrong)
        assertEquals(listOf("case.zip"), folder.toFile().list()?.sorted())
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
