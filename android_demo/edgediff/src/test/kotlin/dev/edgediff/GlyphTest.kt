package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.io.TempDir

/** A real bundle on the real ONNX Runtime, against Python's run of it: `tests/kotlin_vectors.py` writes both. */
class GlyphTest {
    private val folder = Path.of(System.getProperty("edgediff.vectors"))
    private val golden = readJson(folder.resolve("glyph.json"))
    private val bundle = ModelBundle.open(folder.resolve("glyph.edgediff"))

    @TempDir
    lateinit var empty: Path

    @Test
    fun `the latent and the picture are Python's`() {
        Session(bundle, OrtEngine(threads = 1)).use { session ->
            for (case in golden["cases"].items) {
                val seed = case["seed"].text.toULong()
                val latent = session.steps(case["prompt"].text, case["negative_prompt"].text, seed).last().latent
                assertClose(case["latent"].doubles, latent, case["prompt"].text, relative = 1e-4)
                val picture = session.decode(latent)
                assertEquals(case["shape"].ints, listOf(picture.height, picture.width, picture.channels))
                val want = case["pixels"].bytes
                val grey = { bytes: ByteArray, at: Int -> bytes[at].toInt() and 0xff }
                val near = want.indices.count { abs(grey(want, it) - grey(picture.pixels, it)) <= 1 }
                assertTrue(near >= 0.999 * want.size, "$near of ${want.size} values within 1 grey level")
            }
        }
    }

    @Test
    fun `odd prompts have Python's ids and make embeddings`() {
        val tokenizer = bundle.tokenizer()!!
        Session(bundle, OrtEngine(threads = 1)).use { session ->
            for (case in golden["ids"].items) {
                val text = case["text"].text
                assertEquals(case["ids"].ints, tokenizer.encode(text, case["max_length"].int).toList(), text.take(40))
                assertEquals(0, session.steps(text).first().index)
            }
        }
    }

    @Test
    fun `cancelled at any step, the engine makes the next picture`() = runBlocking {
        Generator(bundle, OrtEngine(threads = 1), MemoryMode.ONE_COMPONENT).use { generator ->
            val session = Session(bundle, OrtEngine(threads = 1))
            for (count in listOf(1, 3, 17)) assertEquals(count, session.steps("red heart").take(count).count())
            val events = generator.generate(GenerationRequest("red heart")).toList()
            val done = assertIs<GenerationEvent.Completed>(events.last())
            val again = session.decode(session.steps("red heart").last().latent)
            assertTrue(again.pixels.contentEquals(done.picture.pixels))
            session.close()
        }
    }

    @Test
    fun `a profile has every graph and reads itself back`() {
        val engines = listOf(OrtEngine(threads = 1))
        val log = profileBundle(bundle.folder, engines, { DeviceFacts("here", it) }, runs = 1, warmup = 0)
        val program = bundle.manifest.program()
        assertEquals(bundle.manifest.usedGraphs().size, log.graphs.size)
        val calls = log.graphs.filterKeys { it.startsWith("full") || it.startsWith("shallow") }.values.sumOf { it.n }
        assertEquals(program.rows.count { it.graph != null }, calls)
        assertEquals(1, Json(parseJson(log.toJson(), "log"))["end_to_end_ms"]["n"].int)
        assertTrue(log.overheadFraction < 1 && log.load.graphs.keys == log.graphs.keys)
    }

    @Test
    fun `a file that is no graph, and one of another graph, are refused`() {
        val graph = bundle.manifest.graphs.getValue("vae_decoder")
        val artifact = graph.artifacts.getValue("onnxruntime")
        Files.createDirectories(empty.resolve(artifact.file).parent)
        Files.writeString(empty.resolve(artifact.file), "no graph")
        val engine = OrtEngine(threads = 1)
        assertEquals("load", codeOf { engine.open(empty, graph, artifact, 1) })
        assertEquals("load", codeOf { engine.open(empty.resolve("none"), graph, artifact, 1) })
        val other = bundle.manifest.graphs.getValue("text_encoder")
        assertEquals("signature", codeOf { engine.open(bundle.folder, other, artifact, 1) })
        val larger = with(graph) {
            val inputs = inputs.map { TensorSpec(it.name, it.dtype, listOf(1, 4, 99, 99)) }
            Graph(component, inputs, outputs, carriesIn, carriesOut, parameters, macs, artifacts)
        }
        assertEquals("signature", codeOf { engine.open(bundle.folder, larger, artifact, 1) })
    }

    @Test
    fun `a device check follows the sizes of the files`() {
        val sizes = bundle.manifest.componentBytes("onnxruntime")
        assertEquals(setOf("text_encoder", "unet", "vae_decoder"), sizes.keys)
        val roomy = DeviceCheck.of(bundle.manifest, "onnxruntime", 4_000_000_000)
        val largest = DeviceCheck.of(bundle.manifest, "onnxruntime", 0).needBytes
        assertTrue(largest < roomy.needBytes)
        val tight = DeviceCheck.of(bundle.manifest, "onnxruntime", (largest / 0.6).toLong() + 10)
        val hopeless = DeviceCheck.of(bundle.manifest, "onnxruntime", largest)
        assertEquals(listOf(true, true, false), listOf(roomy.fits, tight.fits, hopeless.fits))
        assertEquals(listOf(MemoryMode.KEEP_ALL, MemoryMode.ONE_COMPONENT), listOf(roomy.memory, tight.memory))
        assertTrue("may not fit" in hopeless.sentence)
    }
}
