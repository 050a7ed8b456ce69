package dev.edgediff

/** Where the value of a denoiser graph's input comes from. */
internal sealed class Condition(val source: String) {
    /** Encoders that it needs, in their order. */
    open val encoders: List<String> get() = emptyList()

    object Latent : Condition("latent")
    object Timestep : Condition("timestep")
    object Guidance : Condition("guidance")
    object Picture : Condition("picture")
    object MaskedPicture : Condition("masked_picture")
    object Mask : Condition("mask")

    /** Outputs of encoders, as (encoder, output), joined along the last axis. */
    class Text(val outputs: List<Pair<String, String>>, val isZeroWhenEmpty: Boolean) : Condition("text") {
        override val encoders: List<String> get() = outputs.map { it.first }
    }

    /** 1 up to the text's end token, 0 after it. */
    class TextMask(val encoder: String) : Condition("text_mask") {
        override val encoders: List<String> get() = listOf(encoder)
    }

    /** A prompt is one of [names], or a number below [count]; [none] is the class of no class. */
    class Classes(val count: Int, val none: Int?, val names: List<String>) : Condition("class") {
        /** The class that a prompt is. Raises `prompt` for what is neither a name nor a number below [count]. */
        fun find(prompt: String): Int {
            val text = prompt.trim()
            val isNumber = text.length in 1..7 && text.all { it in '0'..'9' }
            val found = names.indexOf(text).takeIf { it >= 0 } ?: if (isNumber) text.toInt() else -1
            if (found in 0 until count) return found
            val other = if (names.isEmpty()) "" else ", or a name${didYouMean(text, names)}"
            refuse("prompt", null, "'${text.take(60)}' is no class: give a number from 0 to ${count - 1}$other")
        }
    }

    /** A vector that never changes; [empty] is the empty side's. */
    class Constant(val values: List<Double>, val empty: List<Double>?) : Condition("constant")
}
