package dev.edgediff

/**
 * The picture and the mask that a program starts from, as latents. Those that it reads are made at once, in the order
 * in which docs/format.md draws: the picture's posterior, x_0, the posterior of the masked picture.
 */
internal class Pictures(
    private val manifest: Manifest, private val asked: Asked, private val stages: Stages, private val rng: Rng,
) {
    private val program = asked.program
    private val reads = manifest.conditionsOf(program).values.toSet()
    private val count = program.latent.fold(1, Int::times)

    private val y: FloatArray? = if (isPictureNeeded()) encode(values { _, value -> value }) else null

    /** The standard normal draw of x_0; null where nothing uses it. */
    private val z: FloatArray? = asked.noise ?: if (isNoiseNeeded()) rng.normal(count) else null
    private val masked: FloatArray? = if (Condition.MaskedPicture in reads) encode(values(::hidden)) else null

    val latent: FloatArray get() = checkNotNull(y)
    val maskedLatent: FloatArray get() = checkNotNull(masked)

    /** [h, w] of the latent: 1 where the mask says paint here, else 0. */
    val mask: FloatArray by lazy {
        val (height, width) = program.latent.takeLast(2)
        val image = checkNotNull(asked.mask)
        FloatArray(height * width) { at ->
            val row = (at / width).toLong() * image.height / height
            val column = (at % width).toLong() * image.width / width
            if (isPainted(image.pixels[(row * image.width + column).toInt()])) 1f else 0f
        }
    }

    /** x_0 = init.noise z + init.picture y. */
    fun start(): FloatArray {
        val total = Total(count)
        if (program.initNoise != 0.0) total.add(program.initNoise, checkNotNull(z))
        if (program.initPicture != 0.0) total.add(program.initPicture, latent)
        return total.values
    }

    /** m x + (1 - m) (blend.picture y + blend.noise z_0), in place. */
    fun blend(blend: Blend, latent: FloatArray) {
        val known = Total(count)
        if (blend.picture != 0.0) known.add(blend.picture, this.latent)
        if (blend.noise != 0.0) known.add(blend.noise, checkNotNull(z))
        for (i in latent.indices) {
            val share = mask[i % mask.size]
            latent[i] = share * latent[i] + (1f - share) * known.values[i]
        }
    }

    private fun isPictureNeeded() = program.initPicture != 0.0 || Condition.Picture in reads || program.blends

    private fun isNoiseNeeded() =
        program.initNoise != 0.0 || program.rows.any { it.blend != null && it.blend.noise != 0.0 }

    /** [3, height, width] in [-1, 1]: each pixel p as p / 127.5 - 1. */
    private fun values(change: (pixel: Int, value: Float) -> Float): FloatArray {
        val image = checkNotNull(asked.picture)
        val size = image.height * image.width
        return FloatArray(3 * size) { at ->
            val pixel = at % size
            change(pixel, (image.pixels[pixel * 3 + at / size].toInt() and 0xff) / 127.5f - 1f)
        }
    }

    private fun hidden(pixel: Int, value: Float): Float =
        if (isPainted(checkNotNull(asked.mask).pixels[pixel])) 0f else value

    /** ((mean + deviation eps) - shift) scale. */
    private fun encode(values: FloatArray): FloatArray {
        val encoder = checkNotNull(manifest.picture)
        val names = listOfNotNull(encoder.mean, encoder.deviation)
        val made = stages.run(encoder.graph, mapOf(encoder.input to values), names)
        val mean = made.getValue(encoder.mean).sample
        val deviation = encoder.deviation?.let { made.getValue(it).sample }
        val drawn = deviation?.let { rng.normal(mean.size) }
        val shift = encoder.shift.toFloat()
        val scale = encoder.scale.toFloat()
        return FloatArray(mean.size) { i ->
            val value = if (deviation == null || drawn == null) mean[i] else mean[i] + deviation[i] * drawn[i]
            (value - shift) * scale
        }
    }
}
