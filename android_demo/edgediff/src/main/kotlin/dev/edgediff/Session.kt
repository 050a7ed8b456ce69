package dev.edgediff

/** What stays in memory between the stages of a picture. */
public enum class MemoryMode {
    /** Every graph stays loaded: the quickest for the next picture. */
    KEEP_ALL,

    /** One component at a time: its graphs are loaded when their stage begins and closed when it ends. */
    ONE_COMPONENT,
}

/**
 * The programs of one bundle and the graphs that they drive: texts and pictures to conditions, noise to a latent row by
 * row, the latent to pixels. Not for two threads at once.
 */
public class Session internal constructor(
    public val manifest: Manifest, private val tokenizers: Map<String, Tokenizer>, private val runners: Runners,
) : AutoCloseable {
    public constructor(bundle: ModelBundle, engine: Engine, memory: MemoryMode = MemoryMode.KEEP_ALL) :
        this(bundle.manifest, bundle.tokenizers, Runners(bundle, engine, memory))

    private val stages = Stages(manifest, runners)
    private val images = Images(manifest, stages)

    /** Milliseconds that each graph took to load when it was last loaded, by name. */
    public val loadMillis: Map<String, Double> get() = runners.loadMillis

    /** Hears the name and the nanoseconds of every graph call; `<graph>@<batch>` where it runs at two batch sizes. */
    internal var onCall: ((String, Long) -> Unit)?
        get() = runners.onCall
        set(value) {
            runners.onCall = value
        }

    /** Loads every graph of a program now, not when its stage begins. Without effect in [MemoryMode.ONE_COMPONENT]. */
    public fun load(program: String? = null): Unit = load(manifest.program(program))

    internal fun load(program: Program): Unit = runners.loadAll(program)

    /**
     * Runs the rows; a row is computed when the sequence is asked for it, so whoever stops asking cancels. The request
     * is checked, and texts and pictures are encoded, at once. A [GenerationRequest.seed] of null is 0 here.
     * Raises `program`, `strength`, `prompt`, `negative_prompt`, `picture`, `mask`, `noise`, `guidance`; while running
     * `non_finite`, `output`, `memory` and what the engine raises.
     */
    public fun steps(request: GenerationRequest): Sequence<GenerationStep> = steps(ask(request), request.seed ?: 0u)

    internal fun ask(request: GenerationRequest) = Asked(manifest, request)

    internal fun steps(asked: Asked, seed: ULong): Sequence<GenerationStep> {
        val rng = Rng(seed, manifest.rng)
        val pictures = Pictures(manifest, asked, stages, rng)
        val given = giveSides(manifest, asked, Texts(manifest, tokenizers, stages), pictures)
        val calls = Calls(manifest, asked, runners, given)
        val start = pictures.start()
        val draw = { rng.normal(start.size) }
        return runRows(asked.program.rows, start, calls, draw, pictures::blend) { calls.graphNanos }
    }

    /** The rows of the default program. */
    public fun steps(prompt: String = "", negativePrompt: String = "", seed: ULong = 0u): Sequence<GenerationStep> =
        steps(GenerationRequest(prompt, seed) { this.negativePrompt = negativePrompt })

    /**
     * The picture of a latent of a program (null: the default one): round((x / 2 + 1/2) 255), clamped; flagged where
     * the bundle's safety checker says so. Raises `output` for a bundle that makes sound.
     */
    public fun decode(latent: FloatArray, program: String? = null): Picture = decode(latent, manifest.program(program))

    internal fun decode(latent: FloatArray, program: Program): Picture = images.decode(latent, program)

    /** The sound of a latent of a program, 16 bit. Raises `output` for a bundle that makes pictures. */
    public fun sound(latent: FloatArray, program: String? = null): Sound = sound(latent, manifest.program(program))

    internal fun sound(latent: FloatArray, program: Program): Sound = images.sound(latent, program)

    /** A small picture of a latent; the whole one where the bundle has no preview. */
    public fun preview(latent: FloatArray, program: String? = null): Picture =
        preview(latent, manifest.program(program))

    internal fun preview(latent: FloatArray, program: Program): Picture = images.preview(latent, program)

    /** Closes every graph; the session can be used again, and then loads them again. */
    override fun close(): Unit = runners.close()
}
