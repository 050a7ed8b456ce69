package dev.edgediff

// The tables of docs/format.md, section 5, as types. Only the reader makes them, so a later minor version may add keys.

/** Element type of a tensor: [label] is the manifest's word, [bytes] the size of one element. */
public enum class DType(public val label: String, public val bytes: Int) {
    FLOAT32("float32", 4), FLOAT16("float16", 2), INT64("int64", 8), INT32("int32", 4);

    internal val isFloat: Boolean get() = this == FLOAT32 || this == FLOAT16
}

/** One input or output. A null in [shape] is the batch: 1, or 2 in a batched guided row (empty side, prompt side). */
public class TensorSpec internal constructor(
    public val name: String, public val dtype: DType, public val shape: List<Int?>,
) {
    /** The sizes at a batch. */
    public fun sized(batch: Int): List<Int> = shape.map { it ?: batch }

    override fun toString(): String = "$name: ${dtype.label}${spelled(shape)}"
}

/** A value that one row's graph hands to later ones. */
public class Carry internal constructor(public val dtype: DType, public val shape: List<Int?>) {
    internal fun sized(batch: Int): List<Int> = shape.map { it ?: batch }
}

internal fun spelled(shape: List<Int?>): String = shape.joinToString(", ", "[", "]") { it?.toString() ?: "batch" }

/**
 * Where a graph is on one backend: file, function or method inside it, precision, further files it needs. [chunks] go
 * on where [file] ends, in order. [states] maps inputs and outputs that do not cross to states that the backend keeps.
 * [delegates] counts the pieces handed to each delegate, [outside] the operators that none took; [memoryBytes] is what
 * the graph needs while it runs, weights left out.
 */
public class Artifact internal constructor(
    public val file: String, public val function: String?, public val precision: String,
    public val data: List<String>, public val chunks: List<String>, public val delegates: Map<String, Long>,
    public val outside: Map<String, Long>, public val memoryBytes: Long?, public val states: Map<String, String>,
) {
    /** Every file that running the graph needs. */
    public val files: List<String> get() = listOf(file) + chunks + data
}

/** A typed function. [carriesIn] and [carriesOut] map carry names to its input and output names. */
public class Graph internal constructor(
    public val component: String, public val inputs: List<TensorSpec>, public val outputs: List<TensorSpec>,
    public val carriesIn: Map<String, String>, public val carriesOut: Map<String, String>,
    public val parameters: Long, public val macs: Long, public val artifacts: Map<String, Artifact>,
) {
    /** Inputs that are no carries: each has a condition where the graph is the denoiser's. */
    internal val freeInputs: List<TensorSpec> by lazy {
        carriesIn.values.toSet().let { inputs.filter { spec -> spec.name !in it } }
    }

    /** Outputs that are no carries: of a denoiser's graph one, the prediction. */
    internal val freeOutputs: List<TensorSpec> by lazy {
        carriesOut.values.toSet().let { outputs.filter { spec -> spec.name !in it } }
    }
}

/** A tokenizer in the bundle's one normal form (section 6). */
public class TokenizerSpec internal constructor(
    public val kind: String, public val vocab: String, public val merges: String, public val length: Int,
    internal val begin: String, internal val end: String, internal val pad: String, internal val unknown: String,
    internal val added: List<AddedToken>,
)

/** Runs once per text: ids `[1, length]` in, tensors out. [mask]: the input that takes 1 for text, 0 for padding. */
public class Encoder internal constructor(
    public val tokenizer: String, public val graph: String, public val ids: String, public val mask: String?,
)

/**
 * latent * scale + shift -> graph -> values in [-1, 1]. Without a graph the latent is the picture itself, or the sound,
 * which has [sampleRate] values a second.
 */
public class Decoder internal constructor(
    public val graph: String?, public val input: String?, public val output: String?,
    public val scale: Double, public val shift: Double, public val sampleRate: Int?,
)

/** A picture `[1, 3, height, width]` in [-1, 1] to its latent: ((mean + deviation eps) - shift) * scale. */
public class PictureEncoder internal constructor(
    public val graph: String, public val input: String, public val mean: String, public val deviation: String?,
    public val scale: Double, public val shift: Double, public val height: Int, public val width: Int,
)

/** Runs on what the decoder puts out; a value above [threshold] flags the picture. */
public class Safety internal constructor(
    public val graph: String, public val input: String, public val output: String, public val threshold: Double,
)

/** A small picture of a step: a graph, or sum_c weights[c] x[c] + bias. */
public class Preview internal constructor(
    public val graph: String?, public val input: String?, public val output: String?,
    public val weights: List<List<Double>>?, public val bias: List<Double>?,
)

/** A file of the bundle: relative path, size, SHA-256 (hex). */
public class FileEntry internal constructor(public val path: String, public val bytes: Long, public val sha256: String)

/** Where the weights come from. */
public class Source internal constructor(
    public val model: String, public val weights: String, public val licence: String, public val revision: String?,
    public val pipeline: String?,
)

/**
 * The program of a bundle, as `manifest.json` states it. Made by [ModelBundle.open], which checks the files too, and by
 * [read].
 */
public class Manifest internal constructor(
    public val schemaVersion: String, public val name: String, public val makes: String, public val rng: String,
    public val tokenizers: Map<String, TokenizerSpec>, public val carries: Map<String, Carry>,
    public val graphs: Map<String, Graph>, public val encoders: Map<String, Encoder>,
    internal val conditions: Map<String, Condition>, public val decoder: Decoder, public val picture: PictureEncoder?,
    public val safety: Safety?, public val preview: Preview?, public val programs: Map<String, Program>,
    public val default: String, public val plan: String, public val files: List<FileEntry>,
    public val source: Source, public val tools: Map<String, String>,
) {
    /** A program by its name, the default one for null. Raises `program`, naming those that there are. */
    public fun program(name: String? = null): Program = programs[name ?: default]
        ?: refuse("program", null, "bundle '${this.name}' has no program '$name'${didYouMean("$name", programs.keys)}")

    /** The names of the classes that a program of this bundle may be asked for; empty where they have none. */
    public val classNames: List<String>
        get() = conditions.values.filterIsInstance<Condition.Classes>().firstOrNull()?.names.orEmpty()

    /** What feeds the graphs of a program's rows, by the inputs' names. */
    internal fun conditionsOf(program: Program): Map<String, Condition> {
        val read = program.graphNames.flatMap { graphs.getValue(it).freeInputs }.mapTo(LinkedHashSet()) { it.name }
        return read.associateWith(conditions::getValue)
    }

    /** Bytes of the files that one component's graphs need on a backend; what memory modes decide by. */
    public fun componentBytes(backend: String): Map<String, Long> {
        val sizes = files.associate { it.path to it.bytes }
        val size = { file: String -> sizes[file] ?: sizes.filterKeys { it.startsWith("$file/") }.values.sum() }
        val used = programs.values.flatMap(::usedGraphs).map { graphs.getValue(it.first) }.distinct()
        return used.groupBy { it.component }.mapValues { (_, members) ->
            members.mapNotNull { it.artifacts[backend] }.flatMap { it.files }.distinct().sumOf(size)
        }
    }

    /** (graph, batch) pairs that a picture of a program runs, in the order of first use. */
    public fun usedGraphs(program: Program = program()): List<Pair<String, Int>> {
        val found = LinkedHashSet<Pair<String, Int>>()
        for (condition in conditionsOf(program).values) {
            for (name in condition.encoders) found.add(encoders.getValue(name).graph to 1)
        }
        if ("picture" in program.takes) picture?.let { found.add(it.graph to 1) }
        for (row in program.rows) {
            row.graph?.let { found.add(it to if (row.guidance != null && program.isBatched) 2 else 1) }
        }
        for (name in listOf(decoder.graph, safety?.graph, preview?.graph)) name?.let { found.add(it to 1) }
        return found.toList()
    }

    /** Backends that have an artifact of every graph that the programs use, in the manifest's order. */
    public fun backends(): List<String> {
        val used = programs.values.flatMap(::usedGraphs).map { graphs.getValue(it.first) }.distinct()
        return used.first().artifacts.keys.filter { name -> used.all { name in it.artifacts } }
    }

    public companion object {
        /**
         * A manifest without its files: steps 2 to 5 of docs/format.md. [where] stands for the file in what is raised:
         * [EdgeDiffException] with `syntax`, `version`, `value`, `unknown_key`, `path` or a code of section 7.
         */
        @JvmStatic
        @JvmOverloads
        public fun read(bytes: ByteArray, where: String = MANIFEST): Manifest = parseManifest(bytes, where)
    }
}
