package ai.adadim.sample

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.io.File
import java.nio.FloatBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/**
 * An exported ONNX graph in onnxruntime. [library] registers MatMulAdaDim's native kernel; without it the portable body runs.
 * The app has set ORT_DISABLE_TELEMETRY before ([MainActivity]): onnxruntime looks at it when it is loaded, which is here.
 */
class OnnxModel(file: File, private val ends: Set<Int>, threads: Int, library: String?) : Model {
    private val environment = OrtEnvironment.getEnvironment()
    private val options = OrtSession.SessionOptions().apply { // open as long as the session: closing it unloads the library
        setIntraOpNumThreads(threads)
        if (library != null) registerCustomOpLibrary(library)
    }
    private val session = environment.createSession(file.path, options)
    private val tokenizer = Tokenizer(File(file.parentFile, "tokenizer.json").readText())
    private val past = session.inputInfo.filterKeys { it.startsWith(PAST) }.mapValues { it.value.info as TensorInfo }
    private var results: OrtSession.Result? = null // of the last step; holds the cache
    private var total = 0

    override fun encode(text: String) = tokenizer.encode(text)

    override fun bytes(token: Int) = tokenizer.bytes(token)

    override fun greedy(prompt: IntArray): Sequence<Int> = sequence {
        forget()
        var token = -1
        // In pieces: the graph gives logits of every position, which for 500 tokens of SmolLM2 would be 100 MB.
        for (start in prompt.indices step PROMPT_PIECE) {
            token = step(prompt.copyOfRange(start, minOf(start + PROMPT_PIECE, prompt.size)))
        }
        while (true) {
            yield(token)
            if (token in ends) break
            token = step(intArrayOf(token))
        }
    }

    /** Runs [tokens] after those before; the most likely next one. */
    private fun step(tokens: IntArray): Int {
        total += tokens.size
        val inputs = mapOf(
            "input_ids" to LongArray(tokens.size) { tokens[it].toLong() },
            "attention_mask" to LongArray(total) { 1 },
            "position_ids" to LongArray(tokens.size) { (total - tokens.size + it).toLong() },
        ).filterKeys(session.inputNames::contains).mapValues { (_, values) ->
            OnnxTensor.createTensor(environment, LongBuffer.wrap(values), longArrayOf(1, values.size.toLong()))
        }
        val before = results
        val cache = past.mapValues { (name, info) ->
            before?.get(name.replace(PAST, PRESENT))?.get() as OnnxTensor? ?: emptyCache(info)
        }
        val after = session.run(inputs + cache)
        results = after
        (if (before == null) inputs + cache else inputs).values.forEach { it.close() }
        before?.close()
        return argmaxOfLast(after["logits"].get() as OnnxTensor)
    }

    private fun emptyCache(info: TensorInfo): OnnxTensor {
        val shape = longArrayOf(1, info.shape[1], 0, info.shape[3])
        return when (info.type) {
            OnnxJavaType.FLOAT16 -> OnnxTensor.createTensor(environment, ShortBuffer.allocate(0), shape, OnnxJavaType.FLOAT16)
            else -> OnnxTensor.createTensor(environment, FloatBuffer.allocate(0), shape)
        }
    }

    private fun argmaxOfLast(logits: OnnxTensor): Int {
        val values = logits.floatBuffer
        val start = values.limit() - logits.info.shape.last().toInt()
        return (start until values.limit()).maxBy { values[it] } - start
    }

    private fun forget() {
        results?.close()
        results = null
        total = 0
    }

    override fun close() {
        forget()
        session.close()
        options.close()
    }

    private companion object {
        const val PAST = "past_key_values."
        const val PRESENT = "present."
        const val PROMPT_PIECE = 32
    }
}
