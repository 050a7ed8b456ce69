package dev.edgediff

/** What stays in memory between the stages of a picture. */
public enum class MemoryMode {
    /** Every graph stays loaded: the quickest for the next picture. */
    KEEP_ALL,

    /** One component at a time: its graphs are loaded when their stage begins and closed when it ends. */
    ONE_COMPONENT,
}

/**
 * One program and the graphs that it drives: texts to embeddings, noise to a latent row by row, the latent to pixels.
 * Not for two threads at once. Raises `graph` or `tensor` when a graph has an input that nothing feeds.
 */
public class Session internal constructor(
    public val manifest: Manifest, private val tokenizer: Tokenizer?, private val runners: Runners,
) : AutoCloseable {
    public constructor(bundle: ModelBundle, engine: Engine, memory: MemoryMode = MemoryMode.KEEP_ALL) :
        this(bundle.manifest, bundle.tokenizer(), Runners(bundle, engine, memory))

    private val program = manifest.program
    private val count = program.latent.fold(1, Math::multiplyExact)

    init {
        program.rows.forEach(::checkRow)
    }

    /** Milliseconds that each graph took to load when it was last loaded, by name. */
    public val loadMillis: Map<String, Double> get() = runners.loadMillis

    /** Hears the name and the nanoseconds of every graph call; `<graph>@<batch>` where it runs at two batch sizes. */
    internal var onCall: ((String, Long) -> Unit)?
        get() = runners.onCall
        set(value) {
            runners.onCall = value
        }

    /** Loads every graph now, rather than when its stage begins. Without effect in [MemoryMode.ONE_COMPONENT]. */
    public fun load(): Unit = runners.loadAll()

    /**
     * Runs the rows; a row is computed when the sequence is asked for it, so whoever stops asking cancels. The prompt
     * is a text, or for class-to-image a class's name or number. Arguments are checked, and texts encoded, at once.
     * Raises `prompt`, `negative_prompt`, `text`; while running `non_finite`, `run`, `output`, `out_of_memory`.
     */
    public fun steps(prompt: String = "", negativePrompt: String = "", seed: ULong = 0u): Sequence<GenerationStep> {
        val rng = Rng(seed, manifest.rng)
        val scale = program.initScale.toFloat()
        val start = rng.normal(count).also { values -> for (i in values.indices) values[i] *= scale }
        val calls = Calls(manifest, runners, conditions(prompt, negativePrompt))
        return runRows(program.rows, start, calls, { rng.normal(count) }) { calls.graphNanos }
    }

    /** The picture of a latent: round((x / 2 + 1/2) * 255), clamped. */
    public fun decode(latent: FloatArray): Picture {
        if (manifest.kind == "unconditional-audio") refuse("kind", null, "makes sound, which is no picture")
        val stage = program.decode
        val scale = stage.scale.toFloat()
        val shift = stage.shift.toFloat()
        val value = FloatArray(latent.size) { latent[it] * scale + shift }
        if (stage.graph == null) return Picture.of(value, program.latent)
        val graph = manifest.graphs.getValue(stage.graph)
        val spec = findTensor(graph.inputs, stage.input, "graph '${stage.graph}'", null)
        val input = Tensor.allocate(spec.dtype, spec.sized(1)).apply { put(value) }
        val output = once(stage.graph, stage.input, input, stage.output)
        val pixels = FloatArray(output.count).also { output.get(it) }
        naming("graph '${stage.graph}'") { checkFinite(pixels) }
        return Picture.of(pixels, output.shape.drop(1))
    }

    /** Closes every graph; the session can be used again, and then loads them again. */
    override fun close(): Unit = runners.close()

    private fun conditions(prompt: String, negativePrompt: String): Map<String, Tensor> {
        program.classes?.let { return mapOf(it.input to label(it, prompt, negativePrompt)) }
        val stage = program.encode
        if (stage == null) {
            if (prompt.isEmpty() && negativePrompt.isEmpty()) return emptyMap()
            refuse("prompt", null, "a ${manifest.kind} bundle takes no prompt; leave it empty")
        }
        if (!manifest.isGuided && negativePrompt.isNotEmpty()) {
            val why = "this bundle has no guidance, so a negative prompt has no effect; leave it empty"
            refuse("negative_prompt", null, why)
        }
        val texts = if (manifest.isGuided) listOf(negativePrompt, prompt) else listOf(prompt)
        return mapOf(TEXT to embed(stage, texts))
    }

    /** [texts, length, width]; the encoder writes each text's part in place. */
    private fun embed(stage: Encode, texts: List<String>): Tensor {
        val graph = manifest.graphs.getValue(stage.graph)
        val words = program.tokenize
        if (words == null || tokenizer == null) refuse("prompt", null, "this bundle has no tokenizer for its prompts")
        val ids = findTensor(graph.inputs, stage.input, "graph '${stage.graph}'", null)
        val made = findTensor(graph.outputs, stage.output, "graph '${stage.graph}'", null)
        val all = Tensor.allocate(made.dtype, listOf(texts.size) + made.sized(1).drop(1))
        texts.forEachIndexed { index, text ->
            val input = Tensor.allocate(ids.dtype, ids.sized(1))
            val numbers = tokenizer.encode(text, words.length)
            if (ids.dtype == DType.INT64) input.longs().put(LongArray(numbers.size) { numbers[it].toLong() })
            else input.ints().put(numbers)
            val part = once(stage.graph, stage.input, input, stage.output, all.part(index))
            naming("graph '${stage.graph}'") { checkFinite(FloatArray(part.count).also { part.get(it) }) }
        }
        return all
    }

    private fun label(classes: Classes, prompt: String, negativePrompt: String): Tensor {
        if (negativePrompt.isNotEmpty()) {
            refuse("prompt", null, "a class-to-image bundle takes no negative prompt; leave it empty")
        }
        val text = prompt.trim()
        val named = classes.names.lastIndexOf(text).toLong()
        val number = if (text.isNotEmpty() && text.all { it in '0'..'9' }) text.toLongOrNull() ?: -1 else -1
        val found = if (named >= 0) named else number
        if (found !in 0 until classes.count) {
            val names = if (classes.names.isEmpty()) "" else ", or a name${didYouMean(text, classes.names)}"
            val range = "a number from 0 to ${classes.count - 1}"
            refuse("prompt", null, "'${text.take(60)}' is no class of this bundle: give $range$names")
        }
        val values = if (manifest.isGuided) longArrayOf(classes.nullClass ?: 0, found) else longArrayOf(found)
        return Tensor.allocate(DType.INT64, listOf(values.size)).apply { longs().put(values) }
    }

    private fun once(
        name: String, input: String, value: Tensor, output: String, target: Tensor? = null,
    ): Tensor = naming("graph '$name'") {
        val graph = manifest.graphs.getValue(name)
        val outputs = graph.outputs.associate { spec ->
            val given = target?.takeIf { spec.name == output && it.shape == spec.sized(1) }
            spec.name to (given ?: Tensor.allocate(spec.dtype, spec.sized(1)))
        }
        runners.run(name, 1, mapOf(input to value), outputs)
        outputs.getValue(output)
    }

    private fun checkRow(row: Row) {
        val graph = manifest.graphs.getValue(row.graph ?: return)
        if (row.guidance != null && program.encode == null && program.classes?.nullClass == null) {
            val what = if (program.classes == null) "no text" else "no class for no class"
            refuse("graph", null, "the row at timestep ${row.timestep} is guided, but the program has $what")
        }
        val supplied = FIXED + listOfNotNull(TEXT.takeIf { program.encode != null }, program.classes?.input)
        for (name in FIXED) findTensor(graph.inputs, name, "graph '${row.graph}'", null)
        for (spec in graph.inputs) {
            if (spec.name !in supplied && spec.name !in graph.carriesIn.values) {
                val have = "${supplied.joinToString()} and carries"
                val what = "reads '${spec.name}', which this app cannot supply (it has $have)"
                refuse("tensor", null, "graph '${row.graph}' $what")
            }
        }
    }

    private companion object {
        const val TEXT = "encoder_hidden_states"
        val FIXED = listOf("sample", "timestep")
    }
}
