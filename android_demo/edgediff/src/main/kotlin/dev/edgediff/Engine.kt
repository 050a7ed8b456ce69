package dev.edgediff

import java.nio.file.Path

/** A way to run graphs. Several may serve one app; each names the [backend] whose files it reads. */
public interface Engine {
    public val backend: String

    /**
     * Loads one graph at one batch size, from [folder], the bundle's. Raises `load` for a file that cannot be loaded,
     * `signature` for one whose inputs and outputs are not [graph]'s, `memory`.
     */
    public fun open(folder: Path, graph: Graph, artifact: Artifact, batch: Int): GraphRunner
}

/** A loaded graph. Not for two threads at once. */
public interface GraphRunner : AutoCloseable {
    /**
     * Reads [inputs] in place and writes every one of [outputs], both by name, of the manifest's types and sizes at
     * the batch it was opened for. Keeps no reference to them. Raises `run`, `memory`.
     */
    public fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>)

    override fun close()
}

/** [named] if the bundle has it on one of [engines], else the first backend of the bundle that an engine runs. */
public fun chooseEngine(manifest: Manifest, engines: List<Engine>, named: String? = null): Engine {
    val have = manifest.backends()
    val usable = have.filter { name -> engines.any { it.backend == name } }
    if (named != null && named !in usable) {
        refuse("backend", null, "bundle '${manifest.name}' cannot run on '$named'${didYouMean(named, usable)}")
    }
    val name = named ?: usable.firstOrNull()
    if (name == null) {
        val built = have.ifEmpty { listOf("no backend with all of its graphs") }.joinToString()
        val runs = engines.joinToString { it.backend }
        refuse("backend", null, "bundle '${manifest.name}' has $built; this app runs $runs")
    }
    return engines.first { it.backend == name }
}
