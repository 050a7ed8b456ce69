package dev.edgediff.runner

import dev.edgediff.ModelBundle
import java.io.ByteArrayOutputStream
import java.io.PrintStream
import java.nio.file.Files
import java.nio.file.Path
import javax.imageio.ImageIO
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import org.junit.jupiter.api.io.TempDir

class RunnerTest {
    @TempDir
    lateinit var folder: Path
    private val bundle = Path.of(System.getProperty("edgediff.vectors"), "glyph.edgediff").toString()
    private val printed = ByteArrayOutputStream()
    private val logged = ByteArrayOutputStream()

    @Test
    fun `it writes a picture that others can read`() {
        val file = folder.resolve("heart.png")
        assertEquals(0, run(bundle, "red heart", "$file", "--threads", "1", "--memory", "one"))
        val picture = ImageIO.read(file.toFile())
        assertEquals(listOf(64, 64), listOf(picture.width, picture.height))
        val colours = (0 until 64 * 64).map { picture.getRGB(it % 64, it / 64) }
        assertTrue(colours.any { it shr 16 and 0xff > 180 && it and 0xff < 100 }, "a red heart has red in it")
        assertTrue("wrote $file (64 x 64, seed 0" in "$printed")
        val rows = ModelBundle.open(Path.of(bundle), verify = false).manifest.program().rows.size
        assertTrue("row $rows of $rows" in "$logged")
    }

    @Test
    fun `bad input ends with 2 and one sentence, and nothing is written`() {
        val file = folder.resolve("a.png")
        val cases = listOf(
            listOf("$folder", "a", "$file") to "not_a_bundle", listOf(bundle, "a") to "usage",
            listOf(bundle, "a", "$file", "--seed", "-1") to "usage",
            listOf(bundle, "a", "$file", "--sead", "1") to "usage",
            listOf(bundle, "a", "$folder/none/a.png", "--quiet", "--threads", "1") to "output",
        )
        for ((arguments, code) in cases) {
            logged.reset()
            assertEquals(2, run(*arguments.toTypedArray()), "$arguments")
            assertTrue("$logged".startsWith("error ($code): ") && "$logged".trim().lines().size == 1, "$logged")
        }
        assertFalse(Files.exists(file))
    }

    @Test
    fun `help is no error`() {
        assertEquals(0, run("--help"))
        assertTrue("$printed".startsWith("usage: "))
    }

    private fun run(vararg arguments: String): Int =
        runCommand(arguments.toList(), PrintStream(printed), PrintStream(logged))
}
