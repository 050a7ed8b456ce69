plugins {
    id("org.jetbrains.kotlin.jvm") // its version is the root's
}

kotlin {
    explicitApi()
    compilerOptions.jvmTarget = org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17
    sourceSets.named("test") { kotlin.setSrcDirs(emptyList<String>()) } // Maven runs the tests: make test
}

java {
    sourceCompatibility = JavaVersion.VERSION_17
    targetCompatibility = JavaVersion.VERSION_17
}

dependencies {
    api(libs.coroutines.core)
    compileOnly(libs.onnxruntime.jvm) // the same classes as in ONNX Runtime's Android artifact, which engines brings
}
