package ai.adadim.sample

import java.io.ByteArrayOutputStream
import java.text.Normalizer
import java.util.regex.Pattern
import org.json.JSONArray
import org.json.JSONObject

/**
 * A byte-level BPE tokenizer (llama 3, qwen, SmolLM) from tokenizer.json. Throws BundleException for other kinds, whose models come
 * as GGUF: llama.cpp brings the tokenizers of all.
 */
class Tokenizer(text: String) {
    private val ids = HashMap<String, Int>()
    private val tokens = HashMap<Int, String>()
    private val special = HashSet<Int>()
    private val added: Pattern?
    private val ranks = HashMap<Pair<String, String>, Int>()
    private val normalizes: Boolean
    private val ignoresMerges: Boolean
    private val cuts = ArrayList<Pattern>()

    init {
        val json = JSONObject(text)
        val model = json.getJSONObject("model")
        if (model.optString("type", "BPE") != "BPE" || model.optBoolean("byte_fallback")) unknown("model")
        val vocab = model.getJSONObject("vocab")
        for (token in vocab.keys()) name(token, vocab.getInt(token))
        val contents = json.getJSONArray("added_tokens").objects().map { token ->
            name(token.getString("content"), token.getInt("id"))
            if (token.getBoolean("special")) special += token.getInt("id")
            token.getString("content")
        }
        added = if (contents.isEmpty()) null else Pattern.compile(contents.sortedByDescending { it.length }.joinToString("|", transform = Pattern::quote))
        val merges = model.getJSONArray("merges")
        for (index in 0 until merges.length()) {
            val merge = merges.get(index)
            val (left, right) = if (merge is JSONArray) listOf(merge.getString(0), merge.getString(1)) else merge.toString().split(" ")
            ranks[left to right] = index
        }
        ignoresMerges = model.optBoolean("ignore_merges")
        normalizes = when (json.optJSONObject("normalizer")?.getString("type")) {
            null -> false
            "NFC" -> true
            else -> unknown("normalizer")
        }
        val cutter = json.getJSONObject("pre_tokenizer")
        val steps = if (cutter.getString("type") == "Sequence") cutter.getJSONArray("pretokenizers").objects() else listOf(cutter)
        steps.forEach(::addCut)
    }

    private fun name(token: String, id: Int) {
        ids[token] = id
        tokens[id] = token
    }

    private fun addCut(step: JSONObject) {
        when (step.getString("type")) {
            "Digits" -> cuts += unicode(if (step.getBoolean("individual_digits")) "\\p{N}" else "\\p{N}+")
            "Split" -> {
                if (step.getString("behavior") != "Isolated" || step.getBoolean("invert")) unknown("pre_tokenizer")
                cuts += unicode(step.getJSONObject("pattern").getString("Regex"))
            }
            "ByteLevel" -> {
                if (step.getBoolean("add_prefix_space")) unknown("pre_tokenizer")
                if (step.optBoolean("use_regex", true)) cuts += unicode(GPT_2)
            }
            else -> unknown("pre_tokenizer")
        }
    }

    fun encode(text: String): IntArray {
        val out = ArrayList<Int>()
        var start = 0
        val matcher = added?.matcher(text)
        while (matcher != null && matcher.find()) {
            encodePlain(text.substring(start, matcher.start()), out)
            out += ids.getValue(matcher.group())
            start = matcher.end()
        }
        encodePlain(text.substring(start), out)
        return out.toIntArray()
    }

    private fun encodePlain(text: String, out: MutableList<Int>) {
        var pieces = listOf(if (normalizes) Normalizer.normalize(text, Normalizer.Form.NFC) else text)
        for (cut in cuts) pieces = pieces.flatMap { isolate(it, cut) }
        for (piece in pieces) {
            val letters = piece.toByteArray().joinToString("") { LETTERS[it.toInt() and 0xFF].toString() }
            val whole = if (ignoresMerges) ids[letters] else null
            if (whole != null) out += whole else merge(letters).mapTo(out) { ids[it] ?: unknown("vocab") }
        }
    }

    /** The pair that was learned first is joined first, until none is left. */
    private fun merge(letters: String): List<String> {
        val parts = letters.mapTo(ArrayList()) { it.toString() }
        while (parts.size > 1) {
            val best = (0 until parts.size - 1).minBy { ranks[parts[it] to parts[it + 1]] ?: Int.MAX_VALUE }
            if (parts[best] to parts[best + 1] !in ranks) break
            parts[best] += parts.removeAt(best + 1)
        }
        return parts
    }

    /** The bytes of a token's text; none for special tokens. */
    fun bytes(id: Int): ByteArray {
        val token = tokens[id]
        if (token == null || id in special) return ByteArray(0)
        val out = ByteArrayOutputStream()
        for (letter in token) BYTES[letter]?.let(out::write) ?: out.write(letter.toString().toByteArray())
        return out.toByteArray()
    }

    private companion object {
        const val GPT_2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

        /** Byte -> the letter that stands for it in tokens: itself if it can be seen, else one from U+0100 on. */
        val LETTERS: CharArray = run {
            val visible = ('!'..'~') + ('¡'..'¬') + ('®'..'ÿ')
            var next = 0x100
            CharArray(256) { byte -> if (byte.toChar() in visible) byte.toChar() else (next++).toChar() }
        }
        val BYTES: Map<Char, Int> = LETTERS.withIndex().associate { (byte, letter) -> letter to byte }

        /** Android's character classes are Unicode's in any case, and it does not know the flag. */
        fun unicode(pattern: String): Pattern {
            val android = System.getProperty("java.vendor").orEmpty().contains("Android")
            return Pattern.compile(pattern, if (android) 0 else Pattern.UNICODE_CHARACTER_CLASS)
        }

        fun isolate(text: String, cut: Pattern): List<String> {
            val out = ArrayList<String>()
            var start = 0
            val matcher = cut.matcher(text)
            while (matcher.find()) {
                if (matcher.start() > start) out += text.substring(start, matcher.start())
                if (matcher.end() > matcher.start()) out += matcher.group()
                start = matcher.end()
            }
            if (start < text.length) out += text.substring(start)
            return out
        }

        fun JSONArray.objects() = (0 until length()).map { getJSONObject(it) }

        fun unknown(what: String): Nothing = throw BundleException("tokenizer.json: its $what is not byte-level BPE; bundle the model as GGUF")
    }
}
