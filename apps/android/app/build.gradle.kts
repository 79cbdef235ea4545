plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "ai.adadim.sample"
    compileSdk = 35
    ndkVersion = "27.2.12479018" // aligns to 16 KiB pages

    defaultConfig {
        applicationId = "ai.adadim.sample"
        minSdk = 24 // as ONNX Runtime's AAR and MatMulAdaDim's kernel
        targetSdk = 35
        versionCode = 1
        versionName = "1.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
        buildConfigField("String", "BUNDLE_DIGEST", "\"${property("bundle.digest")}\"")
        buildConfigField("String", "BUNDLE_ADDRESS", "\"${property("bundle.address")}\"")
        externalNativeBuild { cmake { arguments += "-DLLAMA_CPP_DIR=${property("llama.cpp.dir")}" } }
    }
    buildFeatures { buildConfig = true }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    androidResources { noCompress += "" } // a model is as small as it gets already
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.27.0")
}
