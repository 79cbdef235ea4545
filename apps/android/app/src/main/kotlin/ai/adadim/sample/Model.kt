package ai.adadim.sample

import java.io.File

/** What both runtimes are to the screen. Not for two threads at once. */
interface Model : AutoCloseable {
    fun encode(text: String): IntArray

    /** The bytes of one token's text: a character may take several tokens. None for tokens that only steer. */
    fun bytes(token: Int): ByteArray

    /** The most likely token after [prompt], the one after that, and so on; one that ends the answer is the last. */
    fun greedy(prompt: IntArray): Sequence<Int>
}

/** Opens an installed bundle. [library]: MatMulAdaDim's native kernel inside the app, null without one. */
fun openModel(folder: File, manifest: Manifest, threads: Int, library: String?): Model {
    val file = File(folder, manifest.model)
    return when (manifest.runtime) {
        "onnxruntime" -> OnnxModel(file, manifest.ends, threads, library)
        "llama.cpp" -> LlamaModel(file, manifest.context, threads)
        else -> throw BundleException("${Manifest.NAME}: runtime ${manifest.runtime} is not known here; update the app")
    }
}
