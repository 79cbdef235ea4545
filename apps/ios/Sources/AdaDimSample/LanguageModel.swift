import Foundation

/// What both runtimes are to the screen. An actor: everything of a model happens one after another, off the main thread.
protocol LanguageModel: Actor {
    /// The question as the model was taught to be asked, tokenized.
    func prompt(_ question: String) throws -> [Int32]
    /// Forgets everything before, and takes the prompt; the most likely next token.
    func start(_ prompt: [Int32]) throws -> Int32
    /// The most likely token after `token`, which was the last one.
    func next(after token: Int32) throws -> Int32
    /// Whether this token ends the answer.
    func isEnd(_ token: Int32) -> Bool
    /// The text of all tokens of an answer.
    func text(_ tokens: [Int32]) -> String
}

extension LanguageModel {
    /// The growing text of the answer, by its most likely tokens.
    nonisolated func answer(_ question: String, context: Int) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    try await self.stream(question, context: context, to: continuation)
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    private func stream(_ question: String, context: Int, to continuation: AsyncThrowingStream<String, Error>.Continuation) async throws {
        let prompt = try self.prompt(question)
        guard prompt.count < context else {
            throw BundleError("\(prompt.count) tokens are more than the \(context) there is room for")
        }
        var tokens = [try start(prompt)]
        while let last = tokens.last, !isEnd(last), prompt.count + tokens.count < context {
            let text = self.text(tokens)
            // A character whose bytes are not all there yet is held back.
            continuation.yield(text.hasSuffix("\u{FFFD}") ? String(text.dropLast()) : text)
            await Task.yield()
            try Task.checkCancellation()
            tokens.append(try next(after: last))
        }
        continuation.yield(text(tokens))
    }
}

/// Opens an installed bundle.
func openModel(folder: URL, manifest: Manifest) async throws -> any LanguageModel {
    let file = folder.appending(path: manifest.model)
    switch manifest.runtime.name {
    case "onnxruntime": return try await OnnxModel(file: file, ends: manifest.generation.eosTokenIds, usesKernel: !manifest.libraries.isEmpty)
    case "llama.cpp": return try LlamaModel(file: file, context: manifest.generation.context)
    case let other: throw BundleError("\(Manifest.path): runtime \(other) is not known here; update the app")
    }
}
