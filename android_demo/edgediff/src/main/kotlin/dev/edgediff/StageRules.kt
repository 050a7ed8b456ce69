package dev.edgediff

/** Rules 8 to 10: what decodes, encodes pictures, checks and previews. */
internal class StageRules(private val manifest: Manifest, private val rules: Rules) {
    fun check() {
        val decoded = checkDecoder(manifest.decoder)
        val picture = manifest.picture
        val (read, mean) = picture?.let { stage(it.graph, it.input, it.mean) } ?: (null to null)
        val deviation = picture?.deviation?.let {
            rules.tensor(picture.graph, manifest.graphs.getValue(picture.graph).outputs, it)
        }
        val seen = manifest.safety?.let { stage(it.graph, it.input, it.output).first }
        manifest.preview?.let(::checkPreview)
        if (picture != null && read != null) {
            val wanted = listOf(3, picture.height, picture.width)
            if (!read.dtype.isFloat || !isBatch(read.shape) || read.shape.drop(1) != wanted) {
                rules.fail("shape", "$read of graph '${picture.graph}': a picture is ${spelled(listOf(1) + wanted)}")
            }
            if (deviation != null && deviation.shape != mean?.shape) {
                rules.fail("shape", "mean and deviation of graph '${picture.graph}' differ in shape")
            }
        }
        if (seen != null && (decoded == null || decoded.shape.drop(1) != seen.shape.drop(1))) {
            rules.fail("shape", "the safety checker reads $seen, which is not what is decoded")
        }
    }

    /** What the decoder's graph puts out; null without one. */
    private fun checkDecoder(decoder: Decoder): TensorSpec? {
        val (graph, input, output) = listOf(decoder.graph, decoder.input, decoder.output)
        val isWhole = graph != null && input != null && output != null
        if (!isWhole && (graph != null || input != null || output != null)) {
            rules.fail("decoder", "the decoder has a graph, its input and its output, or none of them")
        }
        val decoded = if (graph != null && input != null && output != null) stage(graph, input, output).second else null
        if ((manifest.makes == "audio") != (decoder.sampleRate != null)) {
            rules.fail("decoder", "decoder.sample_rate is there if the bundle makes audio, and only then")
        }
        return decoded
    }

    private fun checkPreview(preview: Preview) {
        val byGraph = listOf(preview.graph, preview.input, preview.output)
        val linear = listOf(preview.weights, preview.bias)
        val isGraph = byGraph.all { it != null } && linear.all { it == null }
        val isLinear = byGraph.all { it == null } && linear.all { it != null }
        if (!isGraph && !isLinear) {
            rules.fail("preview", "a preview has a graph with its input and output, or weights with a bias, not both")
        }
        if (preview.graph != null && preview.input != null && preview.output != null) {
            stage(preview.graph, preview.input, preview.output)
        }
    }

    /** The one input of a stage's graph, and the output that is asked for. */
    private fun stage(name: String, input: String, output: String): Pair<TensorSpec, TensorSpec> {
        val graph = rules.graph(name)
        val found = rules.tensor(name, graph.inputs, input) to rules.tensor(name, graph.outputs, output)
        graph.inputs.firstOrNull { it.name != input }?.let {
            rules.fail("tensor", "graph '$name' reads '${it.name}', which nothing feeds")
        }
        return found
    }
}
