package dev.edgediff

/** A condition's values for the prompt side and for the empty side, each without batch. */
internal class Sides(val prompt: FloatArray, val empty: FloatArray = prompt)

/** Texts through the encoders that a program names; each text is encoded once. */
internal class Texts(
    private val manifest: Manifest, private val tokenizers: Map<String, Tokenizer>, private val stages: Stages,
) {
    private val made = HashMap<Pair<String, String>, Map<String, Made>>()

    /** 1 up to the text's first end token, 0 after it. */
    fun mask(encoder: String, text: String): FloatArray {
        val ids = ids(encoder, text)
        val end = tokenizerOf(encoder).end
        val count = 1 + (1 until ids.size).first { ids[it] == end }
        return FloatArray(ids.size) { if (it < count) 1f else 0f }
    }

    /** Outputs of encoders for a text, joined along the last axis. */
    fun joined(condition: Condition.Text, text: String): FloatArray {
        val parts = condition.outputs.map { (encoder, output) -> outputs(encoder, text).getValue(output) }
        val widths = parts.map { it.shape.last() }
        val rows = parts[0].sample.size / widths[0]
        val result = FloatArray(rows * widths.sum())
        var start = 0
        for ((part, width) in parts.map { it.sample }.zip(widths)) {
            for (row in 0 until rows) part.copyInto(result, row * widths.sum() + start, row * width, (row + 1) * width)
            start += width
        }
        return result
    }

    private fun outputs(name: String, text: String) = made.getOrPut(name to text) {
        val encoder = manifest.encoders.getValue(name)
        val inputs = HashMap<String, FloatArray>()
        encoder.mask?.let { inputs[it] = mask(name, text) }
        inputs[encoder.ids] = ids(name, text).let { ids -> FloatArray(ids.size) { ids[it].toFloat() } }
        val wanted = manifest.conditions.values.filterIsInstance<Condition.Text>().flatMap { it.outputs }
        stages.run(encoder.graph, inputs, wanted.filter { it.first == name }.map { it.second }.toSet())
    }

    private fun ids(encoder: String, text: String): IntArray {
        val name = manifest.encoders.getValue(encoder).tokenizer
        return tokenizerOf(encoder).encode(text, manifest.tokenizers.getValue(name).length)
    }

    private fun tokenizerOf(encoder: String): Tokenizer {
        val name = manifest.encoders.getValue(encoder).tokenizer
        return tokenizers[name] ?: refuse("tokenizer", null, "tokenizer '$name' is not loaded")
    }
}

/** What stays the same in every row, by the inputs' names; the latent and the timestep do not. */
internal fun giveSides(manifest: Manifest, asked: Asked, texts: Texts, pictures: Pictures): Map<String, Sides> {
    val result = HashMap<String, Sides>()
    val negative = asked.negativePrompt
    val guides = asked.program.isGuided
    for ((name, condition) in manifest.conditionsOf(asked.program)) {
        result[name] = when (condition) {
            Condition.Latent, Condition.Timestep -> continue
            Condition.Guidance -> Sides(floatArrayOf(checkNotNull(asked.embeddedScale).toFloat()))
            Condition.Picture -> Sides(pictures.latent)
            Condition.MaskedPicture -> Sides(pictures.maskedLatent)
            Condition.Mask -> Sides(pictures.mask)
            is Condition.Constant -> floats(condition.values).let { Sides(it, condition.empty?.let(::floats) ?: it) }
            is Condition.Classes -> condition.find(asked.prompt).let { found ->
                Sides(floatArrayOf(found.toFloat()), floatArrayOf((condition.none ?: found).toFloat()))
            }
            is Condition.TextMask -> texts.mask(condition.encoder, asked.prompt).let {
                Sides(it, if (guides) texts.mask(condition.encoder, negative) else it)
            }
            is Condition.Text -> texts.joined(condition, asked.prompt).let {
                val isZero = condition.isZeroWhenEmpty && negative.isEmpty()
                val empty = if (isZero) FloatArray(it.size) else if (guides) texts.joined(condition, negative) else it
                Sides(it, empty)
            }
        }
    }
    return result
}

private fun floats(values: List<Double>): FloatArray = FloatArray(values.size) { values[it].toFloat() }
