package ai.adadim.sample

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject
import org.json.JSONTokener

/** What a value of the manifest has to be. */
private typealias Kind = (Any?) -> Boolean

/** A file as it lies in the bundle. */
data class Stored(val path: String, val bytes: Long, val sha256: String)

/** A file as the runtime reads it: what its [parts] give one after another. One that is not in parts has itself as the only one. */
data class BundleFile(val whole: Stored, val parts: List<Stored>)

/** What an app reads of manifest.json. */
data class Manifest(
    val name: String,
    val runtime: String,
    /** The file that the runtime opens. */
    val model: String,
    val ends: Set<Int>,
    /** Tokens of prompt and answer to make room for. */
    val context: Int,
    /** Native code ships inside the app and is never taken from a bundle. */
    val libraries: Set<String>,
    val files: List<BundleFile>,
) {
    companion object {
        const val NAME = "manifest.json"
        const val SUMS = "SHA256SUMS"
        private const val FORMAT = "adadim-bundle"
        private const val VERSION = 1
        private val PLATFORMS = listOf("android", "ios", "web")
        private val LINE = Regex("([0-9a-f]{64}) {2}(.+)")
        private val TEXT: Kind = { it is String }
        private val OBJECT: Kind = { it is JSONObject }
        private val LIST: Kind = { it is JSONArray }
        private val SIZE: Kind = { (it is Int || it is Long) && (it as Number).toLong() in 0 until (1L shl 62) }
        private val SMALL: Kind = { it is Int && it >= 0 } // as the runtimes count tokens
        private val SMALL_ONES: Kind = { it is JSONArray && it.values().all(SMALL) }
        private val OBJECT_OR_NONE: Kind = { it == null || it == JSONObject.NULL || it is JSONObject }

        /** What verify_bundle.py asks of every manifest, in its order. */
        private val KEYS = listOf("name", "platform", "model", "bundled_by").associateWith { TEXT } +
            listOf("runtime", "generation", "quantization", "licence", "source", "provenance").associateWith { OBJECT } +
            mapOf("libraries" to LIST, "files" to LIST, "evaluation" to OBJECT_OR_NONE)
        private val FILE = mapOf<String, Kind>("path" to Names::isPlain, "bytes" to SIZE, "sha256" to Names::isSha256)
        private val PARTS = mapOf("parts" to LIST)
        private val LIBRARY = mapOf<String, Kind>("abi" to TEXT, "path" to Names::isPlain)

        /** And what the app reads besides. */
        private val RUNTIME = mapOf("name" to TEXT)
        private val GENERATION = mapOf("eos_token_ids" to SMALL_ONES, "context" to SMALL)

        /** Path -> sha256 of every file but the list itself. */
        fun parseSums(data: ByteArray): Map<String, String> {
            val sums = LinkedHashMap<String, String>()
            val lines = String(data, Charsets.US_ASCII).split("\n")
            lines.dropLast(1).forEachIndexed { index, line ->
                val (sum, path) = LINE.matchEntire(line)?.destructured ?: badLine(index)
                if (!Names.isPlain(path) || path == SUMS || sums.put(path, sum) != null) badLine(index)
            }
            if (lines.last().isNotEmpty() || sums.keys.toList() != sums.keys.sorted()) {
                throw BundleException("$SUMS: its lines are not in order, or the last one is cut off")
            }
            return sums
        }

        private fun badLine(index: Int): Nothing =
            throw BundleException("$SUMS: line ${index + 1} is not a sha256, two spaces and a plain name that is there once")

        /** The manifest, which has to say of every file what [sums] says. */
        fun parse(data: ByteArray, sums: Map<String, String>): Manifest {
            val manifest = read(parseVersion(data))
            manifest.check(sums)
            return manifest
        }

        private fun parseVersion(data: ByteArray): JSONObject {
            val json = try {
                parseObject(Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data)).toString())
            } catch (_: CharacterCodingException) {
                null
            } catch (_: JSONException) {
                null
            } catch (_: StackOverflowError) { // nested thousandfold
                null
            }
            val version = json?.opt("version") as? Int ?: 0
            if (json == null || json.opt("format") != FORMAT || version < 1) throw BundleException("$NAME: is no manifest of $FORMAT")
            if (version > VERSION) throw BundleException("$NAME: version $version is from the future, $VERSION is known here; update the app")
            return json
        }

        /** Null if there is anything else. Of a key twice, org.json keeps the last. */
        private fun parseObject(text: String): JSONObject? {
            val tokener = JSONTokener(text)
            return (tokener.nextValue() as? JSONObject)?.takeIf { tokener.nextClean() == '\u0000' }
        }

        private fun read(json: JSONObject): Manifest {
            typed(json, KEYS, "")
            val files = readFiles(json.getJSONArray("files").values())
            val libraries = json.getJSONArray("libraries").values().mapTo(LinkedHashSet()) { typed(it, LIBRARY, "a library's ").getString("path") }
            checkNames(json, files, libraries)
            val runtime = typed(json.get("runtime"), RUNTIME, "runtime's ")
            val generation = typed(json.get("generation"), GENERATION, "generation's ")
            return Manifest(
                name = json.getString("name"),
                runtime = runtime.getString("name"),
                model = json.getString("model"),
                ends = generation.getJSONArray("eos_token_ids").values().mapTo(HashSet()) { it as Int },
                context = generation.getInt("context"),
                libraries = libraries,
                files = files,
            )
        }

        private fun readFiles(values: List<Any?>): List<BundleFile> {
            val files = values.map { typed(it, FILE, "a file's ") }
            files.filter { it.has("parts") }.forEach { typed(it, PARTS, "a file's ") }
            return files.map { file ->
                val parts = file.optJSONArray("parts")?.values() ?: listOf(file)
                BundleFile(stored(file), parts.map { stored(typed(it, FILE, "a part's ")) })
            }
        }

        private fun stored(json: JSONObject) = Stored(json.getString("path"), json.getLong("bytes"), json.getString("sha256"))

        /** Each file is there once, and the model and the libraries are among them. */
        private fun checkNames(json: JSONObject, files: List<BundleFile>, libraries: Set<String>) {
            val (model, platform) = listOf(json.getString("model"), json.getString("platform"))
            val wholes = files.map { it.whole.path }
            val lying = files.flatMap { it.parts }.map { it.path }
            val unlisted = (libraries - lying.toSet()).firstOrNull() ?: model.cut(200).takeIf { model !in wholes }
            if (unlisted != null || wholes.toSet().size != wholes.size || lying.toSet().size != lying.size) {
                throw BundleException("$NAME: ${unlisted ?: "a file"} is not once in its list of files")
            }
            if (platform !in PLATFORMS) {
                throw BundleException("$NAME: platform '${platform.cut(99)}' is none of ${PLATFORMS.joinToString()}")
            }
        }

        /** [held] as an object of the manifest, its values of these [kinds]. */
        private fun typed(held: Any?, kinds: Map<String, Kind>, where: String): JSONObject {
            for ((key, fits) in kinds) {
                if (held !is JSONObject || !fits(held.opt(key))) throw BundleException("$NAME: lacks what every manifest has ($where$key)")
            }
            return held as JSONObject
        }

        private fun JSONArray.values(): List<Any?> = (0 until length()).map { opt(it) }
    }

    private fun check(sums: Map<String, String>) {
        val stored = files.flatMap { it.parts }.associateBy { it.path }
        for (path in (stored.keys + sums.keys - NAME).sorted()) {
            val said = stored[path] ?: throw BundleException("$path: only in $SUMS, not in $NAME")
            val sum = sums[path] ?: throw BundleException("$path: only in $NAME, not in $SUMS")
            if (said.sha256 != sum) throw BundleException("$path: $NAME and $SUMS state different sha256")
        }
    }
}
