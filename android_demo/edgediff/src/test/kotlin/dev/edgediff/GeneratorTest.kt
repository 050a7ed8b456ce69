package dev.edgediff

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.async
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

class GeneratorTest {
    private val case = Programs.case("batched")
    private val engine = StandInEngine(manifest(case))
    private val generator = Generator(session(case, engine))
    private val rows = case["latents"].items.size

    @Test
    fun `events come in order and the picture is the session's`() = runBlocking {
        val events = generator.generate(GenerationRequest("a", seed = 0u) { previewEvery = 2 }).toList()
        assertEquals(
            listOf("Started", "Progress", "Progress", "Preview", "Progress", "Progress", "Completed"),
            events.map { it::class.simpleName },
        )
        val done = assertIs<GenerationEvent.Completed>(events.last())
        val session = session(case)
        assertTrue(session.decode(session.steps("a").last().latent).pixels.contentEquals(done.picture.pixels))
        assertEquals((1..rows).toList(), events.filterIsInstance<GenerationEvent.Progress>().map { it.done })
    }

    @Test
    fun `seed 0 is a seed, and a seed that was picked makes the same picture again`() = runBlocking {
        assertEquals(0uL, completed(0u).seed)
        val picked = completed(null)
        assertTrue(completed(picked.seed).picture.pixels.contentEquals(picked.picture.pixels))
        assertTrue(!completed(0u).picture.pixels.contentEquals(picked.picture.pixels))
    }

    @Test
    fun `cancelled after any event it stops, and the next picture is right`() = runBlocking {
        val whole = generator.generate(GenerationRequest("a")).toList().size
        val want = completed(0u).picture.pixels
        for (count in 1 until whole) {
            val before = engine.calls
            generator.generate(GenerationRequest("a")).take(count).toList()
            assertTrue(engine.calls - before <= count + 3, "$count events took ${engine.calls - before} calls")
            assertTrue(completed(0u).picture.pixels.contentEquals(want))
        }
    }

    @Test
    fun `a cancelled job makes no further call`() = runBlocking {
        val job = launch(start = CoroutineStart.LAZY) { completedEvents() }
        engine.before = { if (it == 4) job.cancel() }
        job.join()
        assertTrue(job.isCancelled)
        assertTrue(engine.calls in 4..5, "${engine.calls} calls")
        engine.before = {}
        assertEquals(rows, completedEvents().filterIsInstance<GenerationEvent.Progress>().size)
    }

    @Test
    fun `out of memory is an event, the graphs are closed, and the generator works again`() = runBlocking {
        engine.before = { if (it == 4) throw OutOfMemoryError("heap") }
        val failed = assertIs<GenerationEvent.Failed>(generator.generate(GenerationRequest("a")).toList().last())
        assertEquals("memory", failed.code)
        assertEquals(0, engine.open)
        engine.before = {}
        completed(0u)
        Unit
    }

    @Test
    fun `a failing graph and a bad prompt are events with the code`() = runBlocking {
        assertEquals("prompt", failure(GenerationRequest("\ud800")).code)
        engine.before = { throw EdgeDiffException("run", "failed") }
        assertEquals("run", failure(GenerationRequest("a")).code)
        assertTrue("graph 'text_encoder'" in failure(GenerationRequest("a")).message)
    }

    @Test
    fun `NaN names its row`() = runBlocking {
        val manifest = manifest(case)
        val broken = Runners(manifest, MemoryMode.KEEP_ALL) { name, _ ->
            object : GraphRunner {
                override fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
                    if (name == "full") outputs.values.forEach { it.put(FloatArray(it.count) { Float.NaN }) }
                }

                override fun close() = Unit
            }
        }
        val session = Session(manifest, manifest.tokenizers.mapValues { letters }, broken)
        val events = Generator(session).generate(GenerationRequest("a")).toList()
        val failed = assertIs<GenerationEvent.Failed>(events.last())
        assertEquals("non_finite", failed.code)
        assertTrue("row 0 (graph 'full'" in failed.message, failed.message)
    }

    @Test
    fun `what the collector throws stays its own`() {
        assertFailsWith<IllegalStateException> {
            runBlocking { generator.generate(GenerationRequest("a")).onEach { error("mine") }.toList() }
        }
    }

    @Test
    fun `odd prompts make pictures`() = runBlocking {
        val rightToLeft = "\u202e\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627"
        for (prompt in listOf("", "a ".repeat(5000), rightToLeft, "\u0000")) {
            assertIs<GenerationEvent.Completed>(generator.generate(GenerationRequest(prompt)).toList().last())
        }
    }

    @Test
    fun `two requests take turns`() = runBlocking {
        val both = List(2) { async { generator.generate(GenerationRequest("a", seed = it.toULong())).toList() } }
        for (events in both) assertIs<GenerationEvent.Completed>(events.await().last())
    }

    @Test
    fun `an engine without the bundle's backend is refused with what there is`() {
        val others = listOf(StandInEngine(manifest(case), "executorch"))
        val error = assertFailsWith<EdgeDiffException> { chooseEngine(manifest(case), others) }
        assertEquals("backend", error.code)
        assertTrue("onnxruntime" in error.message!! && "executorch" in error.message!!)
        assertEquals("backend", codeOf { chooseEngine(manifest(case), listOf(engine), "coreml") })
        assertEquals(engine, chooseEngine(manifest(case), listOf(StandInEngine(manifest(case), "executorch"), engine)))
    }

    private suspend fun completedEvents() = generator.generate(GenerationRequest("a")).toList()

    private suspend fun completed(seed: ULong?) =
        assertIs<GenerationEvent.Completed>(generator.generate(GenerationRequest("a", seed = seed)).toList().last())

    private suspend fun failure(request: GenerationRequest) =
        assertIs<GenerationEvent.Failed>(generator.generate(request).first { it is GenerationEvent.Failed })
}
