import Foundation

/// Something about a bundle that is not as it should be, in one line that names the file.
struct BundleError: LocalizedError {
    let errorDescription: String?

    init(_ problem: String) {
        errorDescription = problem
    }
}

/// A file as it lies in the bundle.
struct Stored: Decodable {
    let path: String
    let bytes: Int
    let sha256: String
}

/// A file as the runtime reads it: what its parts give one after another, or itself if it has none.
struct BundleFile: Decodable {
    let path: String
    let bytes: Int
    let sha256: String
    let parts: [Stored]?

    var stored: [Stored] { parts ?? [Stored(path: path, bytes: bytes, sha256: sha256)] }
}

/// What an app reads of manifest.json.
struct Manifest: Decodable {
    struct Runtime: Decodable {
        let name: String
    }

    struct Generation: Decodable {
        let eosTokenIds: [Int]
        let context: Int
    }

    struct Library: Decodable {
        let path: String
    }

    static let path = "manifest.json"
    static let sums = "SHA256SUMS"
    private static let version = 1

    let name: String
    let runtime: Runtime
    /// The file that the runtime opens.
    let model: String
    let generation: Generation
    /// Native code is linked into the app and never taken from a bundle.
    let libraries: [Library]
    let files: [BundleFile]
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
            let version: Int
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
            throw BundleError("\(path): lacks what every manifest has (\(error))")
        }
    }

    private func check(sums: [String: String]) throws {
        if let odd = files.first(where: { !Self.isPlain($0.path) }) {
            throw BundleError("\(Self.path): \(odd.path) is no plain name")
        }
        guard files.contains(where: { $0.path == model }), Set(files.map(\.path)).count == files.count else {
            throw BundleError("\(Self.path): \(model) is not once in its list of files")
        }
        let stored = Dictionary(files.flatMap(\.stored).map { ($0.path, $0.sha256) }, uniquingKeysWith: { $1 })
        for path in Set(stored.keys).union(sums.keys).subtracting([Self.path]).sorted() {
            guard let said = stored[path] else { throw BundleError("\(path): only in \(Self.sums), not in \(Self.path)") }
            guard let sum = sums[path] else { throw BundleError("\(path): only in \(Self.path), not in \(Self.sums)") }
            guard said == sum else { throw BundleError("\(path): \(Self.path) and \(Self.sums) state different sha256") }
        }
    }

    private static func isDigest(_ text: String) -> Bool {
        text.wholeMatch(of: #/[0-9a-f]{64}/#) != nil
    }

    private static func isPlain(_ path: String) -> Bool {
        path.wholeMatch(of: #/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99})*/#) != nil
    }
}
