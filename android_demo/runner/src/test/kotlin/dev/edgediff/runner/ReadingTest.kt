package dev.edgediff.runner

import dev.edgediff.EdgeDiffException
import java.awt.image.BufferedImage
import java.io.ByteArrayOutputStream
import java.io.PrintStream
import java.nio.file.Files
import java.nio.file.Path
import javax.imageio.ImageIO
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.junit.jupiter.api.io.TempDir

class ReadingTest {
    @TempDir
    lateinit var folder: Path

    @Test
    fun `each frame has its line`() {
        val manifests = listOf("{", "[]", "{}", "{\"schema_version\": \"1.0\"}", "{\"schema_version\": \"2.0\"}", "")
        val frames = manifests.joinToString("") { "${it.length}\n$it" }
        assertEquals("syntax\nvalue\nversion\nversion\nvalue\nsyntax\n", judged(frames))
        assertEquals("", judged(""))
        for (frames in listOf("x\n", "-1\n", "3\nab", "3", "99999999999\n")) {
            assertEquals("usage", assertFailsWith<EdgeDiffException> { judged(frames) }.code, frames)
        }
    }

    private fun judged(frames: String): String {
        val answers = ByteArrayOutputStream()
        readManifests(frames.byteInputStream(), PrintStream(answers))
        return answers.toString()
    }

    @Test
    fun `grey and colours are read as they are stored`() {
        for (type in listOf(BufferedImage.TYPE_BYTE_GRAY, BufferedImage.TYPE_INT_RGB)) {
            val image = BufferedImage(16, 16, type)
            for (at in 0 until 256) {
                for (band in 0 until image.raster.numBands) image.raster.setSample(at % 16, at / 16, band, at)
            }
            val file = folder.resolve("$type.png").toFile()
            assertTrue(ImageIO.write(image, "png", file))
            val want = List(256) { it.toByte() }
            assertEquals(want, readMask(file.toPath()).pixels.toList(), "mask of type $type")
            val picture = readPicture(file.toPath())
            assertEquals(want.flatMap { listOf(it, it, it) }, picture.pixels.toList(), "picture of type $type")
            assertEquals(listOf(16, 16, 3), listOf(picture.width, picture.height, picture.channels))
        }
    }

    @Test
    fun `what is no picture is refused by its name`() {
        val file = folder.resolve("a.png").also { Files.writeString(it, "no picture") }
        assertEquals("picture", assertFailsWith<EdgeDiffException> { readPicture(file) }.code)
        assertEquals("mask", assertFailsWith<EdgeDiffException> { readMask(folder.resolve("none.png")) }.code)
    }
}
