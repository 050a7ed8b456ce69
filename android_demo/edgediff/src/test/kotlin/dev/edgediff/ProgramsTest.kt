package dev.edgediff

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlin.math.abs

/** Everything that a manifest can say, against what Python makes of it: `tests/program_cases.py`. */
class ProgramsTest {
    private val cases = Golden.read("programs.json")["cases"].items

    @Test
    fun `every program goes where Python goes and ends in its picture`() {
        assertTrue(cases.size >= 15)
        for (case in cases) {
            val name = case["name"].text
            val session = session(case)
            val seed = case["seed"].text.toULong()
            val steps = session.steps(case["prompt"].text, case["negative_prompt"].text, seed).toList()
            assertEquals(case["latents"].items.size, steps.size, name)
            case["latents"].items.forEachIndexed { index, want ->
                assertClose(want.doubles, sampled(steps[index].latent), "$name row $index")
            }
            val picture = session.decode(steps.last().latent)
            assertEquals(case["shape"].ints, listOf(picture.height, picture.width, picture.channels), name)
            val want = case["pixels"].ints
            val have = picture.pixels.filterIndexed { index, _ -> index % EVERY == 0 }.map { it.toInt() and 0xff }
            assertEquals(want.size, have.size, name)
            assertTrue(want.indices.all { abs(want[it] - have[it]) <= 1 }, "$name: $have, not $want")
        }
    }

    @Test
    fun `a second picture is the first again, and nothing leaks between them`() {
        for (case in cases) {
            val session = session(case)
            val prompt = case["prompt"].text
            val (first, other, again) = listOf(3uL, 4uL, 3uL).map { session.steps(prompt, seed = it).last().latent }
            assertTrue(first.contentEquals(again) && !first.contentEquals(other), case["name"].text)
        }
    }

    @Test
    fun `one component at a time makes the same picture with fewer graphs open`() {
        val case = cases[0]
        val engine = StandInEngine()
        val session = session(case, engine, MemoryMode.ONE_COMPONENT)
        var most = 0
        val last = session.steps("a").onEach { most = maxOf(most, engine.open) }.last()
        assertEquals(3, most) // full at batch 2; shallow at batches 2 and 1
        session.decode(last.latent)
        assertEquals(1, engine.open)
        assertTrue(last.latent.contentEquals(session(case).steps("a").last().latent))
        session.close()
        assertEquals(0, engine.open)
    }

    @Test
    fun `what has no effect or no meaning is refused`() {
        val plain = session(cases.first { it["name"].text == "batched" })
        val alone = session(cases.first { it["name"].text == "unguided" })
        val classes = session(cases.first { it["name"].text == "classes_by_name" })
        val none = session(cases.first { it["name"].text == "no_prompt" })
        assertEquals("text", codeOf { plain.steps("\udc00") })
        assertEquals("negative_prompt", codeOf { alone.steps("a", "b") })
        assertEquals("prompt", codeOf { none.steps("a") })
        for (prompt in listOf("three", "10", "-1", "", "99999999999999999999")) {
            assertEquals("prompt", codeOf { classes.steps(prompt) }, prompt)
        }
        assertEquals("prompt", codeOf { classes.steps("one", "two") })
    }

    @Test
    fun `a graph input that nothing feeds is refused`() {
        val manifest = manifest(cases[0])
        val extra = TensorSpec("added_time_ids", DType.INT64, listOf(6))
        val odd = manifest.graphs.getValue("full").let { it.copy(inputs = it.inputs + extra) }
        val broken = manifest.copy(graphs = manifest.graphs + ("full" to odd))
        assertEquals("tensor", codeOf { Session(broken, null, StandInEngine().runners(broken)) })
        val textless = manifest.copy(program = manifest.program.copy(encode = null))
        assertEquals("graph", codeOf { Session(textless, null, StandInEngine().runners(textless)) })
    }

    @Test
    fun `a carry whose batch is not its first size keeps the prompt's half`() {
        val manifest = manifest(cases[0])
        val carry = TensorSpec("mid", DType.FLOAT32, listOf(2, null, 3))
        val carries = Carries(manifest.copy(carries = mapOf("mid" to carry)))
        val value = carries.blank("mid", 2).apply { put(FloatArray(12) { it.toFloat() }) }
        carries.write("mid", value)
        val half = FloatArray(6).also { carries.read("mid", 1, null).get(it) }
        assertEquals(listOf(3f, 4f, 5f, 9f, 10f, 11f), half.toList())
        assertEquals("carry_before_write", codeOf { carries.read("mid", 1, listOf(2.0, -1.0)) })
    }

    private fun sampled(latent: FloatArray): FloatArray =
        latent.filterIndexed { index, _ -> index % EVERY == 0 }.toFloatArray()
}

private const val EVERY = 17

internal fun manifest(case: Json): Manifest = parseManifest(writeJson(case["manifest"].value), case["name"].text)

internal fun session(
    case: Json, engine: StandInEngine = StandInEngine(), memory: MemoryMode = MemoryMode.KEEP_ALL,
): Session {
    val manifest = manifest(case)
    return Session(manifest, letters, engine.runners(manifest, memory))
}

/** The hostile bundle's vocabulary: `a`, begin, end. */
internal val letters: Tokenizer = mapOf("a</w>" to 0, "<|startoftext|>" to 1, "<|endoftext|>" to 2).let {
    Tokenizer(1, 2, 2, BytePairs(it, emptyList(), 2), AddedTokens(emptyList()))
}
