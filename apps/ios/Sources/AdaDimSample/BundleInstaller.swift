import CryptoKit
import Foundation

/// Where a bundle comes from. Files are no larger than a part: `adadim bundle --part-size`.
protocol BundleSource: Sendable {
    /// The file's bytes, nil if it is not there. Throws if it cannot be read now.
    func data(_ path: String) async throws -> Data?
}

/// A folder of the app's resources, added to the target as a folder reference.
struct ResourceSource: BundleSource {
    let folder: URL

    func data(_ path: String) async throws -> Data? {
        let file = folder.appending(path: path)
        return FileManager.default.fileExists(atPath: file.path) ? try Data(contentsOf: file) : nil
    }
}

/// Files below an address on a web server.
struct WebSource: BundleSource {
    let base: URL

    func data(_ path: String) async throws -> Data? {
        let (data, response) = try await URLSession.shared.data(from: base.appending(path: path))
        switch (response as? HTTPURLResponse)?.statusCode {
        case 200: return data
        case 404: return nil
        case let status: throw BundleError("\(path): the server answers \(status ?? 0)")
        }
    }
}

/// Brings the bundle whose SHA256SUMS has the sha256 `digest` into `folder`, where files that came in parts lie whole.
///
/// Every byte is checked before it counts. What is there from an earlier call is checked and kept, so a call after an
/// interruption goes on with the next part, and one at each start of the app is its check, which needs no network.
struct BundleInstaller {
    let source: any BundleSource
    let digest: String
    let folder: URL

    /// The bundle's manifest, once all of it is there. `progress` is told bytes done and in all.
    func install(progress: @Sendable (Int, Int) async -> Void) async throws -> Manifest {
        let sums = try Manifest.parseSums(await bringText(Manifest.sums, sha256: digest.lowercased(), remark: ": not the bundle asked for"))
        guard let sum = sums[Manifest.path] else { throw BundleError("\(Manifest.path): missing") }
        let manifest = try Manifest.parse(await bringText(Manifest.path, sha256: sum), sums: sums)
        let libraries = Set(manifest.libraries.map(\.path))
        let files = manifest.files.filter { !libraries.contains($0.path) }
        let total = files.reduce(0) { $0 &+ $1.bytes } // a manifest may state any sizes: no sum of them stops the app
        var done = 0
        for file in files {
            try await bring(file) { await progress(done &+ $0, total) }
            done &+= file.bytes
        }
        return manifest
    }

    private func bringText(_ path: String, sha256: String, remark: String = "") async throws -> Data {
        let target = folder.appending(path: path)
        if let held = try? Data(contentsOf: target), Self.hex(SHA256.hash(data: held)) == sha256 { return held }
        guard let data = try await source.data(path) else { throw BundleError("\(path): missing") }
        try check(data, of: path, sha256: sha256, remark: remark)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try data.write(to: target, options: .atomic)
        return data
    }

    /// The file by its parts, each appended when it is known to be right: the length says which one is next.
    private func bring(_ file: BundleFile, progress: (Int) async -> Void) async throws {
        let target = folder.appending(path: file.path)
        try FileManager.default.createDirectory(at: target.deletingLastPathComponent(), withIntermediateDirectories: true)
        if try Self.sha256(of: target) == file.sha256 { return await progress(file.bytes) }
        if Self.size(of: target) >= file.bytes { try? FileManager.default.removeItem(at: target) } // it was whole, and was damaged since
        if !FileManager.default.fileExists(atPath: target.path) { try Data().write(to: target) }
        var end = 0
        for part in file.stored {
            if Self.size(of: target) < end &+ part.bytes { try await append(part, to: target, at: end) }
            end &+= part.bytes
            await progress(end)
        }
        let found = try Self.sha256(of: target) ?? ""
        guard found == file.sha256, end == file.bytes else {
            try FileManager.default.removeItem(at: target)
            throw BundleError("\(file.path): its parts join to \(end.formatted()) bytes with sha256 \(found), not to the file stated")
        }
    }

    private func append(_ part: Stored, to target: URL, at start: Int) async throws {
        guard let data = try await source.data(part.path) else { throw BundleError("\(part.path): missing") }
        guard data.count == part.bytes else {
            let what = data.count < part.bytes ? "truncated" : "too long"
            throw BundleError("\(part.path): \(data.count.formatted()) bytes instead of \(part.bytes.formatted()): \(what)")
        }
        try check(data, of: part.path, sha256: part.sha256)
        let file = try FileHandle(forWritingTo: target)
        defer { try? file.close() }
        try file.truncate(atOffset: UInt64(start)) // the rest of a part that was not written to its end
        try file.seekToEnd()
        try file.write(contentsOf: data)
    }

    private func check(_ data: Data, of path: String, sha256: String, remark: String = "") throws {
        let found = Self.hex(SHA256.hash(data: data))
        guard found == sha256 else { throw BundleError("\(path): its sha256 is \(found), not \(sha256)\(remark)") }
    }

    private static func size(of file: URL) -> Int {
        (try? file.resourceValues(forKeys: [.fileSizeKey]).fileSize) ?? 0
    }

    /// Nil for a file that is not there.
    private static func sha256(of file: URL) throws -> String? {
        guard FileManager.default.fileExists(atPath: file.path) else { return nil }
        let handle = try FileHandle(forReadingFrom: file)
        defer { try? handle.close() }
        var hash = SHA256()
        while let chunk = try handle.read(upToCount: 1 << 20), !chunk.isEmpty { hash.update(data: chunk) }
        return hex(hash.finalize())
    }

    private static func hex(_ digest: SHA256.Digest) -> String {
        digest.map { String(format: "%02x", $0) }.joined()
    }
}
