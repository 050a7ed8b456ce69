package dev.edgediff

/** Rules 21 to 23: what a program's rows may read of what rows before them have made. */
internal class RowRules(private val manifest: Manifest, private val program: Program, private val rules: Rules) {
    fun check() {
        checkHeld()
        checkCarries()
        program.rows.forEachIndexed { index, row ->
            for ((what, count) in listOf("x" to row.update.x.size, "e" to row.update.e.size)) {
                if (count > index + 1) {
                    rules.fail("history", "row $index has $count coefficients '$what'; at most ${index + 1}")
                }
            }
        }
    }

    /** Rule 21. */
    private fun checkHeld() {
        var ran = false
        var guided = 0
        program.rows.forEachIndexed { index, row ->
            if (row.graph == null) {
                checkIdle(index, row)
                if (!ran) rules.fail("carry_before_write", "row $index holds the output before any graph has run")
                return@forEachIndexed
            }
            ran = true
            val held = row.held?.weights?.size ?: 0
            if (held > 0 && row.isGuided) rules.fail("guidance", "row $index holds guidance and has its own")
            if (held > guided) {
                rules.fail("carry_before_write", "row $index holds the guidance of $held rows; $guided were guided")
            }
            if (row.isGuided) guided++
        }
    }

    private fun checkIdle(index: Int, row: Row) {
        if (row.isGuided || row.held != null) rules.fail("guidance", "row $index runs no graph, but has guidance")
        if (row.mix.isNotEmpty()) rules.fail("carry", "row $index runs no graph, but mixes a carry")
    }

    /** How often a carry was written; the lowest bit of [guided] is the newest: was its writer guided? */
    private class Written(var count: Int = 0, var guided: Long = 0)

    /** Rule 22. */
    private fun checkCarries() {
        val written = HashMap<String, Written>()
        program.rows.forEachIndexed { index, row ->
            val graph = manifest.graphs.getValue(row.graph ?: return@forEachIndexed)
            for ((carry, weights) in row.mix) {
                if (carry !in graph.carriesIn) {
                    rules.fail("carry", "row $index mixes '$carry', which graph '${row.graph}' does not read")
                }
                val count = written[carry]?.count ?: 0
                if (weights.size > count) {
                    rules.fail("carry_before_write", "row $index mixes ${weights.size} values of '$carry', of $count")
                }
            }
            for (carry in graph.carriesIn.keys) {
                val past = written[carry]
                    ?: rules.fail("carry_before_write", "row $index reads carry '$carry' before it is written")
                val unguided = past.guided.inv() and (-1L ushr (64 - (row.mix[carry]?.size ?: 1)))
                if (row.isGuided && unguided != 0L) {
                    rules.fail("carry", "row $index is guided, but carry '$carry' was written without guidance")
                }
            }
            for (carry in graph.carriesOut.keys) {
                val past = written.getOrPut(carry) { Written() }
                past.count++
                past.guided = past.guided shl 1 or if (row.isGuided) 1L else 0L
            }
        }
    }
}
