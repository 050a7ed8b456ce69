package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.junit.jupiter.api.io.TempDir

/** What the Python reader says of each bundle and zip of `tests/hostile.py`. */
class HostileBundlesTest {
    @TempDir
    lateinit var folder: Path

    @Test
    fun `each hostile bundle has the code that Python gives it`() {
        val wrong = Trees.cases.mapIndexedNotNull { index, case ->
            val links = case["links"].entries.mapValues { it.value.text }
            val bundle = Trees.write(folder.resolve("case$index"), Trees.changed(case), links)
            val code = codeOf { ModelBundle.open(bundle) }
            if (code == case["code"].text) null else "${case["name"].text}: $code, not ${case["code"].text}"
        }
        assertTrue(Trees.cases.size >= 300)
        assertEquals(emptyList(), wrong)
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
}
