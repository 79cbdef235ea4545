package ai.adadim.sample

/** Something about a bundle that is not as it should be, in one line that names the file. */
class BundleException(problem: String) : Exception(escaped(problem))

/** The names and sums that a bundle may hold: no path of these climbs, starts at a root, or goes on without end. */
internal object Names {
    private const val NAME = "[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
    private val PLAIN = Regex("$NAME(/$NAME){0,15}")
    private val SHA256 = Regex("[0-9a-f]{64}")

    fun isPlain(path: Any?) = path is String && PLAIN.matches(path)

    fun isSha256(sum: Any?) = sum is String && SHA256.matches(sum)
}

/** Its first characters, none of them in half. */
internal fun String.cut(most: Int) = substring(0, offsetByCodePoints(0, minOf(most, codePointCount(0, length))))

private val NOT_PRINTABLE = Regex("""(?! )[\p{C}\p{Z}]""")

/** As verify_bundle.py writes what cannot be printed: a line break as \n, others as \x00, \u0000 or \U00000000. */
private fun escaped(text: String) = NOT_PRINTABLE.replace(text) { match ->
    when (val code = match.value.codePointAt(0)) {
        '\t'.code -> "\\t"
        '\n'.code -> "\\n"
        '\r'.code -> "\\r"
        in 0..0xff -> "\\x%02x".format(code)
        in 0..0xffff -> "\\u%04x".format(code)
        else -> "\\U%08x".format(code)
    }
}
