plugins {
    alias(libs.plugins.android.library)
}

android {
    namespace = "dev.edgediff.engines"
    compileSdk = 37
    defaultConfig.minSdk = 26
    sourceSets["main"].kotlin.directories += "src/executorch/kotlin"
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    api(project(":edgediff"))
    api(libs.onnxruntime.android)
    api(libs.executorch.android)
}
