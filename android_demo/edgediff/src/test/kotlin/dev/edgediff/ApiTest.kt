package dev.edgediff

import java.nio.file.Files
import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlinx.validation.api.dump
import kotlinx.validation.api.extractAnnotatedPackages
import kotlinx.validation.api.filterOutNonPublic
import kotlinx.validation.api.loadApiFromJvmClasses

/** `api/edgediff.api` is the public API; `mvn test -Dapi.write=true` writes it anew, for a reviewer to read. */
class ApiTest {
    @Test
    fun `the public API is the one that is checked in`() {
        val classes = Path.of("target", "classes")
        val files = Files.walk(classes).use { all -> all.filter { "$it".endsWith(".class") }.sorted().toList() }
        val api = files.asSequence().map { Files.newInputStream(it) }.loadApiFromJvmClasses()
        val text = buildString { api.filterOutNonPublic(api.extractAnnotatedPackages(emptySet())).dump(this) }
        val file = Path.of("api", "edgediff.api")
        if (System.getProperty("api.write") == "true") {
            Files.createDirectories(file.parent)
            Files.writeString(file, text)
        }
        assertEquals(Files.readString(file), text, "mvn test -Dapi.write=true writes $file anew")
    }
}
