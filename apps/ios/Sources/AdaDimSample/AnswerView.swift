import SwiftUI

/// One question, one answer that appears as it is made. The bundle is brought and checked first, and loaded only if it is whole.
public struct AnswerView: View {
    @StateObject private var state: AnswerState
    @State private var question = ""

    /// `digest`: what `adadim bundle` printed last. `address`: where the folder that it wrote is served; nil if it is the app's
    /// resource "bundle".
    public init(digest: String, address: URL?) {
        _state = StateObject(wrappedValue: AnswerState(digest: digest, address: address))
    }

    public var body: some View {
        VStack(alignment: .leading, spacing: 16) {
            Text(state.status)
                .font(.footnote)
                .accessibilityAddTraits(.updatesFrequently)
            ScrollView {
                Text(state.answer)
                    .frame(maxWidth: .infinity, alignment: .leading)
                    .textSelection(.enabled)
            }
            TextField("Your question", text: $question, axis: .vertical)
                .textFieldStyle(.roundedBorder)
                .lineLimit(1...5)
            switch state.phase {
            case .loading: ProgressView()
            case .failed: Button("Try again") { state.load() }
            case .ready: Button("Ask") { state.ask(question) }.disabled(question.isEmpty)
            case .answering: Button("Stop") { state.stop() }
            }
        }
        .buttonStyle(.borderedProminent)
        .controlSize(.large)
        .padding()
        .task { state.load() }
    }
}

@MainActor
final class AnswerState: ObservableObject {
    enum Phase {
        case loading, failed, ready, answering
    }

    @Published private(set) var status = ""
    @Published private(set) var answer = ""
    @Published private(set) var phase = Phase.loading

    private let digest: String
    private let source: any BundleSource
    private var loaded: (model: any LanguageModel, manifest: Manifest)?
    private var work: Task<Void, Never>?

    init(digest: String, address: URL?) {
        self.digest = digest
        if let address {
            source = WebSource(base: address)
        } else {
            source = ResourceSource(folder: Bundle.main.bundleURL.appending(path: "bundle"))
        }
    }

    func load() {
        guard loaded == nil else { return }
        phase = .loading
        work = Task {
            do {
                let folder = URL.applicationSupportDirectory.appending(path: "bundle")
                let installer = BundleInstaller(source: source, digest: digest, folder: folder)
                let manifest = try await installer.install { done, total in
                    await self.say("Checking the model: \(done / 1_000_000) of \(total / 1_000_000) MB")
                }
                status = "Loading \(manifest.name)"
                loaded = (try await openModel(folder: folder, manifest: manifest), manifest)
                (status, phase) = ("\(manifest.name) is ready", .ready)
            } catch { // what is there stays, and the next try goes on from it
                (status, phase) = (error.localizedDescription, .failed)
            }
        }
    }

    func ask(_ question: String) {
        guard let loaded else { return }
        phase = .answering
        work = Task {
            do {
                for try await text in loaded.model.answer(question, context: loaded.manifest.generation.context) { answer = text }
            } catch {
                status = error.localizedDescription
            }
            phase = .ready
        }
    }

    func stop() {
        work?.cancel()
    }

    private func say(_ text: String) {
        status = text
    }
}
