package dev.edgediff

/** Element type of a tensor: [label] is the manifest's word, [bytes] the size of one element. */
public enum class DType(public val label: String, public val bytes: Int) {
    FLOAT32("float32", 4), FLOAT16("float16", 2), INT64("int64", 8), INT32("int32", 4),
}

/** One input or output. A null in [shape] is the batch: 1, or 2 when guidance is batched (empty prompt, prompt). */
public data class TensorSpec(val name: String, val dtype: DType, val shape: List<Int?>) {
    /** The sizes at a batch. */
    public fun sized(batch: Int): List<Int> = shape.map { it ?: batch }
}

/**
 * Where a graph is on one backend: file, function or method inside it, precision, further files it needs. [chunks] go
 * on where [file] ends, in order. [states] maps inputs and outputs that do not cross to states that the backend keeps.
 * [delegates] counts the pieces handed to each delegate, [outside] the operators that none took; [memoryBytes] is what
 * the graph needs while it runs, weights left out.
 */
public data class Artifact(
    val file: String,
    val function: String?,
    val precision: String,
    val data: List<String>,
    val chunks: List<String> = emptyList(),
    val states: Map<String, String> = emptyMap(),
    val delegates: Map<String, Long> = emptyMap(),
    val outside: Map<String, Long> = emptyMap(),
    val memoryBytes: Long? = null,
) {
    /** Every file that running the graph needs. */
    public val files: List<String> get() = listOf(file) + chunks + data
}

/** A typed function. [carriesIn] and [carriesOut] map carry names to its input and output names. */
public data class Graph(
    val component: String,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
    val carriesIn: Map<String, String>,
    val carriesOut: Map<String, String>,
    val parameters: Long,
    val macs: Long,
    val artifacts: Map<String, Artifact>,
)

/** Folder of the tokenizer, and how many ids a prompt becomes. */
public data class Tokenize(val folder: String, val length: Int)

/** Runs once per text: ids `[1, length]` in, embedding `[1, length, width]` out. */
public data class Encode(val graph: String, val input: String, val output: String)

/** Class-to-image: a prompt is one of [names], or a number below [count]; [nullClass] stands for no class. */
public data class Classes(val input: String, val count: Long, val nullClass: Long?, val names: List<String>)

/**
 * latent * scale + shift -> graph -> values in [-1, 1]. Without a graph the latent is the picture itself, or the sound,
 * which has [sampleRate] values a second.
 */
public data class Decode(
    val graph: String?, val input: String, val output: String, val scale: Double, val shift: Double,
    val sampleRate: Long? = null,
)

/** The one non-linear op: adds weight * clamp(x * x_i + e * e_i, -limit, limit). */
public data class Clip(val x: Double, val e: Double, val limit: Double, val weight: Double)

/** Coefficients of x_{i+1}; index k reaches k network calls back. */
public data class Update(val x: List<Double>, val e: List<Double>, val noise: Double = 0.0, val clip: Clip? = null)

/**
 * One network call. [graph] null holds the last output. [guidance] s runs both prompts; null runs the prompt alone,
 * and then [heldGuidance] adds what guided rows left: sum_k heldGuidance[k] * (prompt - empty, k guided rows ago). A
 * carry that the graph reads is sum_k mix[carry][k] * (its value k writes ago); one not in [mix] is its newest value.
 */
public data class Row(
    val timestep: Double,
    val update: Update,
    val inputScale: Double = 1.0,
    val graph: String? = null,
    val guidance: Double? = null,
    val heldGuidance: List<Double>? = null,
    val mix: Map<String, List<Double>> = emptyMap(),
)

/** tokenize -> encode -> rows -> decode. [latent] is the shape without batch. */
public data class Program(
    val tokenize: Tokenize?,
    val encode: Encode?,
    val classes: Classes?,
    val decode: Decode,
    val latent: List<Int>,
    val initScale: Double,
    val sampler: String,
    val steps: Long,
    val isBatched: Boolean,
    val rows: List<Row>,
)

/** A file of the bundle: relative path, size, SHA-256 (hex). */
public data class FileEntry(val path: String, val bytes: Long, val sha256: String)

/** Where the weights come from. */
public data class Source(val model: String, val revision: String?, val weights: String, val licence: String)

/** The program of a bundle, as `manifest.json` states it. Made by [ModelBundle.open], which checks it first. */
public data class Manifest(
    val schemaVersion: String,
    val kind: String,
    val name: String,
    val carries: Map<String, TensorSpec>,
    val graphs: Map<String, Graph>,
    val program: Program,
    val rng: String,
    val files: List<FileEntry>,
    val source: Source,
    val tools: Map<String, String>,
    val plan: String,
) {
    /** Whether any row runs both prompts. */
    public val isGuided: Boolean get() = program.rows.any { it.guidance != null }

    /** Bytes of the files that one component's graphs need on a backend; what memory modes decide by. */
    public fun componentBytes(backend: String): Map<String, Long> {
        val sizes = files.associate { it.path to it.bytes }
        val size = { file: String -> sizes[file] ?: sizes.filterKeys { it.startsWith("$file/") }.values.sum() }
        val used = usedGraphs().map { graphs.getValue(it.first) }.distinct()
        return used.groupBy { it.component }.mapValues { (_, members) ->
            val artifacts = members.mapNotNull { it.artifacts[backend] }
            artifacts.flatMap { it.files }.distinct().sumOf(size)
        }
    }

    /** (graph, batch) pairs that the program runs, in the order of first use. */
    public fun usedGraphs(): List<Pair<String, Int>> {
        val found = LinkedHashSet<Pair<String, Int>>()
        program.encode?.let { found.add(it.graph to 1) }
        for (row in program.rows) {
            row.graph?.let { found.add(it to if (row.guidance != null && program.isBatched) 2 else 1) }
        }
        program.decode.graph?.let { found.add(it to 1) }
        return found.toList()
    }

    /** Backends that have an artifact of every graph that the program uses, in the manifest's order. */
    public fun backends(): List<String> {
        val used = usedGraphs().mapNotNull { graphs[it.first] }
        return used.first().artifacts.keys.filter { name -> used.all { name in it.artifacts } }
    }
}
