package dev.edgediff

import kotlin.random.Random
import kotlin.random.nextULong
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock

/** What [Generator.generate] tells, in order: started, then progress and previews, last completed or failed. */
public sealed interface GenerationEvent {
    /** The graphs are loaded and the prompt is encoded; [total] rows follow. */
    public class Started(public val total: Int, public val seed: ULong) : GenerationEvent

    /** Row [done] of [total] is computed; milliseconds of the whole row, and inside graphs. */
    public class Progress(
        public val done: Int, public val total: Int, public val graph: String?, public val millis: Double,
        public val graphMillis: Double,
    ) : GenerationEvent

    /** What the picture looks like after [done] rows, noise included. */
    public class Preview(public val done: Int, public val picture: Picture) : GenerationEvent

    /** The picture, the seed it can be made again with, and milliseconds from the request to here. */
    public class Completed(
        public val picture: Picture, public val seed: ULong, public val millis: Double,
    ) : GenerationEvent

    /** The sound of a bundle that makes sound, in the place of a picture. */
    public class CompletedSound(
        public val sound: Sound, public val seed: ULong, public val millis: Double,
    ) : GenerationEvent

    /** No picture. [code] is a stable word ([EdgeDiffException.code]; `memory`), [message] a sentence. */
    public class Failed(public val code: String, public val message: String) : GenerationEvent
}

/**
 * Pictures from one bundle. One picture at a time: a second [generate] waits for the first. Cancelling the collector
 * stops before the next network call, gives the picture's memory back and leaves the generator ready for another.
 */
public class Generator(
    private val session: Session, private val dispatcher: CoroutineDispatcher = Dispatchers.Default,
) : AutoCloseable {
    public constructor(bundle: ModelBundle, engine: Engine, memory: MemoryMode = MemoryMode.KEEP_ALL) :
        this(Session(bundle, engine, memory))

    private val one = Mutex()

    /**
     * Cold: every collection makes the picture anew. Never throws but for what the collector itself throws. No row is
     * computed ahead of a collector that has not taken the event before.
     */
    public fun generate(request: GenerationRequest): Flow<GenerationEvent> =
        flow { one.withLock { run(request) } }.buffer(Channel.RENDEZVOUS).flowOn(dispatcher)

    /** Closes every graph, after the network call that may be running. Used again, the generator loads them again. */
    override fun close(): Unit = synchronized(session) { session.close() }

    private suspend fun FlowCollector<GenerationEvent>.run(request: GenerationRequest) {
        val began = System.nanoTime()
        val seed = request.seed ?: Random.nextULong()
        val asked = attempt { session.ask(request).also { session.load(it.program) } } ?: return
        val steps = attempt { session.steps(asked, seed).iterator() } ?: return
        val program = asked.program
        emit(GenerationEvent.Started(program.rows.size, seed))
        var latent = FloatArray(0)
        repeat(program.rows.size) {
            currentCoroutineContext().ensureActive()
            val step = attempt { steps.next() } ?: return
            latent = step.latent
            emit(progress(step))
            if (isPreviewed(step, request)) {
                emit(GenerationEvent.Preview(step.index + 1, attempt { session.preview(latent, program) } ?: return))
            }
        }
        currentCoroutineContext().ensureActive()
        if (session.manifest.makes == "audio") {
            val sound = attempt { session.sound(latent, program) } ?: return
            return emit(GenerationEvent.CompletedSound(sound, seed, millisSince(began)))
        }
        val picture = attempt { session.decode(latent, program) } ?: return
        emit(GenerationEvent.Completed(picture, seed, millisSince(began)))
    }

    /** What [act] gives, or null once its failure is told. What the collector throws is not caught here. */
    private suspend fun <T : Any> FlowCollector<GenerationEvent>.attempt(act: () -> T): T? {
        val failure = try {
            return synchronized(session) { act() }
        } catch (error: EdgeDiffException) {
            if (error.code == "memory") session.close()
            GenerationEvent.Failed(error.code, error.message.orEmpty())
        } catch (error: OutOfMemoryError) {
            session.close()
            GenerationEvent.Failed("memory", "this device has not the memory for it: ${error.message}")
        }
        emit(failure)
        return null
    }

    private fun progress(step: GenerationStep) = GenerationEvent.Progress(
        step.index + 1, step.total, step.graph, step.totalNanos / 1e6, step.graphNanos / 1e6,
    )

    private fun isPreviewed(step: GenerationStep, request: GenerationRequest): Boolean {
        val done = step.index + 1
        val isDue = request.previewEvery > 0 && done % request.previewEvery == 0 && done < step.total
        return isDue && session.manifest.makes == "image"
    }
}

internal fun millisSince(nanos: Long): Double = (System.nanoTime() - nanos) / 1e6
