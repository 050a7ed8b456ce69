package dev.edgediff.engines

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import dev.edgediff.DeviceFacts

/** What this phone says of itself; `edgediff` reads it in a latency table. */
public fun readDevice(context: Context, backend: String, threads: Int = 0): DeviceFacts = DeviceFacts(
    name = "${Build.MANUFACTURER} ${Build.MODEL}", backend = backend,
    cpu = if (Build.VERSION.SDK_INT < Build.VERSION_CODES.S) Build.HARDWARE
    else "${Build.SOC_MANUFACTURER} ${Build.SOC_MODEL}",
    cores = Runtime.getRuntime().availableProcessors(), threads = threads.takeIf { it > 0 },
    os = "Android ${Build.VERSION.RELEASE} (API ${Build.VERSION.SDK_INT})",
    memoryGb = memory(context).totalMem / 1e9, runtime = "ART",
)

/** Bytes that the system can give an app now; [dev.edgediff.DeviceCheck] decides from them. */
public fun freeMemory(context: Context): Long = memory(context).run { availMem - threshold }.coerceAtLeast(0)

private fun memory(context: Context) = ActivityManager.MemoryInfo().also {
    (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(it)
}
