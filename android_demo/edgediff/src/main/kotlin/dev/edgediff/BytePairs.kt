package dev.edgediff

import java.util.PriorityQueue

/**
 * Byte pair encoding: a piece's UTF-8 bytes become GPT-2's 256 printable characters, the last one with `</w>`; then
 * the pair that comes first in `merges` is merged, leftmost first, until no pair is left. A symbol that the
 * vocabulary lacks is [unknown].
 */
internal class BytePairs(
    private val vocabulary: Map<String, Int>, merges: List<Pair<String, String>>, private val unknown: Int,
) {
    private class Merge(val rank: Int, val id: Int)

    private val merges = HashMap<Long, Merge>(merges.size * 2).apply {
        merges.forEachIndexed { rank, (first, second) ->
            val pair = key(vocabulary.getValue(first), vocabulary.getValue(second))
            putIfAbsent(pair, Merge(rank, vocabulary.getValue(first + second)))
        }
    }

    fun encode(piece: String, out: MutableList<Int>) {
        val bytes = piece.toByteArray()
        val symbols = IntArray(bytes.size) { index ->
            val letter = LETTERS[bytes[index].toInt() and 0xff].toString()
            vocabulary[if (index == bytes.size - 1) "$letter</w>" else letter] ?: unknown
        }
        Chain(symbols).merge(out)
    }

    /** The symbols as a linked list, and a queue of the pairs that can be merged. */
    private inner class Chain(private val symbols: IntArray) {
        private val next = IntArray(symbols.size) { it + 1 }
        private val previous = IntArray(symbols.size) { it - 1 }
        private val gone = BooleanArray(symbols.size)
        private val queue = PriorityQueue<Candidate>()

        fun merge(out: MutableList<Int>) {
            for (index in 0 until symbols.size - 1) offer(index)
            while (true) {
                val best = queue.poll() ?: break
                val right = if (gone[best.at]) symbols.size else next[best.at]
                if (right >= symbols.size || merges[key(symbols[best.at], symbols[right])]?.id != best.id) continue
                symbols[best.at] = best.id
                gone[right] = true
                next[best.at] = next[right]
                if (next[right] < symbols.size) previous[next[right]] = best.at
                if (previous[best.at] >= 0) offer(previous[best.at])
                offer(best.at)
            }
            for (index in symbols.indices) if (!gone[index]) out.add(symbols[index])
        }

        private fun offer(at: Int) {
            val right = next[at]
            if (right >= symbols.size) return
            val merge = merges[key(symbols[at], symbols[right])] ?: return
            queue.add(Candidate(merge.rank, at, merge.id))
        }
    }

    private class Candidate(val rank: Int, val at: Int, val id: Int) : Comparable<Candidate> {
        override fun compareTo(other: Candidate): Int = compareValuesBy(this, other, { it.rank }, { it.at })
    }

    private companion object {
        fun key(first: Int, second: Int): Long = (first.toLong() shl 32) or (second.toLong() and 0xffffffffL)

        /** GPT-2's letters: printable bytes stand for themselves, the others for the characters from 256 on. */
        val LETTERS: CharArray = CharArray(256).apply {
            var hidden = 256
            for (byte in 0..255) {
                val isShown = byte in '!'.code..'~'.code || byte in 0xa1..0xac || byte in 0xae..0xff
                this[byte] = if (isShown) byte.toChar() else hidden++.toChar()
            }
        }
    }
}
