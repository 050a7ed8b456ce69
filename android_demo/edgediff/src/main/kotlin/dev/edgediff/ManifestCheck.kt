package dev.edgediff

import java.util.TreeSet

/** What must hold between keys: section 7 of docs/format.md, rule by rule, in its order. The code names the rule. */
internal fun checkManifest(manifest: Manifest, where: String) {
    val rules = Rules(manifest, where)
    rules.checkPaths()
    rules.checkGraphs()
    for (backend in manifest.graphs.values.flatMap { it.artifacts.keys }.toSortedSet()) rules.checkStates(backend)
    for ((name, encoder) in manifest.encoders) rules.checkEncoder(name, encoder)
    for ((name, condition) in manifest.conditions) rules.checkCondition(name, condition)
    StageRules(manifest, rules).check()
    if (manifest.default !in manifest.programs) {
        val near = didYouMean(manifest.default, manifest.programs.keys)
        rules.fail("program", "the default program '${manifest.default}' does not exist$near")
    }
    for ((name, program) in manifest.programs) ProgramRules(manifest, program, rules.of("program '$name': ")).check()
}

/** Refuses with the file; [subject] stands before each sentence. */
internal class Rules(private val manifest: Manifest, private val where: String, private val subject: String = "") {
    fun of(subject: String): Rules = Rules(manifest, where, subject)

    fun fail(code: String, message: String): Nothing = refuse(code, where, subject + message)

    fun graph(name: String): Graph = manifest.graphs[name]
        ?: fail("graph", "graph '$name' does not exist${didYouMean(name, manifest.graphs.keys)}")

    fun tensor(graph: String, tensors: List<TensorSpec>, name: String): TensorSpec =
        tensors.firstOrNull { it.name == name }
            ?: fail("tensor", "graph '$graph' has no tensor '$name'${didYouMean(name, tensors.map { it.name })}")

    /** Rules 1 and 2. */
    fun checkPaths() {
        val seen = HashMap<String, String>()
        for ((index, path) in manifest.files.map { it.path }.withIndex()) {
            val key = path.lowercase()
            seen.put(key, path)?.let { fail("path", "'$it' and '$path' are one file where case is ignored") }
            if (key == MANIFEST) fail("file", "files.$index lists '$path', which cannot hold its own hash")
        }
        val listed = manifest.files.mapTo(TreeSet()) { it.path }
        val need = { what: String, path: String ->
            if (path !in listed) fail("file", "$what needs '$path', which is not among the files")
        }
        need("the plan", manifest.plan)
        for ((name, tokenizer) in manifest.tokenizers) {
            for (path in listOf(tokenizer.vocab, tokenizer.merges)) need("tokenizer '$name'", path)
        }
        for ((name, graph) in manifest.graphs) {
            for ((backend, artifact) in graph.artifacts) {
                for (path in artifact.files) if (!isFolder(listed, path)) need("graph '$name' on $backend", path)
            }
        }
    }

    private fun isFolder(listed: TreeSet<String>, path: String) = listed.ceiling("$path/")?.startsWith("$path/") == true

    /** Rules 3 and 4. */
    fun checkGraphs() {
        for ((name, graph) in manifest.graphs) {
            for (tensors in listOf(graph.inputs, graph.outputs)) {
                val names = HashSet<String>()
                val twice = tensors.firstOrNull { !names.add(it.name) } ?: continue
                fail("tensor", "graph '$name' has two tensors '${twice.name}' on one side")
            }
        }
        for ((name, graph) in manifest.graphs) {
            checkCarries(name, graph.carriesIn, graph.inputs)
            checkCarries(name, graph.carriesOut, graph.outputs)
        }
    }

    private fun checkCarries(name: String, carries: Map<String, String>, tensors: List<TensorSpec>) {
        val used = HashSet<String>()
        for ((carry, tensor) in carries) {
            val declared = manifest.carries[carry] ?: fail("carry", "graph '$name' uses unknown carry '$carry'")
            val spec = tensor(name, tensors, tensor)
            if (spec.dtype != declared.dtype || spec.shape != declared.shape) {
                fail("carry", "carry '$carry' and tensor '$tensor' of graph '$name' differ in type or shape")
            }
            if (!used.add(tensor)) fail("carry", "tensor '$tensor' of graph '$name' is two carries")
        }
    }

    /** Rule 5: a carry is in one state of one file, or in none, for all graphs of a backend; and nothing mixes it. */
    fun checkStates(backend: String) {
        val places = HashMap<String, Pair<String, String>?>()
        for ((name, graph) in manifest.graphs) {
            val artifact = graph.artifacts[backend] ?: continue
            val ends = graph.carriesIn.toList() + graph.carriesOut.toList()
            (artifact.states.keys - ends.map { it.second }.toSet()).firstOrNull()?.let {
                fail("carry", "graph '$name' on $backend has a state for '$it', which is no carry of it")
            }
            for ((carry, tensor) in ends) {
                val place = artifact.states[tensor]?.let { artifact.file to it }
                if (carry in places && places[carry] != place) {
                    fail("carry", "carry '$carry' is in one state for some graphs on $backend, and not for others")
                }
                places[carry] = place
            }
        }
        val held = places.filterValues { it != null }
        if (held.values.toSet().size < held.size) fail("carry", "two carries are in one state on $backend")
        if (held.isEmpty()) return
        val rows = manifest.programs.values.asSequence().flatMap { it.rows }
        rows.flatMap { it.mix.keys }.firstOrNull { it in held }?.let {
            fail("carry", "a row mixes carry '$it', which is a state on $backend: it has its newest value only")
        }
    }

    /** Rule 6. */
    fun checkEncoder(name: String, encoder: Encoder) {
        val tokenizer = manifest.tokenizers[encoder.tokenizer] ?: fail(
            "tokenizer", "encoder '$name' needs tokenizer '${encoder.tokenizer}', which does not exist" +
                didYouMean(encoder.tokenizer, manifest.tokenizers.keys),
        )
        val graph = graph(encoder.graph)
        val wanted = listOfNotNull(encoder.ids, encoder.mask)
        val specs = wanted.map { tensor(encoder.graph, graph.inputs, it) }
        for (spec in specs) {
            if (spec.shape.size != 2 || !isBatch(spec.shape) || spec.shape[1] != tokenizer.length) {
                fail("shape", "$spec of graph '${encoder.graph}': a text is [1, ${tokenizer.length}]")
            }
        }
        if (specs[0].dtype.isFloat) fail("shape", "${specs[0]} of graph '${encoder.graph}': ids are whole numbers")
        graph.inputs.firstOrNull { it.name !in wanted }?.let {
            fail("tensor", "graph '${encoder.graph}' of encoder '$name' reads '${it.name}', which nothing feeds")
        }
    }

    /** Rule 7. */
    fun checkCondition(name: String, condition: Condition) {
        val encoderOf = { encoder: String ->
            manifest.encoders[encoder] ?: fail(
                "condition", "'$name' comes from encoder '$encoder', which does not exist" +
                    didYouMean(encoder, manifest.encoders.keys),
            )
        }
        when (condition) {
            is Condition.Text -> for ((encoder, output) in condition.outputs) {
                val graph = encoderOf(encoder).graph
                tensor(graph, manifest.graphs.getValue(graph).outputs, output)
            }
            is Condition.TextMask -> encoderOf(condition.encoder)
            is Condition.Classes -> {
                val names = condition.names.toSet().size
                if (condition.none != null && condition.none > condition.count) {
                    fail("condition", "'$name': null = ${condition.none} is above count = ${condition.count}")
                }
                if (condition.names.size != names || names != 0 && names != condition.count) {
                    fail("condition", "'$name' has $names different names for ${condition.count} classes")
                }
            }
            else -> Unit
        }
    }
}

/** Whether the first axis is 1 or the batch. */
internal fun isBatch(shape: List<Int?>): Boolean = shape.isNotEmpty() && (shape[0] == null || shape[0] == 1)
