package dev.edgediff.engines

import ai.onnxruntime.providers.NNAPIFlags
import dev.edgediff.EdgeDiffException
import dev.edgediff.ModelBundle
import dev.edgediff.Session
import java.nio.file.Path
import java.util.EnumSet
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

/** On the desktop's ONNX Runtime, whose Java classes are Android's; of its providers only the CPU's is in it. */
class AndroidOrtTest {
    private val bundle = ModelBundle.open(Path.of(System.getProperty("edgediff.vectors"), "glyph.edgediff"))

    @Test
    fun `options follow the manifest's precision`() {
        assertEquals(EnumSet.of(NNAPIFlags.USE_FP16), nnapiFlags("fp16"))
        assertTrue(nnapiFlags("fp32").isEmpty() && nnapiFlags("w8a8").isEmpty())
        assertEquals("1", qnnOptions("fp16", "lib.so")["enable_htp_fp16_precision"])
        assertEquals("0", qnnOptions("fp32", "lib.so")["enable_htp_fp16_precision"])
        assertEquals("3", xnnpackOptions(3)["intra_op_num_threads"])
    }

    @Test
    fun `the CPU's engine runs a bundle`() = Session(bundle, ortEngine(threads = 1)).use { session ->
        assertEquals(0, session.steps("red heart").first().index)
    }

    @Test
    fun `a provider that this build lacks is named`() {
        for (provider in listOf(OrtProvider.XNNPACK, OrtProvider.NNAPI, OrtProvider.QNN)) {
            val error = assertFailsWith<EdgeDiffException> { Session(bundle, ortEngine(provider)).use { it.load() } }
            assertEquals("provider", error.code)
            assertTrue("$provider" in error.message!!, error.message)
        }
    }
}
