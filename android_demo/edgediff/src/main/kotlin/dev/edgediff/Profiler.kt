package dev.edgediff

import java.io.File
import java.nio.file.Path

private const val PROMPT = "red heart" // a picture takes as long for any prompt

/**
 * Loads the bundle, makes [warmup] + [runs] pictures, loads it again; the engine of [engines] is the first that the
 * bundle has files for. Run it in a fresh process, so that the first load and the memory are the bundle's own. [tell]
 * hears after each picture how many are done.
 */
public fun profileBundle(
    folder: Path, engines: List<Engine>, facts: (backend: String) -> DeviceFacts, runs: Int = 5, warmup: Int = 1,
    measuredAt: String? = null, program: String? = null, tell: (done: Int, total: Int) -> Unit = { _, _ -> },
): LatencyLog {
    if (runs < 1 || warmup < 0) refuse("runs", null, "runs = $runs, warmup = $warmup; at least 1 and 0 are needed")
    val base = memoryMb("VmRSS")
    val loads = Loads()
    val session = loads.time { loadSession(folder, engines, program, loads) }
    val cold = loads.last
    val graphLoads = session.loadMillis.mapValues { rounded(it.value, 3) }
    val engine = chooseEngine(session.manifest, engines)
    val described = facts(engine.backend)
    val clock = Clock()
    var first: Double? = null
    session.use {
        for (index in 0 until warmup + runs) {
            if (index == warmup) clock.clear()
            val spent = clock.time(session, program, index)
            first = first ?: spent
            tell(index + 1, warmup + runs)
        }
    }
    loads.time { loadSession(folder, engines, program, Loads()) }.close()
    return LatencyLog(
        described, LoadTimes(cold, loads.last, loads.hashing, graphLoads), clock.graphs, clock.images, warmup, first,
        peakRssMb = memoryMb("VmHWM"), baseRssMb = base, bundle = session.manifest.name, measuredAt = measuredAt,
    )
}

private class Loads {
    var last = 0.0
    var hashing = 0.0

    fun <T> time(act: () -> T): T {
        val began = System.nanoTime()
        return act().also { last = rounded(millisSince(began), 3) }
    }
}

private fun loadSession(folder: Path, engines: List<Engine>, program: String?, loads: Loads): Session {
    val began = System.nanoTime()
    val bundle = ModelBundle.open(folder)
    loads.hashing = rounded(millisSince(began), 3)
    return Session(bundle, chooseEngine(bundle.manifest, engines)).also { it.load(program) }
}

/** Milliseconds of every graph call, by graph (`<graph>@<batch>` where it runs at two batch sizes), and of pictures. */
private class Clock {
    val graphs = LinkedHashMap<String, MutableList<Double>>()
    val images = ArrayList<Double>()

    fun clear() {
        graphs.clear()
        images.clear()
    }

    fun time(session: Session, program: String?, seed: Int): Double {
        session.onCall = { name, nanos -> graphs.getOrPut(name) { ArrayList() }.add(rounded(nanos / 1e6, 4)) }
        val request = anyRequest(session.manifest, program, seed.toULong())
        val began = System.nanoTime()
        var latent = FloatArray(0)
        for (step in session.steps(request)) latent = step.latent
        if (session.manifest.makes == "audio") session.sound(latent, program) else session.decode(latent, program)
        session.onCall = null
        return rounded(millisSince(began), 3).also(images::add)
    }
}

/** Something for everything that a program takes. */
private fun anyRequest(manifest: Manifest, name: String?, seed: ULong): GenerationRequest {
    val program = manifest.program(name)
    val hasClasses = manifest.conditionsOf(program).values.any { it is Condition.Classes }
    return GenerationRequest(if ("prompt" !in program.takes) "" else if (hasClasses) "0" else PROMPT, seed) {
        this.program = name
        manifest.picture?.let { size ->
            val grey = { channels: Int -> ByteArray(size.height * size.width * channels) { 128.toByte() } }
            if ("picture" in program.takes) picture = Picture(size.width, size.height, 3, grey(3))
            if ("mask" in program.takes) mask = Picture(size.width, size.height, 1, grey(1))
        }
    }
}

/** A line of Linux's and Android's `/proc/self/status` in MB (10^6 bytes); null elsewhere. */
internal fun memoryMb(line: String): Double? {
    val status = File("/proc/self/status")
    if (!status.canRead()) return null
    val kib = status.readLines().firstOrNull { it.startsWith("$line:") }
        ?.filter { it.isDigit() }?.toLongOrNull() ?: return null
    return rounded(kib * 1024 / 1e6, 1)
}
