package dev.edgediff

import java.text.Normalizer

internal const val MANIFEST = "manifest.json"
internal const val SCHEMA_MAJOR = "1"
private const val VERSION_LENGTH = 16

/** The manifest, parsed and checked. The version comes first: a manifest from the future says so. */
internal fun parseManifest(text: String, where: String): Manifest {
    val document = parseJson(text, where)
    val data = document.root as? Map<*, *> ?: refuse("value", where, "a manifest is an object")
    val version = data["schema_version"] as? String
    if (version == null || version.length > VERSION_LENGTH) {
        refuse("version", where, "schema_version must be a text like '1.0', which every manifest states")
    }
    checkVersion(version, where)
    document.unholdable?.let { refuse("syntax", where, "holds a number or a text that JSON cannot hold ($it)") }
    val manifest = try {
        val fields = Fields(data, where, "")
        readManifest(fields).also { fields.finish() }
    } catch (error: EdgeDiffException) {
        if (error.code != "unknown_key" || version == "$SCHEMA_MAJOR.0") throw error
        val hint = "the manifest is of schema $version, which is newer: update this app"
        throw EdgeDiffException(error.code, "${error.message}; $hint", null, error)
    }
    manifest.check(where)
    checkNames(manifest.files.map { it.path }, where)
    return manifest
}

private fun checkVersion(version: String, where: String) {
    val match = Regex("([0-9]+)[.][0-9]+").matchEntire(version)
    if (match == null || match.groupValues[1].trimStart('0') != SCHEMA_MAJOR) {
        refuse("version", where, "schema_version '$version' cannot be read: this app reads $SCHEMA_MAJOR.x; update it")
    }
}

/** No two paths that are one file where case is ignored; the manifest is not its own entry. */
internal fun checkNames(paths: List<String>, where: String) {
    val seen = HashMap<String, String>()
    for (path in paths) {
        val key = foldCase(path)
        seen[key]?.let {
            refuse("path", where, "'$it' and '$path' are one file where case is ignored; rename one")
        }
        seen[key] = path
    }
    seen[MANIFEST]?.let { refuse("file", where, "lists '$it', but cannot hold its own hash") }
}

private fun foldCase(path: String): String =
    Normalizer.normalize(path, Normalizer.Form.NFC).uppercase().lowercase()

private val KINDS = listOf("text-to-image", "class-to-image", "unconditional-image", "unconditional-audio")
private val PRECISIONS = listOf("fp32", "fp16", "bf16", "w8", "w8a8", "w8a16", "w4", "w4a8")
private val HASH = Regex("[0-9a-f]{64}")

private fun readManifest(fields: Fields) = Manifest(
    schemaVersion = fields.string("schema_version"),
    kind = fields.choice("kind", KINDS),
    name = fields.string("name"),
    carries = fields.objectTable("carries", read = ::readTensor),
    graphs = fields.objectTable("graphs", null, ::readGraph),
    program = fields.one("program", ::readProgram),
    rng = fields.oneOrDefault("rng", "mt19937") { it.choice("kind", RNG_KINDS, RNG_KINDS[0]) },
    files = fields.objects("files", ::readFile),
    source = fields.one("source", ::readSource),
    tools = fields.stringTable("tools"),
    plan = fields.string("plan", "plan.json"),
).also {
    fields.anyObject("parity")
    fields.anyObject("profile")
}

private fun readTensor(fields: Fields): TensorSpec {
    val name = fields.string("name")
    val dtype = fields.choice("dtype", DType.entries.map { it.label })
    return TensorSpec(name, DType.entries.first { it.label == dtype }, fields.sizes("shape"))
}

private fun readGraph(fields: Fields) = Graph(
    component = fields.string("component"),
    inputs = fields.objects("inputs", ::readTensor),
    outputs = fields.objects("outputs", ::readTensor),
    carriesIn = fields.stringTable("carries_in"),
    carriesOut = fields.stringTable("carries_out"),
    parameters = fields.long("parameters", 0),
    macs = fields.long("macs", 0),
    artifacts = fields.objectTable("artifacts", read = ::readArtifact),
)

private fun readArtifact(fields: Fields) = Artifact(
    file = fields.path("file"),
    function = fields.optionalString("function"),
    precision = fields.choice("precision", PRECISIONS),
    data = fields.paths("data"),
    chunks = fields.paths("chunks"),
    states = fields.stringTable("states"),
    delegates = fields.longsTable("delegates"),
    outside = fields.longsTable("outside"),
    memoryBytes = fields.optionalLong("memory_bytes", least = 0),
)

private fun readProgram(fields: Fields) = Program(
    tokenize = fields.optional("tokenize") { Tokenize(it.path("folder"), it.int("length", least = 2)) },
    encode = fields.optional("encode") { Encode(it.string("graph"), it.string("input"), it.string("output")) },
    classes = fields.optional("classes", ::readClasses),
    decode = fields.oneOrDefault("decode", Decode(null, "z", "image", 1.0, 0.0), ::readDecode),
    latent = fields.ints("latent"),
    initScale = fields.double("init_scale"),
    sampler = fields.string("sampler"),
    steps = fields.long("steps"),
    isBatched = fields.choice("mode", listOf("batched", "sequential")) == "batched",
    rows = fields.objects("rows", ::readRow).ifEmpty { fields.wrong("rows", "a list of at least one row") },
)

private fun readClasses(fields: Fields) = Classes(
    fields.string("input", "class_labels"), fields.long("count", least = 1), fields.optionalLong("null"),
    fields.strings("names"),
)

private fun readDecode(fields: Fields) = Decode(
    fields.optionalString("graph"), fields.string("input", "z"), fields.string("output", "image"),
    fields.double("scale", 1.0), fields.double("shift", 0.0), fields.optionalLong("sample_rate", least = 1),
)

private fun readRow(fields: Fields) = Row(
    timestep = fields.double("timestep"),
    inputScale = fields.double("input_scale", 1.0),
    update = fields.one("update", ::readUpdate),
    graph = fields.optionalString("graph"),
    guidance = fields.optionalDouble("guidance"),
    heldGuidance = fields.optionalDoubles("held_guidance"),
    mix = fields.doublesTable("mix"),
)

internal fun readUpdate(fields: Fields) = Update(
    x = fields.doubles("x"),
    e = fields.doubles("e"),
    noise = fields.double("noise", 0.0),
    clip = fields.optional("clip") { Clip(it.double("x"), it.double("e"), it.double("limit"), it.double("weight")) },
)

private fun readFile(fields: Fields): FileEntry {
    val entry = FileEntry(fields.path("path"), fields.long("bytes", least = 0), fields.string("sha256"))
    if (!HASH.matches(entry.sha256)) fields.wrong("sha256", "64 hexadecimal digits in lower case")
    return entry
}

/** `denoiser` says where a network in place of the model's own came from: checked, but no runtime needs it. */
private fun readSource(fields: Fields): Source {
    fields.optional("denoiser") { it.string("folder") to it.string("weights") }
    return Source(
        fields.string("model"), fields.optionalString("revision"), fields.string("weights"),
        fields.string("licence", "unknown"),
    )
}
