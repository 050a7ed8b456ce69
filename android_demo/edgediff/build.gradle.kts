plugins {
    alias(libs.plugins.kotlin.jvm)
}

kotlin {
    explicitApi()
    compilerOptions.jvmTarget = org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17
}

java {
    sourceCompatibility = JavaVersion.VERSION_17
    targetCompatibility = JavaVersion.VERSION_17
}

// Maven runs the tests (`make test`). The classes of ONNX Runtime are the same in its JVM and Android artifacts.
sourceSets.test { kotlin.setSrcDirs(emptyList<String>()) }

dependencies {
    api(libs.coroutines.core)
    compileOnly(libs.onnxruntime.jvm)
}
