import Foundation
import llama

/// A GGUF file in llama.cpp, on the CPU.
actor LlamaModel: LanguageModel {
    private let model: OpaquePointer
    private let context: OpaquePointer
    private let vocab: OpaquePointer

    init(file: URL, context size: Int) throws {
        llama_backend_init()
        var modelParams = llama_model_default_params()
        modelParams.n_gpu_layers = 0 // Metal's sums are other ones; drop this line for speed
        guard let model = llama_model_load_from_file(file.path, modelParams) else {
            throw BundleError("\(file.lastPathComponent): llama.cpp refuses it")
        }
        var contextParams = llama_context_default_params()
        contextParams.n_ctx = UInt32(size)
        guard let context = llama_init_from_model(model, contextParams) else {
            llama_model_free(model)
            throw BundleError("\(file.lastPathComponent): llama.cpp has no room for \(size) tokens")
        }
        self.model = model
        self.context = context
        vocab = llama_model_get_vocab(model)
    }

    deinit {
        llama_free(context)
        llama_model_free(model)
    }

    func prompt(_ question: String) throws -> [Int32] {
        guard let template = llama_model_chat_template(model, nil) else { return tokenize(question) }
        let text = question.withCString { content in
            "user".withCString { role -> String? in
                var message = llama_chat_message(role: role, content: content)
                var buffer = [CChar](repeating: 0, count: 2 * question.utf8.count + 1024)
                let size = llama_chat_apply_template(template, &message, 1, true, &buffer, Int32(buffer.count))
                return 0..<buffer.count ~= Int(size) ? String(cString: buffer) : nil
            }
        }
        guard let text else { throw BundleError("llama.cpp does not know the model's chat template") }
        return tokenize(text)
    }

    private func tokenize(_ text: String) -> [Int32] {
        let size = Int32(text.utf8.count)
        var tokens = [llama_token](repeating: 0, count: Int(size) + 2) // a token has a byte at least; BOS and EOS may come
        let count = llama_tokenize(vocab, text, size, &tokens, Int32(tokens.count), true, true)
        return Array(tokens.prefix(Int(max(0, count))))
    }

    func start(_ prompt: [Int32]) throws -> Int32 {
        llama_memory_clear(llama_get_memory(context), true)
        return try step(prompt)
    }

    func next(after token: Int32) throws -> Int32 {
        try step([token])
    }

    func isEnd(_ token: Int32) -> Bool {
        llama_vocab_is_eog(vocab, token)
    }

    func text(_ tokens: [Int32]) -> String {
        let bytes = tokens.flatMap { token -> [UInt8] in
            var piece = [CChar](repeating: 0, count: 256)
            let size = llama_token_to_piece(vocab, token, &piece, Int32(piece.count), 0, false)
            return piece.prefix(Int(max(0, size))).map(UInt8.init(bitPattern:))
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// Runs the tokens after those before, in batches as large as the context takes.
    private func step(_ tokens: [Int32]) throws -> Int32 {
        let most = Int(llama_n_batch(context))
        for start in stride(from: 0, to: tokens.count, by: most) {
            var piece = Array(tokens[start..<min(start + most, tokens.count)])
            let status = piece.withUnsafeMutableBufferPointer {
                llama_decode(context, llama_batch_get_one($0.baseAddress, Int32($0.count)))
            }
            guard status == 0 else { throw BundleError("llama_decode returns \(status)") }
        }
        let logits = UnsafeBufferPointer(start: llama_get_logits_ith(context, -1), count: Int(llama_vocab_n_tokens(vocab)))
        return Int32(logits.indices.max { logits[$0] < logits[$1] } ?? 0)
    }
}
