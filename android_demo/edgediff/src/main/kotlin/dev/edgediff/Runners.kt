package dev.edgediff

/**
 * The loaded graphs of one bundle on one engine. In [MemoryMode.ONE_COMPONENT] a graph of another component closes
 * all that are open.
 */
internal class Runners(
    private val manifest: Manifest, private val memory: MemoryMode,
    private val opener: (graph: String, batch: Int) -> GraphRunner,
) : AutoCloseable {
    constructor(bundle: ModelBundle, engine: Engine, memory: MemoryMode) :
        this(bundle.manifest, memory, { name, batch ->
            val graph = bundle.manifest.graphs.getValue(name)
            val artifact = graph.artifacts[engine.backend]
                ?: refuse("backend", null, "graph '$name' was not built for '${engine.backend}'")
            engine.open(bundle.folder, graph, artifact, batch)
        })

    private val open = HashMap<Pair<String, Int>, GraphRunner>()
    private var component: String? = null
    private val counts =
        manifest.programs.values.flatMap(manifest::usedGraphs).distinct().groupingBy { it.first }.eachCount()
    val loadMillis = LinkedHashMap<String, Double>()
    var onCall: ((String, Long) -> Unit)? = null

    /** Runs a graph, loading it if need be, and returns the nanoseconds of the run alone. */
    fun run(name: String, batch: Int, inputs: Map<String, Tensor>, outputs: Map<String, Tensor>): Long {
        val runner = open(name, batch)
        val began = System.nanoTime()
        runner.run(inputs, outputs)
        return (System.nanoTime() - began).also { onCall?.invoke(label(name, batch), it) }
    }

    private fun open(name: String, batch: Int): GraphRunner {
        val wanted = manifest.graphs.getValue(name).component
        if (memory == MemoryMode.ONE_COMPONENT && component != wanted) close()
        component = wanted
        return open.getOrPut(name to batch) {
            val began = System.nanoTime()
            val runner = opener(name, batch)
            loadMillis[label(name, batch)] = millisSince(began)
            runner
        }
    }

    private fun label(name: String, batch: Int) = if (counts[name] != 2) name else "$name@$batch"

    fun loadAll(program: Program) {
        if (memory == MemoryMode.KEEP_ALL) for ((name, batch) in manifest.usedGraphs(program)) open(name, batch)
    }

    override fun close() {
        for (runner in open.values) runner.close()
        open.clear()
        component = null
    }
}
