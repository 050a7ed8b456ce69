package dev.edgediff

/**
 * What to make. [prompt] is a text, or a class's name or number. [seed] null picks one, which
 * [GenerationEvent.Completed] tells; 0 is a seed like any other. A program is named by [program] (null: the bundle's
 * default) or by its [strength]. [noise] stands in for the standard normal draw of x_0. [mask] has one channel; 128
 * and above means paint here. A preview is made after every [previewEvery] rows (0: never), at the cost of one run of
 * the preview's graph each, or of the decoder's where the bundle has no preview.
 */
public class GenerationRequest private constructor(builder: Builder) {
    public val prompt: String = builder.prompt
    public val negativePrompt: String = builder.negativePrompt
    public val seed: ULong? = builder.seed
    public val program: String? = builder.program
    public val strength: Double? = builder.strength
    public val guidanceScale: Double? = builder.guidanceScale
    public val noise: FloatArray? = builder.noise
    public val picture: Picture? = builder.picture
    public val mask: Picture? = builder.mask
    public val previewEvery: Int = builder.previewEvery

    public class Builder {
        public var prompt: String = ""
        public var negativePrompt: String = ""
        public var seed: ULong? = 0u
        public var program: String? = null
        public var strength: Double? = null
        public var guidanceScale: Double? = null
        public var noise: FloatArray? = null
        public var picture: Picture? = null
        public var mask: Picture? = null
        public var previewEvery: Int = 0

        public fun build(): GenerationRequest = GenerationRequest(this)
    }
}

/** A request from its most frequent parts; [more] sets the others. */
public fun GenerationRequest(
    prompt: String = "", seed: ULong? = 0u, more: GenerationRequest.Builder.() -> Unit = {},
): GenerationRequest = GenerationRequest.Builder().also {
    it.prompt = prompt
    it.seed = seed
}.apply(more).build()
