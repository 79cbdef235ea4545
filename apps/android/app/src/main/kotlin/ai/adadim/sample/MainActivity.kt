package ai.adadim.sample

import android.app.Activity
import android.os.Bundle
import android.os.SystemClock
import android.system.Os
import android.widget.Button
import android.widget.EditText
import android.widget.TextView
import java.io.ByteArrayOutputStream
import java.io.File
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import kotlin.concurrent.Volatile

/** One question, one answer that appears as it is made. The bundle is brought and checked first, and loaded only if it is whole. */
class MainActivity : Activity() {
    private lateinit var status: TextView
    private lateinit var answer: TextView
    private lateinit var question: EditText
    private lateinit var button: Button

    /** Everything of the model runs here, one thing after another. */
    private val worker: ExecutorService = Executors.newSingleThreadExecutor()
    private var model: Model? = null
    private var context = 0

    @Volatile private var stopped = false

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        Os.setenv("ORT_DISABLE_TELEMETRY", "1", true) // before onnxruntime is loaded: it reports each session to its maker
        setContentView(R.layout.main)
        status = findViewById(R.id.status)
        answer = findViewById(R.id.answer)
        question = findViewById(R.id.question)
        button = findViewById(R.id.button)
        load()
    }

    private fun load() {
        button.isEnabled = false
        worker.execute {
            try {
                val folder = File(filesDir, "bundle")
                val manifest = Installer(source(), BuildConfig.BUNDLE_DIGEST, folder).install { done, total ->
                    say(getString(R.string.checking, done / MB, total / MB))
                }
                say(getString(R.string.loading, manifest.name))
                context = manifest.context
                model = openModel(folder, manifest, THREADS, kernel(manifest))
                say(getString(R.string.ready, manifest.name))
                offer(R.string.ask) { ask(question.text.toString()) }
            } catch (error: Exception) { // a bundle that is not whole, no network, no space: the next try goes on from what is there
                say(error.message ?: error.toString())
                offer(R.string.retry) { load() }
            }
        }
    }

    private fun source(): Source =
        if (BuildConfig.BUNDLE_ADDRESS.isEmpty()) Source { assets.open("bundle/$it") } else HttpSource(BuildConfig.BUNDLE_ADDRESS)

    /** The kernel that the app was built with, for a bundle that has a use for it. The loader finds it by its name, inside the APK too. */
    private fun kernel(manifest: Manifest): String? {
        val usesIt = manifest.libraries.isNotEmpty()
        return if (usesIt) "libadadim_ort.so" else null
    }

    private fun ask(text: String) {
        stopped = false
        answer.text = ""
        offer(R.string.stop) { stopped = true }
        worker.execute {
            val held = checkNotNull(model)
            val prompt = held.encode(CHAT.format(text))
            if (prompt.size >= context) {
                say(getString(R.string.too_long, prompt.size, context))
            } else {
                stream(held, prompt)
            }
            offer(R.string.ask) { ask(question.text.toString()) }
        }
    }

    private fun stream(held: Model, prompt: IntArray) {
        val bytes = ByteArrayOutputStream()
        val start = SystemClock.elapsedRealtime()
        var count = 0
        for (token in held.greedy(prompt).take(context - prompt.size)) {
            if (stopped) break
            count++
            bytes.write(held.bytes(token))
            // A character whose bytes are not all there yet is held back.
            val text = bytes.toString("UTF-8").trimEnd('\uFFFD')
            runOnUiThread { answer.text = text }
        }
        val seconds = (SystemClock.elapsedRealtime() - start) / 1000.0
        say(getString(R.string.rate, count, count / seconds))
    }

    private fun say(text: String) = runOnUiThread { status.text = text }

    private fun offer(label: Int, action: () -> Unit) = runOnUiThread {
        button.setText(label)
        button.setOnClickListener { action() }
        button.isEnabled = true
    }

    override fun onDestroy() {
        stopped = true
        worker.execute { model?.close() }
        worker.shutdown()
        worker.awaitTermination(1, TimeUnit.SECONDS)
        super.onDestroy()
    }

    private companion object {
        const val MB = 1_000_000
        const val THREADS = 4 // the large cores of most phones

        /** As SmolLM2 was taught to be asked: chat_template.jinja of the bundle, written out. */
        const val CHAT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n" +
            "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"
    }
}
