package dev.edgediff

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.nio.file.Path

/**
 * Graphs on ONNX Runtime's Java API, which is one and the same on the JVM and on Android. [threads] 0 leaves the
 * number to ONNX Runtime (one per core). [configure] may register execution providers before a graph is loaded.
 */
public class OrtEngine(
    private val threads: Int = 0,
    private val configure: (OrtSession.SessionOptions, Artifact) -> Unit = { _, _ -> },
) : Engine {
    override val backend: String get() = "onnxruntime"

    override fun open(folder: Path, graph: Graph, artifact: Artifact, batch: Int): GraphRunner {
        val file = folder.resolve(artifact.file)
        val session = guarding("load", "ONNX Runtime cannot load it", file.toString()) {
            OrtSession.SessionOptions().use { options ->
                options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR)
                options.setIntraOpNumThreads(threads)
                options.setSymbolicDimensionValue("batch", batch.toLong())
                configure(options, artifact)
                OrtEnvironment.getEnvironment().createSession(file.toString(), options)
            }
        }
        try {
            checkEnds(session.inputInfo.mapValues { it.value.info }, graph.inputs, batch, file)
            checkEnds(session.outputInfo.mapValues { it.value.info }, graph.outputs, batch, file)
        } catch (error: EdgeDiffException) {
            session.close()
            throw error
        }
        return OrtRunner(session, file.toString())
    }

    private fun checkEnds(found: Map<String, Any>, specs: List<TensorSpec>, batch: Int, file: Path) {
        val fits = found.size == specs.size && specs.all { spec ->
            val info = found[spec.name] as? TensorInfo
            info != null && info.type == spec.dtype.ortType && fitsSizes(info.shape, spec.sized(batch))
        }
        if (!fits) {
            val have = found.map { (name, info) -> "$name: $info" }
            refuse("signature", file.toString(), "holds $have where the manifest says $specs; build the bundle again")
        }
    }

    private fun fitsSizes(have: LongArray, want: List<Int>): Boolean =
        have.size == want.size && have.indices.all { have[it] < 0 || have[it] == want[it].toLong() }
}

private val DType.ortType: OnnxJavaType
    get() = when (this) {
        DType.FLOAT32 -> OnnxJavaType.FLOAT
        DType.FLOAT16 -> OnnxJavaType.FLOAT16
        DType.INT64 -> OnnxJavaType.INT64
        DType.INT32 -> OnnxJavaType.INT32
    }

/** One session. Tensors are wrapped where they lie: nothing is copied on the way in or out. */
private class OrtRunner(private val session: OrtSession, private val file: String) : GraphRunner {
    override fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) =
        guarding("run", "ONNX Runtime failed", file) {
            val wrapped = ArrayList<OnnxTensor>(inputs.size + outputs.size)
            try {
                val ins = inputs.mapValues { wrap(it.value).also(wrapped::add) }
                val outs = outputs.mapValues { wrap(it.value).also(wrapped::add) }
                session.run(ins, outs).close()
            } finally {
                wrapped.forEach { it.close() }
            }
        }

    private fun wrap(tensor: Tensor): OnnxTensor {
        val environment = OrtEnvironment.getEnvironment()
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        return when (tensor.dtype) {
            DType.FLOAT32 -> OnnxTensor.createTensor(environment, tensor.floats(), shape)
            DType.FLOAT16 -> OnnxTensor.createTensor(environment, tensor.halves(), shape, OnnxJavaType.FLOAT16)
            DType.INT64 -> OnnxTensor.createTensor(environment, tensor.longs(), shape)
            DType.INT32 -> OnnxTensor.createTensor(environment, tensor.ints(), shape)
        }
    }

    override fun close() = session.close()
}

private inline fun <T> guarding(code: String, what: String, where: String, act: () -> T): T = try {
    act()
} catch (error: OrtException) {
    val text = error.message.orEmpty().lineSequence().first()
    val isMemory = MEMORY.any { it in text }
    throw EdgeDiffException(if (isMemory) "memory" else code, "$what: $text", where, error)
} catch (error: UnsatisfiedLinkError) {
    val message = "ONNX Runtime has no build for this system: ${error.message}"
    throw EdgeDiffException("missing_library", message, where, error)
}

private val MEMORY = listOf("bad_alloc", "Failed to allocate memory", "bad allocation")
