package dev.edgediff.runner

import dev.edgediff.EdgeDiffException
import dev.edgediff.MemoryMode

/** The command line, parsed. [profile] names the JSON to write in place of a picture. */
internal class Options private constructor(words: List<String>, given: Map<String, String>, val quiet: Boolean) {
    val bundle: String = words[0]
    val prompt: String = words.getOrElse(1) { "" }
    val out: String = words.getOrElse(2) { "" }
    val profile: String? = given["--profile"]
    val negativePrompt: String = given["--negative-prompt"].orEmpty()
    val program: String? = given["--program"]
    val strength: Double? = number(given, "--strength")
    val guidance: Double? = number(given, "--guidance")
    val picture: String? = given["--picture"]
    val mask: String? = given["--mask"]
    val seed: ULong = (given["--seed"] ?: "0").let {
        it.toULongOrNull() ?: bad("--seed $it: a whole number from 0 to 2^64 - 1")
    }
    val threads: Int = number(given, "--threads", 0)
    val runs: Int = number(given, "--runs", 5)
    val warmup: Int = number(given, "--warmup", 1)
    val memory: MemoryMode = when (val word = given["--memory"] ?: "all") {
        "all" -> MemoryMode.KEEP_ALL
        "one" -> MemoryMode.ONE_COMPONENT
        else -> bad("--memory $word: all or one")
    }

    companion object {
        private val VALUED = setOf(
            "--program", "--strength", "--guidance", "--seed", "--negative-prompt", "--picture", "--mask", "--threads",
            "--memory", "--profile", "--runs", "--warmup",
        )

        /** Null when only help is asked for. */
        fun parse(arguments: List<String>): Options? {
            if (arguments.isEmpty() || "--help" in arguments || "-h" in arguments) return null
            val words = ArrayList<String>()
            val given = HashMap<String, String>()
            var quiet = false
            val rest = ArrayDeque(arguments)
            while (rest.isNotEmpty()) {
                val word = rest.removeFirst()
                when {
                    word == "--quiet" -> quiet = true
                    word in VALUED -> given[word] = rest.removeFirstOrNull() ?: bad("$word needs a value")
                    word.startsWith("--") -> bad("unknown option $word (known: ${VALUED.joinToString()}, --quiet)")
                    else -> words.add(word)
                }
            }
            val expected = if ("--profile" in given) 1 else 3
            if (words.size != expected) {
                bad("${words.size} arguments where $expected are needed; --help shows them")
            }
            return Options(words, given, quiet)
        }

        private fun number(given: Map<String, String>, key: String, default: Int): Int {
            val text = given[key] ?: return default
            return text.toIntOrNull()?.takeIf { it >= 0 } ?: bad("$key $text: a whole number from 0")
        }

        private fun number(given: Map<String, String>, key: String): Double? = given[key]?.let { text ->
            text.toDoubleOrNull()?.takeIf { it.isFinite() } ?: bad("$key $text: a number")
        }

        private fun bad(message: String): Nothing = throw EdgeDiffException("usage", message)
    }
}
