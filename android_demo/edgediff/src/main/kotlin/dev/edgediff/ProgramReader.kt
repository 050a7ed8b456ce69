package dev.edgediff

// The tables of conditions and programs.

private val weights = listOf(1..64, anyNumber)
private val constant = listOf(1..4096, anyNumber)
private val scale = record {
    Scale(it.one("scale", upToThousand), it.one("low", upToThousand), it.one("high", upToThousand))
}
private val upToThousand: Read<Double> get() = number(0.0..1000.0)
private const val MOST_LATENT = 1L shl 24
private const val MOST_CLASSES = 1 shl 20

/** `from` decides what else it has. */
internal fun readCondition(fields: Fields): Condition = when (fields.one("from", SOURCES)) {
    "latent" -> Condition.Latent
    "timestep" -> Condition.Timestep
    "guidance" -> Condition.Guidance
    "picture" -> Condition.Picture
    "masked_picture" -> Condition.MaskedPicture
    "mask" -> Condition.Mask
    "text" -> Condition.Text(
        fields.one("outputs", listOf(1..8, record { it.one("encoder", readName) to it.one("output", readName) })),
        fields.oneOr("empty", "encode", word("encode", "zeros")) == "zeros",
    )
    "text_mask" -> Condition.TextMask(fields.one("encoder", readName))
    "class" -> Condition.Classes(
        fields.one("count", whole(1..MOST_CLASSES)), fields.optional("null", whole(0..MOST_CLASSES)),
        fields.oneOr("names", emptyList(), listOf(0..MOST_CLASSES, anyText)),
    )
    else -> Condition.Constant(fields.one("values", constant), fields.optional("empty", constant))
}

private val SOURCES = word(
    "latent", "timestep", "guidance", "picture", "masked_picture", "mask", "text", "text_mask", "class", "constant",
)

internal fun readProgram(fields: Fields): Program {
    val takes = fields.oneOr("takes", emptyList(), listOf(0..4, word("prompt", "negative_prompt", "picture", "mask")))
    val strength = fields.optional("strength", positive(1.0))
    val latent = fields.one("latent", latentShape)
    val (noise, picture) = fields.one("init", init)
    return Program(
        takes, strength, latent, noise, picture,
        sampler = fields.one("sampler", text(0..200)),
        steps = fields.one("steps", whole(1..10_000)),
        isBatched = fields.one("mode", word("batched", "sequential")) == "batched",
        guidance = fields.optional("guidance", scale),
        embeddedGuidance = fields.optional("embedded_guidance", scale),
        rows = fields.one("rows", listOf(1..10_000, record(::readRow))),
    )
}

private val init = record { it.one("noise", anyNumber) to it.oneOr("picture", 0.0, anyNumber) }

private val latentShape: Read<List<Int>> = { value, place ->
    listOf(2..3, whole(1..(1 shl 16)))(value, place).also { sizes ->
        if (elements(sizes) > MOST_LATENT) place.refuse("value", "'$place' has more than $MOST_LATENT elements")
    }
}

internal fun readRow(fields: Fields) = Row(
    timestep = fields.one("timestep", anyNumber),
    inputScale = fields.oneOr("input_scale", 1.0, anyNumber),
    update = fields.one("update", record(::readUpdate)),
    graph = fields.optional("graph", readName),
    guidance = fields.optional("guidance") { value, place ->
        RowGuidance(if (value == "scale") null else anyNumber(value, place))
    },
    held = fields.optional("held", record {
        Held(it.one("weights", weights), it.oneOr("times", "one", word("one", "scale_minus_one")) != "one")
    }),
    mix = fields.oneOr("mix", emptyMap(), mapOf(0..512, weights)),
    blend = fields.optional("blend", record { Blend(it.one("picture", anyNumber), it.one("noise", anyNumber)) }),
)

private val coefficients = listOf(0..64, anyNumber)

private fun readUpdate(fields: Fields) = Update(
    x = fields.one("x", coefficients),
    e = fields.one("e", coefficients),
    noise = fields.oneOr("noise", 0.0, anyNumber),
    clip = fields.optional("clip", record(::readClip)),
)

private fun readClip(fields: Fields) = Clip(
    fields.one("x", anyNumber), fields.one("e", anyNumber), fields.one("limit", positive(LARGEST)),
    fields.one("weight", anyNumber),
)
