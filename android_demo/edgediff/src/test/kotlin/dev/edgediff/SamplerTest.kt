package dev.edgediff

import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class SamplerTest {
    private val cases = Golden.read("steps.json")["cases"].items

    /** Golden latents are float64, ours float32: it rounds to 1e-6 of the largest value that a trajectory has held. */
    @Test
    fun `every step table goes where Python goes`() {
        assertTrue(cases.size >= 19)
        for (case in cases) {
            val rows = case["table"]["rows"].items.map(::rowOf)
            val holds = case["holds"].ints.toSet()
            val size = case["shape"].ints.fold(1, Int::times)
            val rng = Rng(case["seed"].long.toULong())
            val scale = case["table"]["init_scale"].double.toFloat()
            val start = rng.normal(size).also { for (i in it.indices) it[i] *= scale }
            val predict = Predict { index, row, latent -> if (index in holds) null else network(row, latent) }
            val steps = runRows(rows, start, predict, { rng.normal(size) }).toList()
            val largest = start.maxOf { abs(it) }.toDouble()
            case["latents"].items.forEachIndexed { index, want ->
                assertClose(want.doubles, steps[index].latent, "${case["name"].text} row $index", largest)
            }
            assertEquals(rows.size, steps.size)
        }
    }

    @Test
    fun `a row is computed when it is asked for`() {
        val rows = cases[0]["table"]["rows"].items.map(::rowOf)
        var calls = 0
        val predict = Predict { _, _, latent -> latent.also { calls++ } }
        runRows(rows, FloatArray(4), predict, { FloatArray(4) }).take(3).last()
        assertEquals(3, calls)
    }

    @Test
    fun `holding before anything was computed is refused`() {
        val row = Row(0.0, 1.0, Update(listOf(1.0), listOf(1.0)), null, null, null, emptyMap(), null)
        val steps = runRows(listOf(row), FloatArray(1), { _, _, _ -> null }, { FloatArray(1) })
        assertEquals("carry_before_write", codeOf { steps.toList() })
    }

    private fun network(row: Row, latent: FloatArray) = FloatArray(latent.size) {
        val s = latent[it].toDouble()
        (s / (1 + abs(s)) + row.timestep / 4000).toFloat()
    }

    private fun rowOf(json: Json): Row = record(::readRow)(json.value, Place("steps.json", isNewer = false))
}

internal fun assertClose(
    want: List<Double>, have: FloatArray, what: String, held: Double = 0.0, relative: Double = 1e-6,
) {
    assertEquals(want.size, have.size, what)
    val largest = maxOf(held, want.maxOf { abs(it) })
    for (i in want.indices) {
        assertTrue(abs(want[i] - have[i]) <= relative * largest, "$what: element $i is ${have[i]}, not ${want[i]}")
    }
}
