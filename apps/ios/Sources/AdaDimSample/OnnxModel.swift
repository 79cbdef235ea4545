import Foundation
import Tokenizers
import onnxruntime

/// An exported ONNX graph in onnxruntime.
actor OnnxModel: LanguageModel {
    private static let past = "past_key_values.", present = "present."
    /// The graph gives logits of every position, which for 500 tokens of SmolLM2 would be 100 MB.
    private static let promptPiece = 32

    private let tokenizer: any Tokenizer
    private let ends: Set<Int32>
    private let environment: ORTEnv
    private let session: ORTSession
    private let inputs: Set<String>
    private let outputs: Set<String>
    private let emptyCache: [String: ORTValue]
    private var cache: [String: ORTValue] = [:]
    private var total = 0

    /// `usesKernel`: register MatMulAdaDim's native kernel, which is linked into the app; without it the portable body runs.
    init(file: URL, ends: [Int32], usesKernel: Bool) async throws {
        setenv("ORT_DISABLE_TELEMETRY", "1", 1) // before the first ORTEnv: it would report each session to its maker
        tokenizer = try await AutoTokenizer.from(modelFolder: file.deletingLastPathComponent())
        self.ends = Set(ends)
        let options = try ORTSessionOptions()
        if usesKernel { try options.registerCustomOps(usingFunction: "RegisterCustomOps") }
        environment = try ORTEnv(loggingLevel: .warning)
        session = try ORTSession(env: environment, modelPath: file.path, sessionOptions: options)
        inputs = Set(try session.inputNames())
        outputs = Set(try session.outputNames())
        emptyCache = try Self.emptyCache(inputs, folder: file.deletingLastPathComponent())
    }

    func prompt(_ question: String) throws -> [Int32] {
        try tokenizer.applyChatTemplate(messages: [["role": "user", "content": question]]).map(Int32.init)
    }

    func start(_ prompt: [Int32]) throws -> Int32 {
        (cache, total) = (emptyCache, 0)
        var token: Int32 = -1
        for start in stride(from: 0, to: prompt.count, by: Self.promptPiece) {
            token = try step(Array(prompt[start..<min(start + Self.promptPiece, prompt.count)]))
        }
        return token
    }

    func next(after token: Int32) throws -> Int32 {
        try step([token])
    }

    func isEnd(_ token: Int32) -> Bool {
        ends.contains(token)
    }

    func text(_ tokens: [Int32]) -> String {
        tokenizer.decode(tokens: tokens.map(Int.init), skipSpecialTokens: true)
    }

    private func step(_ tokens: [Int32]) throws -> Int32 {
        total += tokens.count
        let all = [
            "input_ids": tokens.map(Int64.init),
            "attention_mask": Array(repeating: 1, count: total),
            "position_ids": (total - tokens.count..<total).map(Int64.init),
        ]
        let values = try all.filter { inputs.contains($0.key) }.mapValues(Self.int64)
        let results = try session.run(withInputs: values.merging(cache) { $1 }, outputNames: outputs, runOptions: nil)
        for name in cache.keys { cache[name] = results[name.replacing(Self.past, with: Self.present)] }
        guard let logits = results["logits"] else { throw BundleError("model.onnx: has no logits; export it again") }
        return try Self.argmaxOfLast(logits)
    }

    private static func int64(_ values: [Int64]) throws -> ORTValue {
        let data = values.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
        return try ORTValue(tensorData: data, elementType: .int64, shape: [1, NSNumber(value: values.count)])
    }

    private static func argmaxOfLast(_ logits: ORTValue) throws -> Int32 {
        let size = try logits.tensorTypeAndShapeInfo().shape.last?.intValue ?? 0
        let data = try logits.tensorData() as Data
        return data.withUnsafeBytes { bytes in
            let row = bytes.bindMemory(to: Float.self).suffix(size)
            let best = row.indices.max { row[$0] < row[$1] } ?? row.startIndex
            return Int32(best - row.startIndex)
        }
    }

    /// Caches of no position. Their shape is in genai_config.json: onnxruntime-objc does not tell that of an input.
    private static func emptyCache(_ inputs: Set<String>, folder: URL) throws -> [String: ORTValue] {
        struct Config: Decodable {
            struct Model: Decodable {
                let decoder: Decoder
            }

            struct Decoder: Decodable {
                let numKeyValueHeads, headSize: Int
            }

            let model: Model
        }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let config = try decoder.decode(Config.self, from: Data(contentsOf: folder.appending(path: "genai_config.json")))
        let shape = [1, config.model.decoder.numKeyValueHeads, 0, config.model.decoder.headSize].map(NSNumber.init(value:))
        let names = inputs.filter { $0.hasPrefix(past) }
        return try Dictionary(uniqueKeysWithValues: names.map {
            ($0, try ORTValue(tensorData: NSMutableData(), elementType: .float, shape: shape))
        })
    }
}
