package ai.adadim.sample

import java.io.File

/** A GGUF file in llama.cpp, by llama_jni.cpp. Throws IllegalArgumentException if llama.cpp refuses it. */
class LlamaModel(file: File, context: Int, threads: Int) : Model {
    private var handle = open(file.path.toByteArray(), context, threads)

    override fun encode(text: String) = tokenize(handle, text.toByteArray())

    override fun bytes(token: Int) = piece(handle, token)

    override fun greedy(prompt: IntArray): Sequence<Int> = sequence {
        forget(handle)
        var token = step(handle, prompt)
        while (true) {
            yield(token)
            if (isEnd(handle, token)) break
            token = step(handle, intArrayOf(token))
        }
    }

    override fun close() {
        close(handle)
        handle = 0
    }

    private external fun open(path: ByteArray, context: Int, threads: Int): Long

    private external fun tokenize(handle: Long, text: ByteArray): IntArray

    private external fun piece(handle: Long, token: Int): ByteArray

    private external fun forget(handle: Long)

    private external fun step(handle: Long, tokens: IntArray): Int

    private external fun isEnd(handle: Long, token: Int): Boolean

    private external fun close(handle: Long)

    private companion object {
        init {
            System.loadLibrary("llama_jni")
        }
    }
}
