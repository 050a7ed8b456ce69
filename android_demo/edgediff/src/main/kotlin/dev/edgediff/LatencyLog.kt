package dev.edgediff

import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.roundToLong

/** The device and its state before the run. Null: not readable there, or does not apply. */
public data class DeviceFacts(
    val name: String, val backend: String, val cpu: String? = null, val cores: Int? = null, val threads: Int? = null,
    val os: String? = null, val governor: String? = null, val loadAverage: Double? = null, val memoryGb: Double? = null,
    val runtime: String? = null,
)

/** Milliseconds to make the bundle ready; cold is the first time in a fresh process. */
public data class LoadTimes(
    val cold: Double? = null, val warm: Double? = null, val hashing: Double? = null,
    val graphs: Map<String, Double> = emptyMap(), val cacheDropped: Boolean? = null,
)

/** p50, p90 and p95 of milliseconds, interpolated linearly between order statistics, to 4 digits; n samples. */
public class Percentiles private constructor(
    public val p50: Double, public val p90: Double, public val p95: Double, public val n: Int,
) {
    public companion object {
        /** Raises `samples` for none, and for values that are not finite. */
        public fun of(samples: List<Double>): Percentiles {
            if (samples.isEmpty() || samples.any { !it.isFinite() }) {
                refuse("samples", null, "percentiles need at least one sample, all of them finite numbers")
            }
            val sorted = samples.sorted()
            return Percentiles(at(sorted, 0.50), at(sorted, 0.90), at(sorted, 0.95), samples.size)
        }

        private fun at(sorted: List<Double>, share: Double): Double {
            val place = share * (sorted.size - 1)
            val low = sorted[floor(place).toInt()]
            val high = sorted[ceil(place).toInt()]
            return rounded(low + (high - low) * (place - floor(place)), 4)
        }
    }
}

/**
 * What a bundle takes on a device, as Python's `LatencyTable` has it: `edgediff` reads the JSON of [toJson]. Memory in
 * MB (10^6 bytes).
 */
public class LatencyLog(
    public val device: DeviceFacts,
    public val load: LoadTimes,
    public val graphMillis: Map<String, List<Double>>,
    public val imageMillis: List<Double>,
    public val warmup: Int,
    public val firstRunMillis: Double?,
    public val peakRssMb: Double? = null,
    public val baseRssMb: Double? = null,
    public val bundle: String? = null,
    public val measuredAt: String? = null,
) {
    /** From prompt to picture. */
    public val image: Percentiles = Percentiles.of(imageMillis)

    /** Of one call of each graph. */
    public val graphs: Map<String, Percentiles> = graphMillis.mapValues { Percentiles.of(it.value) }

    /** The part of an image's time that is spent outside the graphs. */
    public val overheadFraction: Double =
        rounded(maxOf(0.0, 1.0 - graphMillis.values.sumOf { it.sum() } / imageMillis.sum()), 5)

    /** Canonical JSON. */
    public fun toJson(): String = writeJson(
        withoutNulls(
            "source" to "measured", "device" to deviceTable(), "load_ms" to loadTable(),
            "graphs" to graphs.mapValues { (_, p) ->
                mapOf("p50_ms" to p.p50, "p90_ms" to p.p90, "p95_ms" to p.p95, "n" to p.n)
            },
            "end_to_end_ms" to mapOf("p50" to image.p50, "p90" to image.p90, "p95" to image.p95, "n" to image.n),
            "first_run_ms" to firstRunMillis, "warmup" to warmup, "overhead_fraction" to overheadFraction,
            "peak_rss_mb" to peakRssMb, "base_rss_mb" to baseRssMb, "measured_at" to measuredAt, "bundle" to bundle,
            "samples" to mapOf("end_to_end_ms" to imageMillis, "graphs" to graphMillis),
        ),
    )

    private fun deviceTable() = withoutNulls(
        "name" to device.name, "backend" to device.backend, "cpu" to device.cpu, "cores" to device.cores,
        "threads" to device.threads, "os" to device.os, "governor" to device.governor,
        "load_average" to device.loadAverage, "memory_gb" to device.memoryGb, "runtime" to device.runtime,
    )

    private fun loadTable() = withoutNulls(
        "cold" to load.cold, "warm" to load.warm, "hashing" to load.hashing, "graphs" to load.graphs,
        "cache_dropped" to load.cacheDropped,
    )
}

private fun withoutNulls(vararg pairs: Pair<String, Any?>): Map<String, Any?> =
    pairs.filter { it.second != null }.toMap()

internal fun rounded(value: Double, digits: Int): Double {
    var scale = 1.0
    repeat(digits) { scale *= 10.0 }
    return (value * scale).roundToLong() / scale
}
