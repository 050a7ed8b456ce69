package dev.edgediff

/** Whether a bundle fits into a device's memory; [needBytes] is an estimate, and [sentence] says from what. */
public data class DeviceCheck(val fits: Boolean, val memory: MemoryMode, val needBytes: Long, val sentence: String) {
    public companion object {
        /** Of free memory, what an app may count on: the system and other apps want the rest. */
        private const val SHARE = 0.6

        /** An engine holds the weights once as a file and once prepared; activations come on top. */
        private const val ENGINE_FACTOR = 2.0

        /**
         * The quickest memory mode that fits into [freeBytes]; where none does, [MemoryMode.ONE_COMPONENT] and
         * "may not fit". From the sizes of the files: the runtime was not asked.
         */
        @JvmStatic
        public fun of(manifest: Manifest, backend: String, freeBytes: Long): DeviceCheck {
            val parts = manifest.componentBytes(backend)
            val all = (parts.values.sum() * ENGINE_FACTOR).toLong()
            val largest = ((parts.values.maxOrNull() ?: 0) * ENGINE_FACTOR).toLong()
            val room = (freeBytes * SHARE).toLong()
            val isRoomy = all <= room
            val need = if (isRoomy) all else largest
            val fits = need <= room
            val how = if (isRoomy) "everything stays loaded" else "one component at a time"
            val verdict = if (fits) "fits" else "may not fit"
            val sentence = "$verdict: about ${megabytes(need)} MB needed ($how), ${megabytes(freeBytes)} MB free"
            return DeviceCheck(fits, if (isRoomy) MemoryMode.KEEP_ALL else MemoryMode.ONE_COMPONENT, need, sentence)
        }

        private fun megabytes(bytes: Long): Long = bytes / 1_000_000
    }
}
