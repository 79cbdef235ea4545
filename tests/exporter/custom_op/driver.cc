// Runs models in an ONNX Runtime that Python cannot load: of another processor, or under a sanitizer.
//
//   driver RUNTIME LIBRARY THREADS [CALLERS] < cases
//
// RUNTIME is a libonnxruntime.so. LIBRARY holds the custom operators; "-" for none, "RegisterCustomOps" if they are linked
// into this program. Each line of the input is a case, words apart by one space:
//
//   MODEL OUTPUT {NAME TYPE RANK DIMENSION... FILE}...
//
// With CALLERS all cases run at once, each called by so many threads, whose outputs must be the same.
// Inputs come from files of raw little-endian numbers; the model's only output goes to such a file. Each case is answered by
// one line: "ok DIMENSION..." or "error" and what the runtime says.
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <future>
#include <iostream>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#define ORT_API_MANUAL_INIT
#include "onnxruntime_cxx_api.h"

namespace {

constexpr uint32_t kApiVersion = 17;  // what the library asks for

struct Input {
  std::string name;
  std::unique_ptr<char[]> data;  // not a byte more than the tensor has: a sanitizer sees what is read beyond
  Ort::Value tensor{nullptr};
};

struct Type {
  const char* name;
  ONNXTensorElementDataType element;
  size_t size;
};

constexpr Type kTypes[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
    {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
    {"float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
    {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},
};

const Type& TypeNamed(const std::string& name) {
  const auto found = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const Type& type) { return type.name == name; });
  if (found == std::end(kTypes)) throw std::runtime_error("no element type " + name);
  return *found;
}

Input ReadInput(const std::string& name, std::istream& words) {
  std::string type_name, path;
  size_t rank = 0;
  words >> type_name >> rank;
  const Type& type = TypeNamed(type_name);
  std::vector<int64_t> dims(rank);
  for (int64_t& dim : dims) words >> dim;
  words >> path;
  const size_t size = std::accumulate(dims.begin(), dims.end(), type.size, std::multiplies<size_t>());
  Input input{name, std::make_unique<char[]>(size)};
  if (!std::ifstream(path, std::ios::binary).read(input.data.get(), static_cast<std::streamsize>(size))) {
    throw std::runtime_error(path + " has not " + std::to_string(size) + " bytes");
  }
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
  input.tensor = Ort::Value::CreateTensor(memory, input.data.get(), size, dims.data(), rank, type.element);
  return input;
}

size_t Write(const std::string& path, const Ort::Value& tensor) {
  const auto info = tensor.GetTensorTypeAndShapeInfo();
  const auto type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                 [&](const Type& known) { return known.element == info.GetElementType(); });
  if (type == std::end(kTypes)) throw std::runtime_error("the output has an unknown element type");
  const auto size = static_cast<std::streamsize>(info.GetElementCount() * type->size);
  if (!std::ofstream(path, std::ios::binary).write(static_cast<const char*>(tensor.GetTensorRawData()), size)) {
    throw std::runtime_error(path + " cannot be written");
  }
  return static_cast<size_t>(size);
}

// Not inlined, so that callgrind counts what happens in here alone (tools/count_instructions.py).
[[gnu::noinline]] Ort::Value RunSession(Ort::Session& session, const std::vector<Input>& inputs) {
  std::vector<const char*> names;
  std::vector<const OrtValue*> values;
  for (const Input& input : inputs) {
    names.push_back(input.name.c_str());
    values.push_back(input.tensor);
  }
  const Ort::AllocatorWithDefaultOptions allocator;
  const Ort::AllocatedStringPtr wanted = session.GetOutputNameAllocated(0, allocator);
  const char* const wanted_name = wanted.get();
  OrtValue* made = nullptr;
  Ort::ThrowOnError(
      Ort::GetApi().Run(session, nullptr, names.data(), values.data(), names.size(), &wanted_name, 1, &made));
  return Ort::Value(made);
}

bool SameBytes(const Ort::Value& one, const Ort::Value& other, size_t size) {
  return std::memcmp(one.GetTensorRawData(), other.GetTensorRawData(), size) == 0;
}

// Runs one case and returns the dimensions of its output.
std::vector<int64_t> Run(const Ort::Env& env, const Ort::SessionOptions& options, size_t callers, std::istream& words) {
  std::string model, output, name;
  words >> model >> output;
  std::vector<Input> inputs;
  while (words >> name) inputs.push_back(ReadInput(name, words));
  Ort::Session session(env, model.c_str(), options);
  std::vector<std::future<Ort::Value>> others;
  while (others.size() + 1 < callers) {
    others.push_back(std::async(std::launch::async, [&] { return RunSession(session, inputs); }));
  }
  const Ort::Value result = RunSession(session, inputs);
  const size_t size = Write(output, result);
  for (auto& other : others) {
    if (!SameBytes(result, other.get(), size)) throw std::runtime_error("two threads got different outputs");
  }
  return result.GetTensorTypeAndShapeInfo().GetShape();
}

std::string Answer(const Ort::Env& env, const Ort::SessionOptions& options, size_t callers, const std::string& line) {
  std::istringstream words(line);
  try {
    std::ostringstream answer("ok", std::ios::ate);
    for (const int64_t dim : Run(env, options, callers, words)) answer << ' ' << dim;
    return answer.str();
  } catch (const std::exception& error) {
    std::string text = error.what();
    std::replace(text.begin(), text.end(), '\n', ' ');
    return "error " + text;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return std::cerr << "usage: driver RUNTIME LIBRARY THREADS [CALLERS] < cases\n", 2;
  const size_t callers = argc > 4 ? std::stoul(argv[4]) : 1;
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);  // or a runtime from 1.29 on reports to its maker
  void* const runtime = dlopen(argv[1], RTLD_NOW);
  if (runtime == nullptr) return std::cerr << dlerror() << '\n', 2;
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(runtime, "OrtGetApiBase"))();
  Ort::InitApi(base->GetApi(kApiVersion));
  const Ort::Env env(ORT_LOGGING_LEVEL_FATAL);
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(std::stoi(argv[3])).DisableCpuMemArena().DisableMemPattern();
  const std::string library = argv[2];
  if (library == "RegisterCustomOps") {
    options.RegisterCustomOpsUsingFunction(library.c_str());
  } else if (library != "-") {
    options.RegisterCustomOpsLibrary(library.c_str());
  }
  std::vector<std::future<std::string>> answers;
  const auto launch = callers > 1 ? std::launch::async : std::launch::deferred;
  for (std::string line; std::getline(std::cin, line);) {
    answers.push_back(std::async(launch, [&, line] { return Answer(env, options, callers, line); }));
  }
  for (auto& answer : answers) std::cout << answer.get() << std::endl;
}
