import Foundation

/// Something about a bundle that is not as it should be, in one line that names the file.
struct BundleError: LocalizedError {
    let errorDescription: String?

    init(_ problem: String) {
        errorDescription = problem.unicodeScalars.map { $0.canBePrinted ? String($0) : $0.escaped(asASCII: true) }.joined()
    }
}

private extension Unicode.Scalar {
    var canBePrinted: Bool {
        switch properties.generalCategory {
        case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator: return false
        case .spaceSeparator: return self == " "
        default: return true
        }
    }
}

/// A file as it lies in the bundle.
struct Stored {
    let path: String
    let bytes: Int
    let sha256: String
}

/// A file as the runtime reads it: what its parts give one after another, or itself if it has none.
struct BundleFile {
    let path: String
    let bytes: Int
    let sha256: String
    let parts: [Stored]?

    var stored: [Stored] { parts ?? [Stored(path: path, bytes: bytes, sha256: sha256)] }
}

private enum FileKey: String, CodingKey {
    case path, bytes, sha256, parts
}

extension Stored: Decodable {
    init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: FileKey.self)
        path = try values.typed(.path, Manifest.isPlain)
        bytes = try values.typed(.bytes) { (0..<(1 << 62)).contains($0) }
        sha256 = try values.typed(.sha256, Manifest.isDigest)
    }
}

extension BundleFile: Decodable {
    init(from decoder: any Decoder) throws {
        let whole = try Stored(from: decoder)
        let values = try decoder.container(keyedBy: FileKey.self)
        path = whole.path
        bytes = whole.bytes
        sha256 = whole.sha256
        parts = try values.contains(.parts) ? values.decode([Stored].self, forKey: .parts) : nil
    }
}

private extension KeyedDecodingContainer {
    /// A value that fits; one that does not is as one of another type.
    func typed<Value: Decodable>(_ key: Key, _ fits: (Value) -> Bool) throws -> Value {
        let value = try decode(Value.self, forKey: key)
        guard fits(value) else { throw DecodingError.dataCorruptedError(forKey: key, in: self, debugDescription: "does not fit") }
        return value
    }
}

private extension DecodingError {
    /// The keys that lead to what does not fit: "name", "a part's bytes".
    var place: String {
        let keys: [any CodingKey]
        switch self {
        case let .keyNotFound(key, context): keys = context.codingPath + [key]
        case let .typeMismatch(_, context), let .valueNotFound(_, context), let .dataCorrupted(context): keys = context.codingPath
        @unknown default: keys = []
        }
        let names = keys.filter { $0.intValue == nil }.map { $0.stringValue }
        guard let last = names.last, names.count > 1 else { return names.last ?? "an object" }
        let owner = names[names.count - 2]
        return (["files": "a file", "parts": "a part", "libraries": "a library"][owner] ?? owner) + "'s " + last
    }
}

/// What an app reads of manifest.json.
struct Manifest: Decodable {
    struct Runtime: Decodable {
        let name: String
    }

    struct Generation: Decodable {
        let eosTokenIds: [Int32]
        let context: Int
    }

    struct Library: Decodable {
        let abi: String
        let path: String
    }

    /// Of which the app reads nothing.
    struct Object: Decodable {
        init(from decoder: any Decoder) throws {
            _ = try decoder.container(keyedBy: FileKey.self)
        }
    }

    static let path = "manifest.json"
    static let sums = "SHA256SUMS"
    private static let version: Int32 = 1
    private static let platforms = ["android", "ios", "web"]

    let name: String
    let platform: String
    let bundledBy: String
    let runtime: Runtime
    /// The file that the runtime opens.
    let model: String
    let generation: Generation
    /// Native code is linked into the app and never taken from a bundle.
    let libraries: [Library]
    let files: [BundleFile]
    let quantization: Object
    let licence: Object
    let source: Object
    let provenance: Object
    let evaluation: Object?
}

extension Manifest {
    /// Path -> sha256 of every file but the list itself.
    static func parseSums(_ data: Data) throws -> [String: String] {
        let lines = String(decoding: data, as: UTF8.self).split(separator: "\n", omittingEmptySubsequences: false)
        var sums: [String: String] = [:]
        for (number, line) in lines.dropLast().enumerated() {
            let sum = String(line.prefix(64)), path = String(line.dropFirst(66))
            guard isDigest(sum), line.dropFirst(64).hasPrefix("  "), isPlain(path), path != Self.sums, sums[path] == nil else {
                throw BundleError("\(Self.sums): line \(number + 1) is not a sha256, two spaces and a plain name that is there once")
            }
            sums[path] = sum
        }
        let paths = lines.dropLast().map { $0.utf8.dropFirst(66) }
        let inOrder = zip(paths, paths.dropFirst()).allSatisfy { $0.lexicographicallyPrecedes($1) }
        guard inOrder, lines.last == "" else {
            throw BundleError("\(Self.sums): its lines are not in order, or the last one is cut off")
        }
        return sums
    }

    /// The manifest, which has to say of every file what `sums` says.
    static func parse(_ data: Data, sums: [String: String]) throws -> Manifest {
        struct Head: Decodable {
            let format: String
            let version: Int32
        }
        guard let head = try? JSONDecoder().decode(Head.self, from: data), head.format == "adadim-bundle", head.version >= 1 else {
            throw BundleError("\(path): is no manifest of adadim-bundle")
        }
        guard head.version <= version else {
            throw BundleError("\(path): version \(head.version) is from the future, \(version) is known here; update the app")
        }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        do {
            let manifest = try decoder.decode(Manifest.self, from: data)
            try manifest.check(sums: sums)
            return manifest
        } catch let error as DecodingError {
            throw BundleError("\(path): lacks what every manifest has (\(error.place))")
        }
    }

    private func check(sums: [String: String]) throws {
        let lying = files.flatMap(\.stored)
        let paths = Set(lying.map(\.path)), wholes = Set(files.map(\.path))
        let unlisted = libraries.map(\.path).first(where: { !paths.contains($0) }) ?? (wholes.contains(model) ? nil : model)
        guard unlisted == nil, wholes.count == files.count, paths.count == lying.count else {
            throw BundleError("\(Self.path): \(Self.cut(unlisted ?? "a file", to: 200)) is not once in its list of files")
        }
        guard Self.platforms.contains(platform) else {
            let known = Self.platforms.joined(separator: ", ")
            throw BundleError("\(Self.path): platform '\(Self.cut(platform, to: 99))' is none of \(known)")
        }
        guard (0...Int(Int32.max)).contains(generation.context) else { // as the runtimes count tokens
            throw BundleError("\(Self.path): lacks what every manifest has (generation's context)")
        }
        let stored = Dictionary(lying.map { ($0.path, $0.sha256) }, uniquingKeysWith: { $1 })
        for path in Set(stored.keys).union(sums.keys).subtracting([Self.path]).sorted() {
            guard let said = stored[path] else { throw BundleError("\(path): only in \(Self.sums), not in \(Self.path)") }
            guard let sum = sums[path] else { throw BundleError("\(path): only in \(Self.path), not in \(Self.sums)") }
            guard said == sum else { throw BundleError("\(path): \(Self.path) and \(Self.sums) state different sha256") }
        }
    }

    /// Its first characters: of a Character there may be no end.
    private static func cut(_ text: String, to most: Int) -> String {
        String(text.unicodeScalars.prefix(most))
    }

    fileprivate static func isDigest(_ text: String) -> Bool {
        text.wholeMatch(of: #/[0-9a-f]{64}/#) != nil
    }

    /// No such path climbs, starts at a root, or goes on without end.
    fileprivate static func isPlain(_ path: String) -> Bool {
        path.wholeMatch(of: #/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,15}/#) != nil
    }
}
