package dev.edgediff.runner

import dev.edgediff.DeviceFacts
import dev.edgediff.EdgeDiffException
import dev.edgediff.GenerationEvent
import dev.edgediff.GenerationRequest
import dev.edgediff.Generator
import dev.edgediff.MemoryMode
import dev.edgediff.ModelBundle
import dev.edgediff.OrtEngine
import dev.edgediff.chooseEngine
import dev.edgediff.profileBundle
import java.io.File
import java.io.IOException
import java.io.PrintStream
import java.lang.management.ManagementFactory
import java.lang.management.MemoryType
import java.nio.file.Files
import java.nio.file.Path
import java.time.Instant
import java.time.temporal.ChronoUnit
import kotlin.system.exitProcess
import kotlinx.coroutines.runBlocking

private const val USAGE = """usage: java -jar edgediff-run.jar BUNDLE PROMPT OUT [options]
       java -jar edgediff-run.jar BUNDLE --profile OUT.json [--program NAME] [--runs N] [--warmup N] [--threads N]
       java -jar edgediff-run.jar --read-manifests   (frames from standard input: size, newline, bytes)

BUNDLE is a folder, or a packed bundle, which is unpacked into the folder beside it. OUT is a PNG, or a WAV of sound.
  --program NAME        a program of the bundle (default: the one that it names)
  --strength S          in place of --program: the program that starts from a picture with this strength
  --guidance S          guidance scale, within the program's range
  --negative-prompt T   negative prompt
  --picture PNG         the picture to start from
  --mask PNG            white where to paint
  --seed N              0 to 2^64 - 1 (default 0)
  --threads N           threads of the engine (default: one per core)
  --memory M            all (every graph stays loaded) or one (one component at a time)
  --quiet               no progress"""

public fun main(arguments: Array<String>): Unit = exitProcess(runCommand(arguments.toList(), System.out, System.err))

/** Does what the arguments ask for; 0 done, 2 bad input, like `edgediff`. */
internal fun runCommand(arguments: List<String>, out: PrintStream, log: PrintStream): Int = try {
    if (arguments == listOf("--read-manifests")) {
        readManifests(System.`in`, out)
    } else {
        val options = Options.parse(arguments)
        if (options == null) out.println(USAGE) else Command(options, out, log).run()
    }
    0
} catch (error: EdgeDiffException) {
    log.println("error (${error.code}): ${error.message}")
    2
} catch (error: IOException) {
    log.println("error (output): cannot be written: ${error.message}")
    2
}

private class Command(private val options: Options, private val out: PrintStream, private val log: PrintStream) {
    private val engines = listOf(OrtEngine(options.threads))

    fun run() {
        val folder = unpacked(Path.of(options.bundle))
        if (options.profile != null) profile(folder, Path.of(options.profile)) else draw(folder, Path.of(options.out))
    }

    private fun unpacked(path: Path): Path {
        if (!Files.isRegularFile(path)) return path
        val folder = path.resolveSibling("${path.fileName}.unpacked")
        if (!Files.exists(folder)) ModelBundle.unpack(path, folder)
        return folder
    }

    private fun draw(folder: Path, file: Path) {
        val bundle = ModelBundle.open(folder)
        val engine = chooseEngine(bundle.manifest, engines)
        val request = GenerationRequest(options.prompt, options.seed) {
            negativePrompt = options.negativePrompt
            program = options.program
            strength = options.strength
            guidanceScale = options.guidance
            picture = options.picture?.let { readPicture(Path.of(it)) }
            mask = options.mask?.let { readMask(Path.of(it)) }
        }
        Generator(bundle, engine, options.memory).use { generator ->
            runBlocking { generator.generate(request).collect { tell(it, file) } }
        }
    }

    private fun tell(event: GenerationEvent, file: Path) {
        when (event) {
            is GenerationEvent.Started -> note("seed ${event.seed}, ${event.total} rows")
            is GenerationEvent.Progress -> note("row %d of %d  %.1f ms".format(event.done, event.total, event.millis))
            is GenerationEvent.Preview -> Unit
            is GenerationEvent.CompletedSound -> {
                Files.write(file, event.sound.wav())
                val size = "${event.sound.samples.size / event.sound.channels} samples"
                out.println("wrote $file ($size, seed ${event.seed}, %.0f ms)".format(event.millis))
            }
            is GenerationEvent.Failed -> throw EdgeDiffException(event.code, event.message)
            is GenerationEvent.Completed -> {
                Files.write(file, event.picture.png())
                val size = "${event.picture.width} x ${event.picture.height}"
                out.println("wrote $file ($size, seed ${event.seed}, %.0f ms)".format(event.millis))
                if (event.picture.isFlagged) out.println("the safety checker flags this picture")
            }
        }
    }

    private fun profile(folder: Path, file: Path) {
        val now = Instant.now().truncatedTo(ChronoUnit.SECONDS).toString().replace("Z", "+00:00")
        val tell = { done: Int, total: Int -> note("picture $done of $total") }
        val table = profileBundle(folder, engines, ::facts, options.runs, options.warmup, now, options.program, tell)
        Files.write(file, table.toJson().toByteArray())
        val image = table.image
        val overhead = table.overheadFraction * 100
        val times = "p50 %.1f ms, p90 %.1f ms, n %d".format(image.p50, image.p90, image.n)
        out.println("$times; outside the graphs %.2f %%".format(overhead))
        out.println("peak heap %.1f MB, peak memory %s MB".format(peakHeapMb(), table.peakRssMb))
    }

    private fun facts(backend: String): DeviceFacts {
        val system = ManagementFactory.getOperatingSystemMXBean()
        val load = system.systemLoadAverage.takeIf { it >= 0 }
        return DeviceFacts(
            name = File("/etc/hostname").takeIf { it.canRead() }?.readText()?.trim() ?: "this machine",
            backend = backend,
            cpu = line("/proc/cpuinfo", "model name"), cores = system.availableProcessors,
            threads = options.threads.takeIf { it > 0 }, os = "${system.name} ${system.version}", loadAverage = load,
            memoryGb = line("/proc/meminfo", "MemTotal")?.substringBefore(" kB")?.toDoubleOrNull()?.times(1024e-9),
            runtime = "Java ${System.getProperty("java.version")}",
        )
    }

    private fun line(file: String, key: String): String? =
        File(file).takeIf { it.canRead() }?.readLines()?.firstOrNull { it.startsWith(key) }?.substringAfter(':')?.trim()

    private fun peakHeapMb(): Double = ManagementFactory.getMemoryPoolMXBeans()
        .filter { it.type == MemoryType.HEAP }.sumOf { it.peakUsage.used } / 1e6

    private fun note(text: String) {
        if (!options.quiet) log.println(text)
    }
}
