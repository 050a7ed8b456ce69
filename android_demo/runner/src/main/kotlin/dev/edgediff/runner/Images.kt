package dev.edgediff.runner

import dev.edgediff.EdgeDiffException
import dev.edgediff.Picture
import java.awt.image.BufferedImage
import java.io.IOException
import java.nio.file.Path
import javax.imageio.ImageIO

/** A picture file as RGB. Raises `picture`. */
internal fun readPicture(file: Path): Picture {
    val image = readImage(file, "picture")
    val pixels = ByteArray(image.width * image.height * 3)
    forEachPixel(image) { at, red, green, blue ->
        pixels[at * 3] = red.toByte()
        pixels[at * 3 + 1] = green.toByte()
        pixels[at * 3 + 2] = blue.toByte()
    }
    return Picture(image.width, image.height, 3, pixels)
}

/** A picture file as grey, by the weights of ITU-R 601 that Pillow's `convert("L")` has. Raises `mask`. */
internal fun readMask(file: Path): Picture {
    val image = readImage(file, "mask")
    val pixels = ByteArray(image.width * image.height)
    forEachPixel(image) { at, red, green, blue ->
        pixels[at] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000 shr 16).toByte()
    }
    return Picture(image.width, image.height, 1, pixels)
}

private fun readImage(file: Path, code: String): BufferedImage = try {
    ImageIO.read(file.toFile())
} catch (error: IOException) {
    throw EdgeDiffException(code, "cannot be read: ${error.message}", "$file", error)
} ?: throw EdgeDiffException(code, "is no picture that Java reads; give a PNG", "$file")

/** Grey samples as they are stored: `getRGB` would bend them as if they were linear light. */
private fun forEachPixel(image: BufferedImage, tell: (at: Int, red: Int, green: Int, blue: Int) -> Unit) {
    val isGrey = image.raster.numBands == 1 && image.type == BufferedImage.TYPE_BYTE_GRAY
    for (at in 0 until image.width * image.height) {
        val x = at % image.width
        val y = at / image.width
        val colour = if (isGrey) image.raster.getSample(x, y, 0) * 0x010101 else image.getRGB(x, y)
        tell(at, colour shr 16 and 0xff, colour shr 8 and 0xff, colour and 0xff)
    }
}
