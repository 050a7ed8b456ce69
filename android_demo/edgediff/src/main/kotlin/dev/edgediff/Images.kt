package dev.edgediff

/** Latents to pictures and sounds: the decoder, the safety checker, and previews of steps. */
internal class Images(private val manifest: Manifest, private val stages: Stages) {
    fun decode(latent: FloatArray, program: Program): Picture {
        if (manifest.makes != "image") refuse("output", null, "bundle '${manifest.name}' makes sound, no picture")
        val made = decoded(latent, program)
        return Picture.of(made.sample, made.shape.drop(1), isFlagged(made.sample))
    }

    fun sound(latent: FloatArray, program: Program): Sound {
        val rate = manifest.decoder.sampleRate
            ?: refuse("output", null, "bundle '${manifest.name}' makes pictures, no sound")
        val made = decoded(latent, program)
        return Sound.of(made.sample, made.shape[1], rate)
    }

    private fun decoded(latent: FloatArray, program: Program): Made {
        val value = scaled(latent, program)
        val stage = manifest.decoder
        if (stage.graph == null || stage.input == null || stage.output == null) {
            return Made(value, listOf(1) + program.latent)
        }
        return stages.run(stage.graph, mapOf(stage.input to value), listOf(stage.output)).getValue(stage.output)
    }

    private fun isFlagged(values: FloatArray): Boolean {
        val stage = manifest.safety ?: return false
        val made = stages.run(stage.graph, mapOf(stage.input to values), listOf(stage.output))
        return made.getValue(stage.output).values.any { it > stage.threshold }
    }

    fun preview(latent: FloatArray, program: Program): Picture {
        val stage = manifest.preview ?: return decode(latent, program)
        if (stage.weights != null && stage.bias != null) return mixed(latent, program, stage.weights, stage.bias)
        if (stage.graph == null || stage.input == null || stage.output == null) return decode(latent, program)
        val made = stages.run(stage.graph, mapOf(stage.input to latent), listOf(stage.output)).getValue(stage.output)
        return Picture.of(made.sample, made.shape.drop(1))
    }

    private fun scaled(latent: FloatArray, program: Program): FloatArray {
        val count = program.latent.fold(1, Int::times)
        if (latent.size != count) refuse("output", null, "a latent of ${latent.size} values; this program's has $count")
        val scale = manifest.decoder.scale.toFloat()
        val shift = manifest.decoder.shift.toFloat()
        return FloatArray(count) { latent[it] * scale + shift }
    }

    /** sum_c weights[c] x[c] + bias. */
    private fun mixed(latent: FloatArray, program: Program, weights: List<List<Double>>, bias: List<Double>): Picture {
        if (program.latent.size != 3 || program.latent[0] != weights.size) {
            refuse("preview", null, "${weights.size} channels of weights do not fit the latent ${program.latent}")
        }
        val (_, height, width) = program.latent
        val size = height * width
        val colours = List(3) { colour ->
            val total = Total(size)
            for (channel in weights.indices) {
                total.add(weights[channel][colour], latent.copyOfRange(channel * size, (channel + 1) * size))
            }
            val shift = bias[colour].toFloat()
            total.values.also { for (i in it.indices) it[i] += shift }
        }
        return Picture.of(colours[0] + colours[1] + colours[2], listOf(3, height, width))
    }
}
