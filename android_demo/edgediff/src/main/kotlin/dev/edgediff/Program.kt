package dev.edgediff

/** The one non-linear op: adds weight * clamp(x * x_i + e * e_i, -limit, limit). */
internal class Clip(val x: Double, val e: Double, val limit: Double, val weight: Double)

/** Coefficients of x_{i+1}; index k reaches k network calls back. */
internal class Update(val x: List<Double>, val e: List<Double>, val noise: Double = 0.0, val clip: Clip? = null)

/** A row's guidance: [fixed], or null for what the caller asks. */
internal class RowGuidance(private val fixed: Double?) {
    val isAsked: Boolean get() = fixed == null

    fun at(asked: Double?): Double = fixed ?: checkNotNull(asked)
}

/** Weights of the differences that guided rows left, the newest first; times s - 1 where [isTimesScale]. */
internal class Held(val weights: List<Double>, val isTimesScale: Boolean)

/** Outside the mask: picture * y + noise * z_0. */
internal class Blend(val picture: Double, val noise: Double)

/**
 * One network call. [graph] null holds the last output; [guidance] null runs the prompt side alone. A carry that the
 * graph reads is sum_k mix[carry][k] * (its value k writes ago); one not in [mix] is its newest value.
 */
public class Row internal constructor(
    public val timestep: Double, internal val inputScale: Double, internal val update: Update,
    public val graph: String?, internal val guidance: RowGuidance?, internal val held: Held?,
    internal val mix: Map<String, List<Double>>, internal val blend: Blend?,
) {
    /** Whether it runs both sides. */
    public val isGuided: Boolean get() = guidance != null
}

/** A guidance scale: what counts when nothing is asked, and the range that a caller may ask for. */
public class Scale internal constructor(public val scale: Double, public val low: Double, public val high: Double)

/**
 * What one picture is: how it starts, and one row per network call. [takes]: `prompt`, `negative_prompt`, `picture`,
 * `mask`. [strength] is that of a program that starts from a picture. [latent] is the shape without batch, [steps] are
 * counted as a person does.
 */
public class Program internal constructor(
    public val takes: List<String>, public val strength: Double?, public val latent: List<Int>,
    internal val initNoise: Double, internal val initPicture: Double, public val sampler: String,
    public val steps: Int, internal val isBatched: Boolean, public val guidance: Scale?,
    public val embeddedGuidance: Scale?, public val rows: List<Row>,
) {
    /** Whether any row runs both sides. */
    public val isGuided: Boolean get() = rows.any { it.isGuided }

    /** Graphs that the rows run, in the order of first use. */
    internal val graphNames: Set<String> by lazy { rows.mapNotNullTo(LinkedHashSet()) { it.graph } }

    internal val blends: Boolean get() = rows.any { it.blend != null }
}
