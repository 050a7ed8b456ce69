package dev.edgediff

import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue

/** Everything that a manifest can say, against what Python makes of it. */
class ProgramsTest {
    @Test
    fun `every program goes where Python goes and ends in its picture`() {
        assertTrue(Programs.cases.size >= 8)
        for (case in Programs.cases) {
            val name = case["name"].text
            val session = session(case)
            val steps = session.steps(request(case)).toList()
            assertEquals(case["latents"].items.size, steps.size, name)
            case["latents"].items.forEachIndexed { index, want ->
                assertClose(want.doubles, sampled(steps[index].latent), "$name row $index", relative = 2e-6)
            }
            val program = case.find("program")?.text
            val picture = session.decode(steps.last().latent, program)
            assertEquals(case["shape"].ints, listOf(picture.height, picture.width, picture.channels), name)
            assertNear(case["pixels"].ints, picture, name)
            assertEquals(case["flagged"].value, picture.isFlagged, name)
            assertNear(case["preview"].ints, session.preview(steps.first().latent, program), "$name preview")
        }
        assertTrue(Programs.cases.map { it["flagged"].value }.toSet().size == 2)
    }

    @Test
    fun `a second picture is the first again, and nothing leaks between them`() {
        for (case in Programs.cases) {
            val session = session(case)
            val (first, other, again) = listOf(3uL, 4uL, 3uL).map { session.steps(request(case, it)).last().latent }
            assertTrue(first.contentEquals(again) && !first.contentEquals(other), case["name"].text)
        }
    }

    @Test
    fun `one component at a time makes the same picture with fewer graphs open`() {
        val case = Programs.case("asked")
        val engine = StandInEngine(manifest(case))
        val session = session(case, engine, MemoryMode.ONE_COMPONENT)
        var most = 0
        val last = session.steps("a").onEach { most = maxOf(most, engine.open) }.last()
        assertEquals(4, most) // full and shallow, at batches 2 and 1
        session.decode(last.latent)
        assertEquals(1, engine.open)
        assertTrue(last.latent.contentEquals(session(case).steps("a").last().latent))
        session.close()
        assertEquals(0, engine.open)
    }

    @Test
    fun `noise that a caller gives stands in for the draw, and the stream goes on without it`() {
        val case = Programs.case("blend")
        val session = session(case)
        val own = session.steps(request(case)).toList()
        val count = own[0].latent.size
        val rng = Rng(6u)
        val posterior = rng.normal(count) // of the picture; then x_0's
        val drawn = rng.normal(count)
        val later = session.steps(request(case) { noise = drawn }).toList()
        assertTrue(posterior.size == count && !later[0].latent.contentEquals(own[0].latent)) // row 0 draws what x_0 would
        assertEquals("noise", codeOf { session.steps(request(case) { noise = FloatArray(3) }) })
        val masked = request(Programs.case("inpaint")) { noise = drawn }
        assertEquals(2, session.steps(masked).toList().size)
    }

    @Test
    fun `what a program does not take, and what it misses, is refused by name`() {
        val text = session(Programs.case("asked"))
        val paint = session(Programs.case("inpaint"))
        val joined = session(Programs.case("joined"))
        val whole = Programs.case("inpaint")
        val black = Picture(16, 16, 1, ByteArray(256) { 127 })
        val cases = listOf<Pair<String, () -> Any?>>(
            "prompt" to { text.steps("\udc00") },
            "negative_prompt" to { text.steps("a", "\udc00") },
            "program" to { text.steps(GenerationRequest { program = "none" }) },
            "strength" to { text.steps(GenerationRequest { strength = 0.5 }) },
            "strength" to { paint.steps(request(whole) { program = "inpaint"; strength = 0.5 }) },
            "guidance" to { text.steps(GenerationRequest { guidanceScale = 21.0 }) },
            "guidance" to { text.steps(GenerationRequest { guidanceScale = Double.NaN }) },
            "guidance" to { joined.steps(GenerationRequest { guidanceScale = 2.5 }) },
            "guidance" to { paint.steps(request(whole) { guidanceScale = 1.0 }) },
            "picture" to { text.steps(GenerationRequest { picture = black }) },
            "picture" to { paint.steps(request(whole) { picture = null }) },
            "picture" to { paint.steps(request(whole) { picture = Picture(8, 16, 3, ByteArray(384)) }) },
            "mask" to { paint.steps(request(whole) { mask = null }) },
            "mask" to { paint.steps(request(whole) { mask = black }) },
            "mask" to { paint.steps(request(whole) { program = "from_picture"; mask = black }) },
            "negative_prompt" to { paint.steps(request(whole) { negativePrompt = "x" }) },
        ) + listOf("bird", "3", "-1", "", "99999999999999999999").map { prompt ->
            "prompt" to { paint.steps(request(whole) { this.prompt = prompt }) }
        }
        cases.forEachIndexed { index, (code, act) -> assertEquals(code, codeOf(act), "case $index") }
    }

    @Test
    fun `a strength finds its program`() {
        val case = Programs.case("from_picture")
        val named = session(case).steps(request(case)).last().latent
        val found = session(case).steps(request(case) { program = null; strength = 0.5 }).last().latent
        assertTrue(named.contentEquals(found))
    }

    @Test
    fun `a carry whose batch is not its first size keeps the prompt's half`() {
        val carry = Carry(DType.FLOAT32, listOf(2, null, 3))
        val carries = Carries(mapOf("mid" to carry), emptyList())
        val value = carries.blank("mid", 2).apply { put(FloatArray(12) { it.toFloat() }) }
        carries.write("mid", value)
        val half = FloatArray(6).also { carries.read("mid", 1, null).get(it) }
        assertEquals(listOf(3f, 4f, 5f, 9f, 10f, 11f), half.toList())
        assertEquals("carry_before_write", codeOf { carries.read("mid", 1, listOf(2.0, -1.0)) })
    }

    @Test
    fun `graphs are named once, in the order of first use`() {
        val manifest = manifest(Programs.case("asked"))
        val ends = listOf("vae" to 1, "safety" to 1, "taesd" to 1)
        val rows = listOf("full" to 2, "shallow" to 2, "shallow" to 1, "full" to 1)
        assertEquals(listOf("text_encoder" to 1) + rows + ends, manifest.usedGraphs())
        assertEquals(listOf("onnxruntime"), manifest.backends())
        assertNull(manifest.programs.getValue("fast").strength)
    }

    private fun assertNear(want: List<Int>, picture: Picture, name: String) {
        val have = picture.pixels.filterIndexed { index, _ -> index % EVERY == 0 }.map { it.toInt() and 0xff }
        assertEquals(want.size, have.size, name)
        assertTrue(want.indices.all { abs(want[it] - have[it]) <= 1 }, "$name: $have, not $want")
    }

    private fun sampled(latent: FloatArray): FloatArray =
        latent.filterIndexed { index, _ -> index % EVERY == 0 }.toFloatArray()
}

private const val EVERY = 17

internal fun manifest(case: Json): Manifest = Manifest.read(writeJson(case["manifest"].value).toByteArray())

internal fun request(
    case: Json, seed: ULong = case["seed"].text.toULong(), more: GenerationRequest.Builder.() -> Unit = {},
) = GenerationRequest(case["prompt"].text, seed) {
    negativePrompt = case["negative_prompt"].text
    program = case.find("program")?.text
    guidanceScale = case.find("guidance")?.double
    picture = case.find("picture")?.let { Picture(16, 16, 3, pixels(it)) }
    mask = case.find("mask")?.let { Picture(16, 16, 1, pixels(it)) }
    more()
}

private fun pixels(json: Json): ByteArray = json.ints.let { values -> ByteArray(values.size) { values[it].toByte() } }

internal fun session(
    case: Json, engine: StandInEngine = StandInEngine(manifest(case)), memory: MemoryMode = MemoryMode.KEEP_ALL,
): Session {
    val manifest = manifest(case)
    return Session(manifest, manifest.tokenizers.mapValues { letters(it.value) }, engine.runners(memory))
}

/** The vocabulary of `make_programs.py`. */
internal fun letters(spec: TokenizerSpec): Tokenizer =
    makeTokenizer(spec, Programs.vocabulary, listOf("b" to "b</w>"), "vocab.json")
