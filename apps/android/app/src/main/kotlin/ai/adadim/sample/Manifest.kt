package ai.adadim.sample

import org.json.JSONException
import org.json.JSONObject

/** Something about a bundle that is not as it should be, in one line that names the file. */
class BundleException(message: String) : Exception(message)

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
        private val LINE = Regex("([0-9a-f]{64}) {2}(.+)")
        private val PLAIN = Regex("[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99})*")

        /** Path -> sha256 of every file but the list itself. */
        fun parseSums(text: String): Map<String, String> {
            val sums = LinkedHashMap<String, String>()
            val lines = text.split("\n")
            lines.dropLast(1).forEachIndexed { index, line ->
                val (sum, path) = LINE.matchEntire(line)?.destructured ?: badLine(index)
                if (!PLAIN.matches(path) || path == SUMS || sums.put(path, sum) != null) badLine(index)
            }
            if (lines.last().isNotEmpty() || sums.keys.toList() != sums.keys.sorted()) {
                throw BundleException("$SUMS: its lines are not in order, or the last one is cut off")
            }
            return sums
        }

        private fun badLine(index: Int): Nothing =
            throw BundleException("$SUMS: line ${index + 1} is not a sha256, two spaces and a plain name that is there once")

        /** The manifest, which has to say of every file what [sums] says. */
        fun parse(text: String, sums: Map<String, String>): Manifest {
            val json = parseVersion(text)
            val manifest = try {
                read(json)
            } catch (error: JSONException) {
                throw BundleException("$NAME: lacks what every manifest has (${error.message})")
            }
            manifest.check(sums)
            return manifest
        }

        private fun parseVersion(text: String): JSONObject {
            val json = try {
                JSONObject(text)
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

        private fun read(json: JSONObject): Manifest {
            val generation = json.getJSONObject("generation")
            val ends = generation.getJSONArray("eos_token_ids")
            val libraries = json.getJSONArray("libraries")
            val files = json.getJSONArray("files")
            return Manifest(
                name = json.getString("name"),
                runtime = json.getJSONObject("runtime").getString("name"),
                model = json.getString("model"),
                ends = (0 until ends.length()).mapTo(HashSet()) { ends.getInt(it) },
                context = generation.getInt("context"),
                libraries = (0 until libraries.length()).mapTo(HashSet()) { libraries.getJSONObject(it).getString("path") },
                files = (0 until files.length()).map { readFile(files.getJSONObject(it)) },
            )
        }

        private fun readFile(json: JSONObject): BundleFile {
            val whole = readStored(json)
            val parts = json.optJSONArray("parts") ?: return BundleFile(whole, listOf(whole))
            return BundleFile(whole, (0 until parts.length()).map { readStored(parts.getJSONObject(it)) })
        }

        private fun readStored(json: JSONObject) = Stored(json.getString("path"), json.getLong("bytes"), json.getString("sha256"))
    }

    private fun check(sums: Map<String, String>) {
        val stored = files.flatMap { it.parts }.associateBy { it.path }
        val odd = files.map { it.whole.path }.firstOrNull { !PLAIN.matches(it) }
        if (odd != null) throw BundleException("$NAME: $odd is no plain name")
        if (files.none { it.whole.path == model } || files.distinctBy { it.whole.path }.size != files.size) {
            throw BundleException("$NAME: $model is not once in its list of files")
        }
        for (path in (stored.keys + sums.keys - NAME).sorted()) {
            val said = stored[path] ?: throw BundleException("$path: only in $SUMS, not in $NAME")
            val sum = sums[path] ?: throw BundleException("$path: only in $NAME, not in $SUMS")
            if (said.sha256 != sum) throw BundleException("$path: $NAME and $SUMS state different sha256")
        }
    }
}
