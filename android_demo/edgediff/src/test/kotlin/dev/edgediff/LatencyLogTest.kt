package dev.edgediff

import kotlin.test.Test
import kotlin.test.assertEquals

class LatencyLogTest {
    @Test
    fun `the JSON is the table that Python makes of the same samples`() {
        val table = Golden.read("latency.json")["table"]
        val device = table["device"]
        val load = table["load_ms"]
        val log = LatencyLog(
            DeviceFacts(
                device["name"].text, device["backend"].text, cores = device["cores"].int, os = device["os"].text,
                memoryGb = device["memory_gb"].double,
            ),
            LoadTimes(load["cold"].double, load["warm"].double, load["hashing"].double, mapOf("full@2" to 250.125)),
            table["samples"]["graphs"].entries.mapValues { it.value.doubles },
            table["samples"]["end_to_end_ms"].doubles,
            warmup = 1, firstRunMillis = table["first_run_ms"].double, peakRssMb = table["peak_rss_mb"].double,
            baseRssMb = table["base_rss_mb"].double, bundle = "glyph", measuredAt = table["measured_at"].text,
        )
        val mine = plain(parseJson(log.toJson(), "mine"))
        assertEquals(plain(table.value), mine)
    }

    @Test
    fun `no sample and a sample that is no number are refused`() {
        assertEquals("samples", codeOf { Percentiles.of(emptyList()) })
        assertEquals("samples", codeOf { Percentiles.of(listOf(1.0, Double.NaN)) })
    }
}
