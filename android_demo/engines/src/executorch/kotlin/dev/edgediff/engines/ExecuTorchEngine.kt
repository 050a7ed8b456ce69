package dev.edgediff.engines

import dev.edgediff.Artifact
import dev.edgediff.DType
import dev.edgediff.EdgeDiffException
import dev.edgediff.Engine
import dev.edgediff.Graph
import dev.edgediff.GraphRunner
import dev.edgediff.Tensor
import dev.edgediff.TensorSpec
import java.nio.file.Path
import org.pytorch.executorch.EValue
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.Module

/**
 * Graphs of `.pte` programs. Several graphs of one file are its methods: the program, and so its weights, is mapped
 * into memory once for all of them. Inputs are read where they lie; an output is copied once, out of the program's own
 * memory. [threads] 0 leaves the number to ExecuTorch.
 */
public class ExecuTorchEngine(private val threads: Int = 0) : Engine {
    override val backend: String get() = "executorch"

    private val programs = HashMap<Path, Program>()

    override fun open(folder: Path, graph: Graph, artifact: Artifact, batch: Int): GraphRunner {
        val file = folder.resolve(artifact.file)
        if (artifact.data.isNotEmpty()) {
            throw EdgeDiffException("load", "ExecuTorch's Android API takes no separate weights files", "$file")
        }
        val load = { Module.load("$file", Module.LOAD_MODE_MMAP, threads) }
        val program = synchronized(programs) { programs.getOrPut(file) { Program(file, load) }.also { it.users++ } }
        val method = artifact.function ?: "forward"
        try {
            return ExecuTorchRunner(program.module, method, graph, batch, "$file") { release(program) }
        } catch (error: EdgeDiffException) {
            release(program)
            throw error
        }
    }

    private fun release(program: Program) = synchronized(programs) {
        if (--program.users == 0) {
            programs.remove(program.file)
            program.module.close()
        }
    }

    private class Program(val file: Path, load: () -> Module) {
        val module: Module = guarding("load", "$file", load)
        var users = 0
    }
}

/** One method, loaded at once so that a wrong file shows now and not at the first picture. */
private class ExecuTorchRunner(
    private val module: Module, private val method: String, private val graph: Graph, private val batch: Int,
    private val file: String, private val release: () -> Unit,
) : GraphRunner {
    init {
        if (method !in guarding("load", file) { module.getMethods() }) {
            throw EdgeDiffException("signature", "has no method '$method'; build the bundle again", file)
        }
        guarding("load", file) { module.loadMethod(method) }
    }

    override fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
        val values = guarding("run", file) {
            val given = graph.inputs.map { EValue.from(wrap(inputs.getValue(it.name))) }
            module.execute(method, *given.toTypedArray())
        }
        if (values.size != graph.outputs.size) mismatch("${values.size} outputs, not ${graph.outputs.size}")
        graph.outputs.forEachIndexed { index, spec -> copy(values[index], spec, outputs.getValue(spec.name)) }
    }

    private fun wrap(tensor: Tensor): org.pytorch.executorch.Tensor {
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        return when (tensor.dtype) {
            DType.FLOAT32 -> org.pytorch.executorch.Tensor.fromBlob(tensor.floats(), shape)
            DType.FLOAT16 -> org.pytorch.executorch.Tensor.fromBlob(tensor.halves(), shape)
            DType.INT64 -> org.pytorch.executorch.Tensor.fromBlob(tensor.longs(), shape)
            DType.INT32 -> org.pytorch.executorch.Tensor.fromBlob(tensor.ints(), shape)
        }
    }

    private fun copy(value: EValue, spec: TensorSpec, target: Tensor) {
        if (!value.isTensor) mismatch("an output '${spec.name}' that is no tensor")
        val found = value.toTensor()
        val sizes = spec.sized(batch).map { it.toLong() }
        if (found.shape().toList() != sizes) mismatch("'${spec.name}' of ${found.shape().toList()}, not $sizes")
        guarding("signature", file) {
            when (target.dtype) {
                DType.FLOAT32 -> found.copyDataInto(target.floats())
                DType.FLOAT16 -> found.copyDataInto(target.halves())
                DType.INT64 -> found.copyDataInto(target.longs())
                DType.INT32 -> found.copyDataInto(target.ints())
            }
        }
    }

    private fun mismatch(what: String): Nothing =
        throw EdgeDiffException("signature", "method '$method' put out $what; build the bundle again", file)

    override fun close() = release()
}

private val OUT_OF_MEMORY = setOf(
    ExecutorchRuntimeException.MEMORY_ALLOCATION_FAILED, ExecutorchRuntimeException.DELEGATE_MEMORY_ALLOCATION_FAILED,
)

private inline fun <T> guarding(code: String, where: String, act: () -> T): T = try {
    act()
} catch (error: ExecutorchRuntimeException) {
    val found = if (error.errorCode in OUT_OF_MEMORY) "memory" else code
    throw EdgeDiffException(found, "ExecuTorch failed: ${error.message.orEmpty().lineSequence().first()}", where, error)
} catch (error: RuntimeException) {
    throw EdgeDiffException(code, "ExecuTorch failed: ${error.message}", where, error)
}
