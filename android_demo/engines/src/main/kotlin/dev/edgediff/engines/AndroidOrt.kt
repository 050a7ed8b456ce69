package dev.edgediff.engines

import ai.onnxruntime.OrtSession
import ai.onnxruntime.providers.NNAPIFlags
import dev.edgediff.EdgeDiffException
import dev.edgediff.OrtEngine
import java.util.EnumSet

/** What runs a graph's operators in ONNX Runtime on a phone; the CPU takes those that a provider does not know. */
public enum class OrtProvider { CPU, XNNPACK, NNAPI, QNN }

/**
 * ONNX Runtime with a provider's options from what the manifest says of a graph: an fp16 graph lets NNAPI and QNN
 * compute in half precision, an fp32 graph does not, and a w8a8 graph is handed over as it is. [qnnLibrary] is the
 * HTP library that `onnxruntime-android-qnn` brings. Raises `provider` when this build of ONNX Runtime lacks it.
 */
public fun ortEngine(
    provider: OrtProvider = OrtProvider.CPU, threads: Int = 0, qnnLibrary: String = "libQnnHtp.so",
): OrtEngine = OrtEngine(threads) { options, artifact ->
    try {
        when (provider) {
            OrtProvider.CPU -> Unit
            OrtProvider.XNNPACK -> options.addXnnpack(xnnpackOptions(threads))
            OrtProvider.NNAPI -> options.addNnapi(nnapiFlags(artifact.precision))
            OrtProvider.QNN -> options.addQnn(qnnOptions(artifact.precision, qnnLibrary))
        }
    } catch (error: ai.onnxruntime.OrtException) {
        val hint = "choose another provider, or the artifact of ONNX Runtime that has it"
        throw EdgeDiffException("provider", "this ONNX Runtime has no $provider (${error.message}); $hint", null, error)
    }
    if (provider == OrtProvider.XNNPACK) options.leaveThreadsToXnnpack()
}

/** XNNPACK has threads of its own, and ONNX Runtime's would spin beside them. */
private fun OrtSession.SessionOptions.leaveThreadsToXnnpack() {
    setIntraOpNumThreads(1)
    addConfigEntry("session.intra_op.allow_spinning", "0")
}

internal fun xnnpackOptions(threads: Int): Map<String, String> = mapOf(
    "intra_op_num_threads" to (if (threads > 0) threads else Runtime.getRuntime().availableProcessors()).toString(),
)

internal fun nnapiFlags(precision: String): EnumSet<NNAPIFlags> =
    if (precision == "fp16") EnumSet.of(NNAPIFlags.USE_FP16) else EnumSet.noneOf(NNAPIFlags::class.java)

internal fun qnnOptions(precision: String, library: String): Map<String, String> = mapOf(
    "backend_path" to library, "htp_performance_mode" to "burst", "htp_graph_finalization_optimization_mode" to "3",
    "enable_htp_fp16_precision" to if (precision == "fp16") "1" else "0",
)
