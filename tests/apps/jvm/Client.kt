// Answers each line of JSON with one: what the Android sample's own classes do, on a JVM.

package ai.adadim.sample

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import org.json.JSONArray
import org.json.JSONObject

private fun install(request: JSONObject): JSONObject {
    val from = request.getString("source")
    var opened = 0
    val source = when {
        from.startsWith("http:") -> HttpSource(from)
        else -> Source { path -> File(from, path).takeIf { it.isFile }?.inputStream() ?: throw FileNotFoundException(path) }
    }
    val counting = Source { path -> source.open(path).also { opened++ } }
    val steps = ArrayList<Long>()
    return try {
        val manifest = Installer(counting, request.getString("digest"), File(request.getString("folder"))).install { done, _ -> steps += done }
        JSONObject().put("model", manifest.model).put("opened", opened).put("progress", JSONArray(steps))
    } catch (error: BundleException) {
        JSONObject().put("problem", error.message).put("opened", opened)
    } catch (error: IOException) {
        JSONObject().put("interrupted", error.message).put("opened", opened)
    }
}

private fun tokenize(request: JSONObject): JSONObject {
    val tokenizer = Tokenizer(File(request.getString("tokenizer")).readText())
    val texts = request.getJSONArray("texts")
    val ids = (0 until texts.length()).map { tokenizer.encode(texts.getString(it)) }
    val decoded = ids.map { String(it.fold(ByteArray(0)) { bytes, id -> bytes + tokenizer.bytes(id) }) }
    return JSONObject().put("ids", JSONArray(ids.map { JSONArray(it.toList()) })).put("decoded", JSONArray(decoded))
}

private fun generate(request: JSONObject): JSONObject {
    val folder = File(request.getString("folder"))
    val digest = request.getString("digest")
    val manifest = Installer({ path -> throw FileNotFoundException(path) }, digest, folder).install()
    openModel(folder, manifest, 1, request.optString("library").ifEmpty { null }).use { model ->
        val prompt = model.encode(request.getString("prompt"))
        model.greedy(prompt).first() // another answer before: the cache is forgotten between two
        val tokens = model.greedy(prompt).take(request.getInt("count")).toList()
        val text = ByteArrayOutputStream()
        tokens.forEach { text.write(model.bytes(it)) }
        return JSONObject().put("prompt", JSONArray(prompt.toList())).put("tokens", JSONArray(tokens)).put("text", text.toString("UTF-8"))
    }
}

fun main() {
    generateSequence(::readlnOrNull).forEach { line ->
        val request = JSONObject(line)
        println(
            when {
                request.has("source") -> install(request)
                request.has("texts") -> tokenize(request)
                else -> generate(request)
            },
        )
    }
}
