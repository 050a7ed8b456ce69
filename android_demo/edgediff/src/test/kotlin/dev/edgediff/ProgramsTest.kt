package dev.edgediff

import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** Everything that a manifest can say, against what Python makes of it: `tests/program_cases.py`. */
class ProgramsTest {
    @Test
    fun `every program goes where Python goes and ends in its picture`() {
        assertTrue(Programs.cases.size >= 40)
        for (case in Programs.cases) {
            val name = case["name"].text
            val session = session(case)
            val steps = session.steps(request(case)).toList()
            assertEquals(case["latents"].items.size, steps.size, name)
            case["latents"].items.forEachIndexed { index, want ->
                assertClose(want.doubles, sampled(steps[index].latent), "$name row $index")
            }
            val program = case["program"].text
            val picture = session.decode(steps.last().latent, program)
            assertEquals(case["shape"].ints, listOf(picture.height, picture.width, picture.channels), name)
            assertNear(case["pixels"].ints, picture, name)
            assertEquals(case["flagged"].value, picture.isFlagged, name)
            assertNear(case["preview"].ints, session.preview(steps.first().latent, program), "$name preview")
        }
        assertEquals(2, Programs.cases.map { it["flagged"].value }.toSet().size)
    }

    @Test
    fun `a second picture is the first again, and nothing leaks between them`() {
        for (case in Programs.cases.filter { it["noise"].value == null }) {
            val session = session(case)
            val (first, other, again) = listOf(3uL, 4uL, 3uL).map { session.steps(request(case, it)).last().latent }
            assertTrue(first.contentEquals(again), case["name"].text)
            val draws = case["name"].text != "picture_without_noise"
            assertTrue(!draws || !first.contentEquals(other), case["name"].text)
        }
    }

    @Test
    fun `one component at a time makes the same picture with fewer graphs open`() {
        val case = Programs.case("batched")
        val engine = StandInEngine(manifest(case))
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
    fun `what a program does not take, and what it misses, is refused by name`() {
        val whole = Programs.case("masked_picture")
        val refused = { case: String, code: String, more: GenerationRequest.Builder.() -> Unit ->
            val found = Programs.case(case)
            assertEquals(code, codeOf { session(found).steps(request(found, more = more)) }, "$case: $code")
        }
        val black = Picture(16, 16, 1, ByteArray(256) { 127 })
        refused("batched", "prompt") { prompt = "\udc00" }
        refused("batched", "negative_prompt") { negativePrompt = "\udc00" }
        refused("unguided", "negative_prompt") { negativePrompt = "b" }
        refused("no_prompt", "prompt") { prompt = "a" }
        refused("batched", "program") { program = "none" }
        refused("batched", "strength") { program = null; strength = 0.5 }
        refused("batched", "strength") { strength = 0.5 }
        refused("batched", "noise") { noise = FloatArray(3) }
        refused("batched", "picture") { picture = black }
        refused("guidance_asked", "guidance") { guidanceScale = 9.5 }
        refused("guidance_asked", "guidance") { guidanceScale = Double.NaN }
        refused("embedded_guidance", "guidance") { guidanceScale = 0.5 }
        refused("batched", "mask") { mask = black }
        refused("masked_picture", "picture") { picture = null }
        refused("masked_picture", "picture") { picture = Picture(8, 16, 3, ByteArray(384)) }
        refused("masked_picture", "mask") { mask = null }
        refused("masked_picture", "mask") { mask = black }
        for (word in listOf("three", "10", "-1", "", "99999999999999999999")) {
            refused("classes_by_name", "prompt") { prompt = word }
        }
        refused("classes_by_name", "negative_prompt") { negativePrompt = "number 2" }
        assertEquals("no error", codeOf { session(whole).steps(request(whole)) })
    }

    @Test
    fun `a strength finds its program`() {
        val tree = Programs.case("picture_mean")["manifest"].value as JsonObject
        ((tree["programs"] as JsonObject)["main"] as JsonObject)["strength"] = 0.75
        val manifest = Manifest.read(writeJson(tree).toByteArray())
        val found = Asked(manifest, request(Programs.case("picture_mean")) { program = null; strength = 0.75 })
        assertEquals(manifest.programs["main"], found.program)
    }

    @Test
    fun `a sound is made of samples`() {
        val sound = Sound.of(floatArrayOf(0f, 1f, -2f, 0.5f, -0.5f, 0.25f), 2, 16_000)
        assertEquals(listOf<Short>(0, 16384, 32767, -16384, -32767, 8192), sound.samples.toList())
        assertEquals(44 + 12, sound.wav().size)
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

    private fun assertNear(want: List<Int>, picture: Picture, name: String) {
        val have = picture.pixels.filterIndexed { index, _ -> index % EVERY == 0 }.map { it.toInt() and 0xff }
        assertEquals(want.size, have.size, name)
        assertTrue(want.indices.all { abs(want[it] - have[it]) <= 1 }, "$name: $have, not $want")
    }

    private fun sampled(latent: FloatArray): FloatArray =
        latent.filterIndexed { index, _ -> index % EVERY == 0 }.toFloatArray()
}

private const val EVERY = 17
private const val SIZE = 16 // of pictures

internal object Programs {
    val cases: List<Json> = Golden.read("programs.json")["cases"].items

    fun case(name: String): Json = cases.single { it["name"].text == name }
}

internal fun manifest(case: Json): Manifest = Manifest.read(writeJson(case["manifest"].value).toByteArray())

internal fun request(
    case: Json, seed: ULong = case["seed"].text.toULong(), more: GenerationRequest.Builder.() -> Unit = {},
) = GenerationRequest(case["prompt"].text, seed) {
    negativePrompt = case["negative_prompt"].text
    program = case["program"].text
    guidanceScale = case.find("guidance")?.double
    picture = case.find("picture")?.let { Picture(SIZE, SIZE, 3, pixels(it)) }
    mask = case.find("mask")?.let { Picture(SIZE, SIZE, 1, pixels(it)) }
    noise = case.find("noise")?.doubles?.map { it.toFloat() }?.toFloatArray()
    more()
}

private fun pixels(json: Json): ByteArray = json.ints.let { values -> ByteArray(values.size) { values[it].toByte() } }

internal fun session(
    case: Json, engine: StandInEngine = StandInEngine(manifest(case)), memory: MemoryMode = MemoryMode.KEEP_ALL,
): Session {
    val manifest = manifest(case)
    return Session(manifest, manifest.tokenizers.mapValues { letters }, engine.runners(memory))
}

/** The hostile bundle's vocabulary: `a`, begin, end. */
internal val letters: Tokenizer = mapOf("a</w>" to 0, "<|startoftext|>" to 1, "<|endoftext|>" to 2).let {
    Tokenizer(1, 2, 2, BytePairs(it, emptyList(), 2), AddedTokens(emptyList()))
}
