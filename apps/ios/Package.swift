// swift-tools-version: 5.9

import PackageDescription

let package = Package(
    name: "AdaDimSample",
    platforms: [.iOS(.v16)],
    products: [.library(name: "AdaDimSample", targets: ["AdaDimSample"])],
    dependencies: [
        .package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.27.0"),
        .package(url: "https://github.com/huggingface/swift-transformers", from: "1.0.0"),
    ],
    targets: [
        .target(
            name: "AdaDimSample",
            dependencies: [
                "llama",
                .product(name: "onnxruntime", package: "onnxruntime-swift-package-manager"),
                .product(name: "Tokenizers", package: "swift-transformers"),
            ]
        ),
        // Of a release of llama.cpp, b6451 or later, unpacked beside this file.
        .binaryTarget(name: "llama", path: "llama.xcframework"),
    ]
)
