package ai.adadim.sample

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.io.RandomAccessFile
import java.net.HttpURLConnection
import java.net.URL
import java.security.MessageDigest
import java.util.Locale

/** Where a bundle comes from: the app's assets, or a web server. */
fun interface Source {
    /** Throws FileNotFoundException for a file that is not there, IOException if it cannot be read now. */
    fun open(path: String): InputStream
}

/** Files below [base], which ends with a slash. */
class HttpSource(private val base: String) : Source {
    override fun open(path: String): InputStream {
        val connection = URL(base + path).openConnection() as HttpURLConnection
        connection.connectTimeout = TIMEOUT
        connection.readTimeout = TIMEOUT
        return when (val status = connection.responseCode) {
            HttpURLConnection.HTTP_OK -> connection.inputStream
            HttpURLConnection.HTTP_NOT_FOUND -> throw FileNotFoundException(path)
            else -> throw IOException("$path: the server answers $status")
        }
    }

    private companion object {
        const val TIMEOUT = 20_000 // milliseconds
    }
}

/**
 * Brings the bundle whose SHA256SUMS has the sha256 [digest] from [source] into [folder], where files that came in parts lie whole.
 *
 * Every byte is checked before it counts. What is there from an earlier call is checked and kept, so a call after an interruption
 * goes on with the next part, and one at each start of the app is its check, which needs no network.
 */
class Installer(private val source: Source, private val digest: String, private val folder: File) {
    /** The bundle's manifest, once all of it is there. [progress] is told bytes done and in all. Throws BundleException and IOException. */
    fun install(progress: (Long, Long) -> Unit = { _, _ -> }): Manifest {
        val sums = Manifest.parseSums(bringText(Manifest.SUMS, digest.lowercase(Locale.ROOT), ": not the bundle asked for"))
        val sum = sums[Manifest.NAME] ?: throw BundleException("${Manifest.NAME}: missing")
        val manifest = Manifest.parse(bringText(Manifest.NAME, sum), sums)
        val files = manifest.files.filter { it.whole.path !in manifest.libraries }
        val total = files.sumOf { it.whole.bytes }
        var done = 0L
        for (file in files) {
            bring(file) { inFile -> progress(done + inFile, total) }
            done += file.whole.bytes
        }
        return manifest
    }

    private fun bringText(path: String, sha256: String, remark: String = ""): ByteArray {
        val target = File(folder, path)
        if (sha256(target) != sha256) {
            val data = open(path).use { it.readUpTo(LARGEST_TEXT) }
            if (data.size > LARGEST_TEXT) throw BundleException("$path: at most ${count(LARGEST_TEXT)} bytes are read")
            val found = MessageDigest.getInstance("SHA-256").digest(data).hex()
            if (found != sha256) throw BundleException("$path: ${otherwise(found, sha256)}$remark")
            folder.mkdirs()
            target.writeBytes(data)
        }
        return target.readBytes()
    }

    /** The file by its parts, each appended when it is known to be right: the length says which one is next. */
    private fun bring(file: BundleFile, progress: (Long) -> Unit) {
        val target = File(folder, file.whole.path)
        if (sha256(target) == file.whole.sha256) return progress(file.whole.bytes)
        if (target.length() >= file.whole.bytes) target.delete() // it was whole, and was damaged since
        target.parentFile?.mkdirs()
        var end = 0L
        for (part in file.parts) {
            if (target.length() < end + part.bytes || !target.exists()) append(target, end, part)
            end += part.bytes
            progress(end)
        }
        val found = sha256(target)
        if (found != file.whole.sha256 || end != file.whole.bytes) {
            target.delete()
            throw BundleException("${file.whole.path}: its parts join to ${count(end)} bytes with sha256 $found, not to the file stated")
        }
    }

    /** Writes [part] from [start] on; leaves only what was there before if it is not right. */
    private fun append(target: File, start: Long, part: Stored) {
        val hash = MessageDigest.getInstance("SHA-256")
        var size = 0L
        var whole = false
        RandomAccessFile(target, "rw").use { out ->
            try {
                out.setLength(start)
                out.seek(start)
                open(part.path).use { input ->
                    input.eachChunk { chunk, length ->
                        size += length
                        hash.update(chunk, 0, length)
                        if (size <= part.bytes) out.write(chunk, 0, length)
                        size <= part.bytes
                    }
                }
                val found = hash.digest().hex()
                if (size != part.bytes) throw BundleException("${part.path}: ${wrongLength(size, part.bytes)}")
                if (found != part.sha256) throw BundleException("${part.path}: ${otherwise(found, part.sha256)}")
                whole = true
            } finally {
                if (!whole) out.setLength(start)
            }
        }
    }

    private fun open(path: String): InputStream = try {
        source.open(path)
    } catch (_: FileNotFoundException) {
        throw BundleException("$path: missing")
    }

    private companion object {
        const val LARGEST_TEXT = 1 shl 26 // of SHA256SUMS and manifest.json: more is not read
        const val CHUNK = 1 shl 16

        fun wrongLength(size: Long, expected: Long) =
            if (size > expected) "more than ${count(expected)} bytes: too long" else "${count(size)} bytes instead of ${count(expected)}: truncated"

        fun otherwise(found: String?, expected: String) = "its sha256 is $found, not $expected"

        fun count(value: Number) = String.format(Locale.ROOT, "%,d", value.toLong())

        fun ByteArray.hex() = joinToString("") { "%02x".format(it) }

        /** Null for a file that is not there. */
        fun sha256(file: File): String? {
            if (!file.isFile) return null
            val hash = MessageDigest.getInstance("SHA-256")
            file.inputStream().use { input ->
                input.eachChunk { chunk, length ->
                    hash.update(chunk, 0, length)
                    true
                }
            }
            return hash.digest().hex()
        }

        /** At most one byte more than [limit]. */
        fun InputStream.readUpTo(limit: Int): ByteArray {
            val out = ByteArrayOutputStream()
            eachChunk { chunk, length ->
                out.write(chunk, 0, minOf(length, limit + 1 - out.size()))
                out.size() <= limit
            }
            return out.toByteArray()
        }

        inline fun InputStream.eachChunk(use: (ByteArray, Int) -> Boolean) {
            val chunk = ByteArray(CHUNK)
            while (true) {
                val length = read(chunk)
                if (length < 0 || !use(chunk, length)) return
            }
        }
    }
}
