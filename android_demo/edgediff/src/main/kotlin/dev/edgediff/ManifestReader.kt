package dev.edgediff

internal const val MANIFEST = "manifest.json"
private const val SCHEMA_MAJOR = "2"

/** The manifest, parsed and checked: steps 2 to 5 of docs/format.md. Raises `memory` where the heap is too small. */
internal fun parseManifest(bytes: ByteArray, where: String): Manifest = try {
    readDocument(bytes, where)
} catch (error: OutOfMemoryError) {
    throw EdgeDiffException("memory", "${bytes.size} bytes are more than this app's memory can read", where, error)
}

private fun readDocument(bytes: ByteArray, where: String): Manifest {
    val root = parseJson(decodeUtf8(bytes, where), where) as? JsonObject
        ?: refuse("value", where, "a manifest is an object")
    val version = checkVersion(root["schema_version"], where)
    val manifest = record(::readManifest)(root, Place(where, isNewer = version != "0"))
    checkManifest(manifest, where)
    return manifest
}

/** The minor version. */
private fun checkVersion(value: Any?, where: String): String {
    val version = value as? String ?: refuse("version", where, "schema_version must be a text like '$SCHEMA_MAJOR.0'")
    val (major, minor) = VERSION.matchEntire(version)?.destructured
        ?: refuse("version", where, "schema_version '${version.take(60)}' is none: it is a text like '$SCHEMA_MAJOR.0'")
    if (major == "1") {
        refuse("version", where, "schema_version $version is the first format, which is no longer read: build it again")
    }
    if (major != SCHEMA_MAJOR) {
        val what = "schema_version '${version.take(60)}' cannot be read"
        refuse("version", where, "$what: this app reads $SCHEMA_MAJOR.x; update it")
    }
    return minor
}

private val VERSION = Regex("(0|[1-9][0-9]*)[.](0|[1-9][0-9]*)")
private val HASH = Regex("[0-9a-f]{64}")
private const val MOST_COUNT = (1L shl 53) - 1
private const val MOST_ELEMENTS = 1L shl 28

private val count = whole(0L..MOST_COUNT)
private val shortText = text(0..200)
private val token = text(1..200)
private val names = mapOf(0..512, readName)
private val counts = mapOf(0..512, count)
private val dtype = word(*DType.entries.map { it.label }.toTypedArray())
private val precision = word("fp32", "tf32", "fp16", "bf16", "w8", "w8a8", "w8a16", "w4", "w4a8")
private val colour = listOf(3..3, anyNumber)

private fun readManifest(fields: Fields) = Manifest(
    schemaVersion = fields.one("schema_version", anyText),
    name = fields.one("name", readName),
    makes = fields.one("makes", word("image", "audio")),
    rng = fields.oneOr("rng", "mt19937", word("mt19937", "philox")),
    tokenizers = fields.oneOr("tokenizers", emptyMap(), mapOf(0..8, record(::readTokenizer))),
    carries = fields.oneOr("carries", emptyMap(), mapOf(0..4096, record(::readCarry))),
    graphs = fields.one("graphs", mapOf(1..256, record(::readGraph))),
    encoders = fields.oneOr("encoders", emptyMap(), mapOf(0..8, record(::readEncoder))),
    conditions = fields.one("conditions", mapOf(1..64, record(::readCondition))),
    decoder = fields.one("decoder", record(::readDecoder)),
    picture = fields.optional("picture", record(::readPicture)),
    safety = fields.optional("safety", record(::readSafety)),
    preview = fields.optional("preview", record(::readPreview)),
    programs = fields.one("programs", mapOf(1..64, record(::readProgram))),
    default = fields.one("default", readName),
    plan = fields.oneOr("plan", "plan.json", readPath),
    files = fields.one("files", listOf(1..65_536, record(::readFile))),
    source = fields.one("source", record(::readSource)),
    tools = fields.oneOr("tools", emptyMap(), mapOf(0..64, anyText)),
).also {
    fields.oneOr("evidence", Unit) { value, place -> if (value !is JsonObject) place.wrong(value, "an object") }
}

internal fun readTokenizer(fields: Fields) = TokenizerSpec(
    kind = fields.one("kind", word("clip")),
    vocab = fields.one("vocab", readPath),
    merges = fields.one("merges", readPath),
    length = fields.one("length", whole(2..4096)),
    begin = fields.one("begin", token),
    end = fields.one("end", token),
    pad = fields.one("pad", token),
    unknown = fields.one("unknown", token),
    added = fields.oneOr("added", emptyList(), listOf(0..4096, record(::readAdded))),
)

private fun readAdded(fields: Fields) = AddedToken(
    content = fields.one("content", token),
    ids = fields.one("ids", listOf(1..64, whole(0..(1 shl 24)))),
    isNormalized = fields.oneOr("normalized", false, yesOrNo),
    singleWord = fields.oneOr("single_word", false, yesOrNo),
    takesLeft = fields.oneOr("left_strip", false, yesOrNo),
    takesRight = fields.oneOr("right_strip", false, yesOrNo),
)

private fun readType(fields: Fields): DType {
    val label = fields.one("dtype", dtype)
    return DType.entries.first { it.label == label }
}

private val axis = whole(1..(1 shl 20))

private val size: Read<Int?> = { value, place -> if (value == "batch") null else axis(value, place) }

private val shape: Read<List<Int?>> = { value, place ->
    listOf(0..6, size)(value, place).also { sizes ->
        if (sizes.count { it == null } > 1) place.refuse("value", "'$place': \"batch\" stands at most once in a shape")
        if (elements(sizes.map { it ?: 2 }) > MOST_ELEMENTS) {
            place.refuse("value", "'$place' has more than $MOST_ELEMENTS elements")
        }
    }
}

/** Their product, or something above every limit. */
internal fun elements(sizes: List<Int>): Long =
    sizes.fold(1L) { product, size -> if (product > MOST_ELEMENTS) product else product * size }

private fun readCarry(fields: Fields) = Carry(readType(fields), fields.one("shape", shape))

private fun readTensor(fields: Fields) =
    TensorSpec(fields.one("name", readName), readType(fields), fields.one("shape", shape))

private fun readGraph(fields: Fields) = Graph(
    component = fields.one("component", readName),
    inputs = fields.one("inputs", listOf(1..512, record(::readTensor))),
    outputs = fields.one("outputs", listOf(1..512, record(::readTensor))),
    carriesIn = fields.oneOr("carries_in", emptyMap(), names),
    carriesOut = fields.oneOr("carries_out", emptyMap(), names),
    parameters = fields.oneOr("parameters", 0L, count),
    macs = fields.oneOr("macs", 0L, count),
    artifacts = fields.oneOr("artifacts", emptyMap(), mapOf(0..16, record(::readArtifact))),
)

private fun readArtifact(fields: Fields) = Artifact(
    file = fields.one("file", readPath),
    function = fields.optional("function", shortText),
    precision = fields.one("precision", precision),
    data = fields.oneOr("data", emptyList(), listOf(0..64, readPath)),
    chunks = fields.oneOr("chunks", emptyList(), listOf(0..64, readPath)),
    delegates = fields.oneOr("delegates", emptyMap(), counts),
    outside = fields.oneOr("outside", emptyMap(), counts),
    memoryBytes = fields.optional("memory_bytes", count),
    states = fields.oneOr("states", emptyMap(), names),
)

private fun readEncoder(fields: Fields) = Encoder(
    fields.one("tokenizer", readName), fields.one("graph", readName), fields.one("ids", readName),
    fields.optional("mask", readName),
)

private fun readDecoder(fields: Fields) = Decoder(
    graph = fields.optional("graph", readName),
    input = fields.optional("input", readName),
    output = fields.optional("output", readName),
    scale = fields.oneOr("scale", 1.0, anyNumber),
    shift = fields.oneOr("shift", 0.0, anyNumber),
    sampleRate = fields.optional("sample_rate", whole(1..1_000_000)),
)

private fun readPicture(fields: Fields): PictureEncoder {
    val graph = fields.one("graph", readName)
    val input = fields.one("input", readName)
    val mean = fields.one("mean", readName)
    val deviation = fields.optional("deviation", readName)
    val scale = fields.oneOr("scale", 1.0, anyNumber)
    val shift = fields.oneOr("shift", 0.0, anyNumber)
    val (height, width) = fields.one("size", listOf(2..2, whole(1..(1 shl 14))))
    return PictureEncoder(graph, input, mean, deviation, scale, shift, height, width)
}

private fun readSafety(fields: Fields) = Safety(
    fields.one("graph", readName), fields.one("input", readName), fields.one("output", readName),
    fields.one("threshold", anyNumber),
)

private fun readPreview(fields: Fields) = Preview(
    graph = fields.optional("graph", readName),
    input = fields.optional("input", readName),
    output = fields.optional("output", readName),
    weights = fields.optional("weights", listOf(1..64, colour)),
    bias = fields.optional("bias", colour),
)

private fun readFile(fields: Fields) = FileEntry(
    path = fields.one("path", readPath),
    bytes = fields.one("bytes", count),
    sha256 = fields.one("sha256") { value, place ->
        (value as? String)?.takeIf(HASH::matches) ?: place.wrong(value, "64 hexadecimal digits in lower case")
    },
)

/** `denoiser` says where a network in place of the model's own came from: checked, but no runtime needs it. */
private fun readSource(fields: Fields) = Source(
    model = fields.one("model", anyText),
    weights = fields.one("weights", anyText),
    licence = fields.oneOr("licence", "unknown", anyText),
    revision = fields.optional("revision", anyText),
    pipeline = fields.optional("pipeline", anyText),
).also {
    fields.optional("denoiser", record { it.one("folder", anyText) to it.one("weights", anyText) })
}
