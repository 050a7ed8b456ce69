package dev.edgediff

/** Rules 13 to 20 of one program; those of its rows are [RowRules]. */
internal class ProgramRules(private val manifest: Manifest, private val program: Program, private val rules: Rules) {
    private val conditions = LinkedHashMap<String, Condition>() // those that this program's graphs read

    /** What the encoder of pictures puts out; null where there is none. */
    private val mean = manifest.picture?.let { rules.tensor(it.graph, rules.graph(it.graph).outputs, it.mean) }

    fun check() {
        if (program.graphNames.isEmpty()) rules.fail("graph", "no row runs a graph")
        for (name in program.graphNames) rules.graph(name)
        for (name in program.graphNames) checkInputs(name, rules.graph(name))
        val both = program.rows.filter { it.isGuided && program.isBatched }.mapTo(HashSet()) { it.graph }
        for (name in program.graphNames) checkShapes(name, rules.graph(name), name in both)
        checkResult()
        checkTakes()
        if ("picture" in program.takes || "mask" in program.takes) checkPicture()
        checkGuidance()
        RowRules(manifest, program, rules).check()
    }

    /** Rule 14. */
    private fun checkInputs(name: String, graph: Graph) {
        val found = graph.freeInputs.map { spec ->
            val condition = manifest.conditions[spec.name]
                ?: rules.fail("condition", "graph '$name' reads '${spec.name}', which has no condition")
            condition.also { conditions[spec.name] = it }
        }
        val latents = found.count { it is Condition.Latent }
        if (latents != 1) rules.fail("condition", "graph '$name' reads $latents latents; it must read one")
        if (found.count { it is Condition.Timestep } > 1) rules.fail("condition", "graph '$name' reads two timesteps")
        val outputs = graph.freeOutputs.size
        if (outputs != 1) rules.fail("tensor", "graph '$name' has $outputs outputs that are no carries; it needs one")
    }

    /** Rule 15. */
    private fun checkShapes(name: String, graph: Graph, both: Boolean) {
        for (spec in graph.freeInputs) {
            val condition = conditions.getValue(spec.name)
            if (!fits(spec, condition)) {
                val what = "which its condition ('${condition.source}') does not give"
                rules.fail("shape", "$spec of graph '$name', $what")
            }
            val isTime = condition is Condition.Timestep || condition is Condition.Guidance
            if (both && !isTime && spec.shape[0] != null) {
                rules.fail("shape", "$spec of graph '$name' has no batch, but guided rows run both sides at once")
            }
        }
        val made = graph.freeOutputs[0]
        if (!made.dtype.isFloat || !isLatent(made.shape) || both && made.shape[0] != null) {
            rules.fail("shape", "graph '$name' puts out $made; the latent is ${program.latent}")
        }
    }

    /** Whether a tensor has the type and shape of what its condition gives. */
    private fun fits(spec: TensorSpec, condition: Condition): Boolean {
        val sizes = spec.shape.drop(1)
        val latent: List<Int?> = program.latent.drop(1)
        if (!isBatch(spec.shape) || null in sizes) return false
        return when (condition) {
            is Condition.Classes -> spec.dtype == DType.INT64 && sizes.isEmpty()
            is Condition.TextMask -> sizes == listOf(lengthOf(condition))
            else -> spec.dtype.isFloat && when (condition) {
                Condition.Timestep, Condition.Guidance -> sizes.isEmpty()
                Condition.Latent -> isLatent(spec.shape)
                Condition.Mask -> sizes == listOf(1) + latent
                is Condition.Constant ->
                    listOfNotNull(condition.values, condition.empty).all { isFilledBy(sizes, it.size) }
                is Condition.Text -> sizes == joined(condition)
                else -> sizes.drop(1) == latent && (mean == null || sizes == mean.shape.drop(1))
            }
        }
    }

    private fun lengthOf(mask: Condition.TextMask): Int =
        manifest.tokenizers.getValue(manifest.encoders.getValue(mask.encoder).tokenizer).length

    private fun isFilledBy(sizes: List<Int?>, count: Int): Boolean =
        elements(sizes.filterNotNull()) == count.toLong()

    /** The shape of the joined outputs without batch; null where they do not join. */
    private fun joined(text: Condition.Text): List<Int?>? {
        val shapes = text.outputs.map { (encoder, output) ->
            val graph = manifest.encoders.getValue(encoder).graph
            val spec = rules.tensor(graph, manifest.graphs.getValue(graph).outputs, output)
            val sizes = spec.shape.drop(1)
            if (!spec.dtype.isFloat || !isBatch(spec.shape) || sizes.isEmpty() || null in sizes) return null
            sizes.filterNotNull()
        }
        val outer = shapes[0].dropLast(1)
        if (shapes.any { it.dropLast(1) != outer }) return null
        return outer + shapes.sumOf { it.last() }
    }

    private fun isLatent(shape: List<Int?>): Boolean = isBatch(shape) && shape.drop(1) == program.latent

    /** Rule 16. */
    private fun checkResult() {
        val decoder = manifest.decoder
        var result: List<Int?> = program.latent
        if (decoder.graph != null && decoder.input != null && decoder.output != null) {
            val graph = rules.graph(decoder.graph)
            val read = rules.tensor(decoder.graph, graph.inputs, decoder.input)
            if (!read.dtype.isFloat || !isLatent(read.shape)) {
                rules.fail("shape", "the decoder reads $read; the latent is ${program.latent}")
            }
            result = rules.tensor(decoder.graph, graph.outputs, decoder.output).shape.drop(1)
        }
        val isSound = manifest.makes == "audio"
        if (isSound && result.size != 2) {
            rules.fail("shape", "what is decoded is ${spelled(result)}; a sound has channels and samples")
        }
        if (!isSound && !isPicture(result)) {
            rules.fail("shape", "what is decoded is ${spelled(result)}; a picture has 1 or 3 channels, height, width")
        }
        manifest.preview?.let(::checkPreview)
    }

    private fun isPicture(sizes: List<Int?>) = sizes.size == 3 && (sizes[0] == 1 || sizes[0] == 3)

    /** The end of rule 16. */
    private fun checkPreview(preview: Preview) {
        if (preview.graph == null || preview.input == null || preview.output == null) {
            val count = preview.weights.orEmpty().size
            if (program.latent.size == 3 && program.latent[0] == count) return
            rules.fail("shape", "the preview has weights for $count channels; the latent is ${program.latent}")
        }
        val graph = rules.graph(preview.graph)
        val read = rules.tensor(preview.graph, graph.inputs, preview.input)
        val made = rules.tensor(preview.graph, graph.outputs, preview.output)
        if (!read.dtype.isFloat || !isLatent(read.shape)) {
            rules.fail("shape", "the preview reads $read; the latent is ${program.latent}")
        }
        if (made.shape.isEmpty() || !isPicture(made.shape.drop(1))) {
            rules.fail("shape", "the preview puts out $made; a picture has 1 or 3 channels, height, width")
        }
    }

    /** Rule 17. */
    private fun checkTakes() {
        val takes = program.takes
        if (takes.toSet().size != takes.size) rules.fail("takes", "takes names a thing twice: ${takes.joinToString()}")
        val reads = conditions.values
        val isAsked = reads.any { it is Condition.Text || it is Condition.TextMask || it is Condition.Classes }
        val isMasked = reads.any { it is Condition.MaskedPicture }
        checkTaken("prompt", isAsked)
        checkTaken("picture", adds || isMasked || reads.any { it is Condition.Picture })
        checkTaken("mask", program.blends || isMasked || reads.any { it is Condition.Mask })
        if ("negative_prompt" in takes && !(program.isGuided && reads.any { it is Condition.Text })) {
            rules.fail("takes", "takes a negative_prompt, which only a guided row with a text can use")
        }
    }

    /** Whether the picture's latent is added to a latent. */
    private val adds = program.initPicture != 0.0 || program.blends

    private fun checkTaken(word: String, isNeeded: Boolean) {
        if ((word in program.takes) == isNeeded) return
        val why = if (isNeeded) "no $word, which its rows or conditions need" else "a $word, which nothing uses"
        rules.fail("takes", "takes $why")
    }

    /** Rule 18. */
    private fun checkPicture() {
        val mean = mean ?: rules.fail("takes", "takes a picture or a mask, but the bundle has no encoder of pictures")
        if (adds && !isLatent(mean.shape)) {
            rules.fail("shape", "the encoder of pictures puts out $mean; the latent is ${program.latent}")
        }
    }

    /** Rules 19 and 20. */
    private fun checkGuidance() {
        for ((what, scale) in listOf("guidance" to program.guidance, "embedded_guidance" to program.embeddedGuidance)) {
            if (scale != null && (scale.scale < scale.low || scale.scale > scale.high)) {
                rules.fail("guidance", "$what ${scale.scale} lies outside ${scale.low} to ${scale.high}")
            }
        }
        val follows = program.rows.any { it.guidance?.isAsked == true || it.held?.isTimesScale == true }
        if (follows && program.guidance == null) {
            rules.fail("guidance", "a row follows the asked guidance, but the program states none")
        }
        val reads = conditions.values
        if (program.embeddedGuidance == null && reads.any { it is Condition.Guidance }) {
            rules.fail("guidance", "a graph reads the guidance, but the program states no embedded_guidance")
        }
        val isLost = reads.any { it is Condition.Classes && it.none == null }
        if (program.isGuided && (isLost || reads.none { it is Condition.Text || it is Condition.Classes })) {
            rules.fail("guidance", "a row is guided, but there is no text and no class of no class to guide from")
        }
    }
}
