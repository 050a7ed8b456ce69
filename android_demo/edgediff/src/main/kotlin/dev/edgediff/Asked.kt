package dev.edgediff

import kotlin.math.abs

/**
 * A request, held against what the program takes before anything is drawn. Codes: `program`, `strength`, `prompt`,
 * `negative_prompt`, `picture`, `mask`, `noise`, `guidance`.
 */
internal class Asked(private val manifest: Manifest, private val request: GenerationRequest) {
    val program: Program = findProgram()
    val prompt: String = request.prompt
    val negativePrompt: String = request.negativePrompt
    val noise: FloatArray? = request.noise
    val picture: Picture? = request.picture
    val mask: Picture? = request.mask

    /** What rows that follow the asked guidance use; null where the program has none. */
    val scale: Double?

    /** What conditions from `guidance` give. */
    val embeddedScale: Double?

    init {
        checkText("prompt", prompt)
        checkText("negative_prompt", negativePrompt)
        checkImage("picture", picture, 3)
        checkImage("mask", mask, 1)
        mask?.let(::checkMask)
        noise?.let(::checkNoise)
        val given = request.guidanceScale
        val isEmbedded = program.guidance == null
        if (given != null) checkScale(given, program.guidance ?: program.embeddedGuidance)
        scale = if (given != null && !isEmbedded) given else program.guidance?.scale
        embeddedScale = if (given != null && isEmbedded) given else program.embeddedGuidance?.scale
        manifest.conditionsOf(program).values.filterIsInstance<Condition.Classes>().forEach { it.find(prompt) }
    }

    private fun findProgram(): Program {
        val strength = request.strength ?: return manifest.program(request.program)
        if (request.program != null) refuse("strength", null, "give a program or a strength, not both")
        val known = manifest.programs.values.mapNotNull { it.strength }
        val found = manifest.programs.values.firstOrNull { it.strength != null && abs(it.strength - strength) < NEAR }
        return found ?: run {
            val have = if (known.isEmpty()) "no program with a strength" else "the strengths ${known.joinToString()}"
            refuse("strength", null, "bundle '${manifest.name}' has no program of strength $strength; it has $have")
        }
    }

    private fun refuseTaken(word: String): Nothing {
        val have = program.takes.ifEmpty { listOf("nothing") }.joinToString()
        refuse(word, null, "this program of bundle '${manifest.name}' takes no $word (it takes $have); leave it out")
    }

    private fun checkText(word: String, text: String) {
        if (text.isNotEmpty() && word !in program.takes) refuseTaken(word)
        if (hasLoneSurrogate(text)) refuse(word, null, "the $word has half a surrogate pair; pass valid Unicode")
    }

    private fun checkImage(word: String, given: Picture?, channels: Int) {
        if (word !in program.takes) {
            if (given != null) refuseTaken(word)
            return
        }
        val size = manifest.picture ?: refuse("takes", null, "the bundle has no encoder of pictures")
        if (given == null) refuse(word, null, "this program needs a $word of ${size.height} x ${size.width}; give one")
        if (given.height != size.height || given.width != size.width || given.channels != channels) {
            val have = "${given.height} x ${given.width} with ${given.channels} channels"
            refuse(word, null, "the $word is $have; it must be ${size.height} x ${size.width} with $channels")
        }
    }

    private fun checkMask(mask: Picture) {
        if (program.latent.size != 3) refuse("mask", null, "a latent of ${program.latent} has no place for a mask")
        if (mask.pixels.none(::isPainted)) refuse("mask", null, "the mask is below 128 everywhere: nothing is painted")
    }

    private fun checkNoise(noise: FloatArray) {
        val count = program.latent.fold(1, Int::times)
        if (noise.size != count || noise.any { !it.isFinite() }) {
            refuse("noise", null, "noise of ${noise.size} values; the latent needs $count, all finite")
        }
    }

    private fun checkScale(given: Double, scale: Scale?) {
        if (scale == null) refuse("guidance", null, "this program has no guidance to change; leave it out")
        if (!(given >= scale.low && given <= scale.high)) {
            refuse("guidance", null, "guidance $given; this program allows ${scale.low} to ${scale.high}")
        }
    }
}

private const val NEAR = 1e-6

internal fun isPainted(pixel: Byte): Boolean = pixel < 0 // 128 and above, unsigned
