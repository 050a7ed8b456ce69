package dev.edgediff

/**
 * States what must hold inside a manifest, in the order of Python's `Manifest.check`. The code names the rule:
 * `graph`, `tensor`, `carry`, `carry_before_write`, `guidance`, `history`, `file`.
 */
internal fun Manifest.check(where: String) {
    val listed = files.mapTo(HashSet()) { it.path }
    if (listed.size != files.size) refuse("file", where, "a file is listed twice")
    if (plan !in listed) refuse("file", where, "the plan '$plan' is not among the files")
    program.tokenize?.let { stage ->
        if (listed.none { it.startsWith("${stage.folder}/") }) {
            refuse("file", where, "the tokenizer's folder '${stage.folder}' has no file among the files")
        }
    }
    if ((kind == "unconditional-audio") != (program.decode.sampleRate != null)) {
        refuse("value", where, "a bundle has a decode.sample_rate if its kind is unconditional-audio, and only then")
    }
    for ((name, graph) in graphs) checkGraph(name, graph, listed, where)
    for (backend in graphs.values.flatMap { it.artifacts.keys }.toSortedSet()) checkStates(backend, where)
    program.encode?.let { checkStage(it.graph, it.input, it.output, where) }
    program.decode.let { stage -> stage.graph?.let { checkStage(it, stage.input, stage.output, where) } }
    RowCheck(this, where).run()
    checkHistory(program, where)
}

private fun Manifest.checkGraph(name: String, graph: Graph, listed: Set<String>, where: String) {
    for ((backend, artifact) in graph.artifacts) {
        for (file in artifact.files) {
            if (file !in listed && listed.none { it.startsWith("$file/") }) {
                refuse("file", where, "graph '$name' on $backend needs '$file', which is not among the files")
            }
        }
    }
    for ((tensors, names) in listOf(graph.inputs to graph.carriesIn, graph.outputs to graph.carriesOut)) {
        for ((carry, tensor) in names) {
            val declared = carries[carry] ?: refuse("carry", where, "graph '$name' uses unknown carry '$carry'")
            val spec = findTensor(tensors, tensor, "graph '$name'", where)
            if (spec.dtype != declared.dtype || spec.shape != declared.shape) {
                refuse("carry", where, "carry '$carry' and tensor '$tensor' of graph '$name' differ in type or shape")
            }
        }
    }
}

/** A carry is in one state of one file, or in none, for all graphs of a backend; and nothing mixes it. */
private fun Manifest.checkStates(backend: String, where: String) {
    val places = HashMap<String, Pair<String, String>?>()
    for ((name, graph) in graphs) {
        val artifact = graph.artifacts[backend] ?: continue
        val ends = graph.carriesIn.toList() + graph.carriesOut.toList()
        (artifact.states.keys - ends.map { it.second }.toSet()).firstOrNull()?.let {
            refuse("carry", where, "graph '$name' on $backend has a state for '$it', which is no carry of it")
        }
        for ((carry, tensor) in ends) {
            val place = artifact.states[tensor]?.let { artifact.file to it }
            if (carry in places && places[carry] != place) {
                refuse("carry", where, "carry '$carry' is in one state for some graphs on $backend, and not for others")
            }
            places[carry] = place
        }
    }
    val held = places.filterValues { it != null }
    if (held.values.toSet().size < held.size) refuse("carry", where, "two carries are in one state on $backend")
    program.rows.flatMap { it.mix.keys }.firstOrNull { it in held }?.let {
        refuse("carry", where, "a row mixes carry '$it', which is a state on $backend: it has its newest value only")
    }
}

private fun Manifest.checkStage(name: String, input: String, output: String, where: String) {
    val graph = findGraph(name, where)
    findTensor(graph.inputs, input, "graph '$name'", where)
    findTensor(graph.outputs, output, "graph '$name'", where)
}

private fun Manifest.findGraph(name: String, where: String): Graph = graphs[name]
    ?: refuse("graph", where, "the program runs graph '$name', which does not exist${didYouMean(name, graphs.keys)}")

internal fun findTensor(tensors: List<TensorSpec>, name: String, owner: String, where: String?): TensorSpec =
    tensors.firstOrNull { it.name == name }
        ?: refuse("tensor", where, "$owner has no tensor '$name'${didYouMean(name, tensors.map { it.name })}")

/** What rows may read of what rows before them have written. */
private class RowCheck(private val manifest: Manifest, private val where: String) {
    private val written = HashMap<String, MutableList<Boolean>>() // newest first: was the writer guided?
    private var ran = false
    private var guidedRows = 0

    fun run() = manifest.program.rows.forEachIndexed { index, row ->
        row.heldGuidance?.let { checkHeldGuidance(index, row, it.size) }
        if (row.graph == null) checkHeld(index, row) else checkCall(index, row, manifest.findGraph(row.graph, where))
    }

    private fun checkHeld(index: Int, row: Row) {
        if (!ran) refuse("carry_before_write", where, "row $index holds the output before any graph has run")
        if (row.mix.isNotEmpty()) refuse("carry", where, "row $index holds the output and mixes")
    }

    private fun checkCall(index: Int, row: Row, graph: Graph) {
        val guided = row.guidance != null
        ran = true
        if (guided) guidedRows++
        for ((carry, weights) in row.mix) checkMix(index, graph, carry, weights.size)
        for (carry in graph.carriesIn.keys) {
            val past = written[carry]
                ?: refuse("carry_before_write", where, "row $index reads carry '$carry' before any row writes it")
            if (guided && !past.take(row.mix[carry]?.size ?: 1).all { it }) {
                refuse("carry", where, "row $index is guided but carry '$carry' was written without guidance")
            }
        }
        for (carry in graph.carriesOut.keys) written.getOrPut(carry) { ArrayList() }.add(0, guided)
    }

    private fun checkHeldGuidance(index: Int, row: Row, count: Int) {
        if (row.graph == null || row.guidance != null || count == 0) {
            val needs = "it needs a graph, weights, and no guidance of its own"
            refuse("guidance", where, "row $index holds guidance: $needs")
        }
        if (count > guidedRows) {
            val what = "holds the guidance of $count rows, and $guidedRows before it are guided"
            refuse("carry_before_write", where, "row $index $what")
        }
    }

    private fun checkMix(index: Int, graph: Graph, carry: String, count: Int) {
        if (carry !in graph.carriesIn || count == 0) {
            refuse("carry", where, "row $index mixes '$carry', which its graph does not read, or from nothing")
        }
        val have = written[carry]?.size ?: 0
        if (count > have) {
            val what = "mixes $count values of '$carry', of which $have are written"
            refuse("carry_before_write", where, "row $index $what")
        }
    }
}

private fun checkHistory(program: Program, where: String) {
    if (program.steps < 1) refuse("history", where, "the program has ${program.steps} steps; it must have at least 1")
    program.rows.forEachIndexed { index, row ->
        for ((what, count) in listOf("latents" to row.update.x.size, "outputs" to row.update.e.size)) {
            if (count > index + 1) {
                refuse("history", where, "row $index reads $count $what; there are at most ${index + 1} by then")
            }
        }
        val limit = row.update.clip?.limit ?: return@forEachIndexed
        if (limit <= 0) refuse("history", where, "row $index clips to +-$limit; the limit must be above 0")
    }
}
