// ai.adadim::MatMulAdaDim as a custom operator of ONNX Runtime. No exception leaves this file: errors are statuses.
#include "register.h"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "kernel.h"
#include "shapes.h"

namespace adadim {
namespace {

constexpr uint32_t kApiVersion = 17;  // the first with KernelContext_ParallelFor
constexpr int64_t kLargestSide = 1 << 28;  // keeps every product of sizes far inside 64 bits
enum Input : size_t { kA, kCodes, kScales, kZeroPoints, kBias, kInputs };

struct Operator : OrtCustomOp {
  ONNXTensorElementDataType element;  // of A and Y
};

struct Node {
  const OrtApi* api;
  std::string name;
  ONNXTensorElementDataType element;
  Precision precision;
  Weights weights;  // pointers are set for each call
  Shapes shapes;
};

struct Tensor {
  std::vector<int64_t> dims;
  ONNXTensorElementDataType type;
  const void* data;
};

// An error that becomes an ORT status, or a status of ORT's own to be handed on.
struct Error {
  OrtStatus* status;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) void Fail(const Node& node, const char* format, ...) {
  char what[512], message[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  std::snprintf(message, sizeof message, "MatMulAdaDim node '%s': %s; see docs/reference/matmul-adadim.md", node.name.c_str(), what);
  throw Error{node.api->CreateStatus(ORT_INVALID_ARGUMENT, message)};
}

void Check(OrtStatus* status) {
  if (status != nullptr) throw Error{status};
}

// Runs what may throw and returns its error as a status.
template <typename Function>
OrtStatus* Guarded(const OrtApi* api, Function function) {
  try {
    function();
    return nullptr;
  } catch (const Error& error) {
    return error.status;
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(ORT_FAIL, "MatMulAdaDim: no memory left for activations");
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

std::string NodeName(const OrtApi* api, const OrtKernelInfo* info) {
  size_t size = 0;
  Check(api->KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  Check(api->KernelInfo_GetNodeName(info, &name[0], &size));
  name.resize(size - 1);  // without its final zero
  return name;
}

int64_t Attribute(const Node& node, const OrtKernelInfo* info, const char* attribute, int64_t least, int64_t most) {
  int64_t value = 0;
  if (OrtStatus* status = node.api->KernelInfoGetAttribute_int64(info, attribute, &value)) {
    node.api->ReleaseStatus(status);
    Fail(node, "has no integer attribute %s", attribute);
  }
  if (value < least || value > most) {
    Fail(node, "%s = %" PRId64 " is not in %" PRId64 " to %" PRId64, attribute, value, least, most);
  }
  return value;
}

void ReadAttributes(Node& node, const OrtKernelInfo* info) {
  Weights& w = node.weights;
  w.K = Attribute(node, info, "K", 1, kLargestSide);
  w.N = Attribute(node, info, "N", 1, kLargestSide);
  w.bits = Attribute(node, info, "bits", 2, 8);
  if (w.bits > 4 && w.bits < 8) Fail(node, "bits = %" PRId64 " is not 2, 3, 4 or 8", w.bits);
  w.group_size = Attribute(node, info, "group_size", 1, INT64_MAX);
  w.per_oc = Attribute(node, info, "per_oc", 0, 1) == 1;
  w.layout = Attribute(node, info, "layout", 0, 1);
  node.precision = Attribute(node, info, "accuracy_level", 0, 4) == 4 ? Precision::kInt8 : Precision::kFloat;
  const int64_t columns = w.per_oc ? w.K : w.N;
  if (w.layout == 1 && w.group_size % kTile != 0 && w.group_size < columns) {
    Fail(node, "group_size = %" PRId64 " is neither a multiple of 16 nor all of %" PRId64 " channels, as layout 1 needs",
         w.group_size, columns);
  }
  node.shapes = ShapesOf(w);
}

// False for an optional input that is left out.
bool ReadInput(const Node& node, const OrtKernelContext* context, size_t index, Tensor* tensor) {
  const OrtValue* value = nullptr;
  Check(node.api->KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return false;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(node.api->GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  OrtStatus* status = node.api->GetTensorElementType(info, &tensor->type);
  if (status == nullptr) status = node.api->GetDimensionsCount(info, &rank);
  tensor->dims.resize(rank);
  if (status == nullptr) status = node.api->GetDimensions(info, tensor->dims.data(), rank);
  node.api->ReleaseTensorTypeAndShapeInfo(info);
  Check(status);
  // The C API hands out no pointer to constant data, but reads only.
  void* data = nullptr;
  Check(node.api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor->data = data;
  return true;
}

Tensor Require(const Node& node, const OrtKernelContext* context, size_t index, const char* name) {
  Tensor tensor;
  if (!ReadInput(node, context, index, &tensor)) Fail(node, "input %s is missing", name);
  return tensor;
}

std::string Text(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(dims[i]);
  return text + "]";
}

void CheckShape(const Node& node, const char* name, const Tensor& tensor, const std::vector<int64_t>& wanted) {
  if (tensor.dims != wanted) Fail(node, "%s is %s, not %s", name, Text(tensor.dims).c_str(), Text(wanted).c_str());
}

Weights ReadWeights(const Node& node, const OrtKernelContext* context) {
  const Tensor codes = Require(node, context, kCodes, "codes");
  const Tensor scales = Require(node, context, kScales, "scales");
  const Tensor zeros = Require(node, context, kZeroPoints, "zero_points");
  Weights w = node.weights;
  w.float16_scales = scales.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (!w.float16_scales && scales.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    Fail(node, "scales have element type %d, not float16 or float32", static_cast<int>(scales.type));
  }
  const Shapes& s = node.shapes;
  CheckShape(node, "codes", codes, {s.codes.rows, s.codes.columns});
  CheckShape(node, "scales", scales, {s.scales.rows, s.scales.columns});
  w.shared_zeros = zeros.dims == std::vector<int64_t>{s.shared_zeros.rows, s.shared_zeros.columns};
  if (!w.shared_zeros) CheckShape(node, "zero_points", zeros, {s.zero_points.rows, s.zero_points.columns});
  w.codes = static_cast<const uint8_t*>(codes.data);
  w.scales = scales.data;
  w.zero_points = static_cast<const uint8_t*>(zeros.data);
  return w;
}

// Number of rows of A. A dimension of zero is an error.
int64_t Rows(const Node& node, const Tensor& a) {
  const std::string dims = Text(a.dims);
  if (a.dims.empty() || a.dims.back() != node.weights.K) {
    Fail(node, "A is %s, its last dimension must be K = %" PRId64, dims.c_str(), node.weights.K);
  }
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < a.dims.size(); ++i) rows *= a.dims[i];
  if (rows == 0) Fail(node, "A is %s, which holds no row", dims.c_str());
  return rows;
}

const float* ReadBias(const Node& node, const OrtKernelContext* context) {
  size_t count = 0;
  Check(node.api->KernelContext_GetInputCount(context, &count));
  Tensor bias;
  if (count <= kBias || !ReadInput(node, context, kBias, &bias)) return nullptr;
  CheckShape(node, "bias", bias, {node.weights.N});
  return static_cast<const float*>(bias.data);
}

void* Output(const Node& node, OrtKernelContext* context, std::vector<int64_t> dims) {
  dims.back() = node.weights.N;
  OrtValue* value = nullptr;
  void* data = nullptr;
  Check(node.api->KernelContext_GetOutput(context, 0, dims.data(), dims.size(), &value));
  Check(node.api->GetTensorMutableData(value, &data));
  return data;
}

struct Pool {
  const OrtApi* api;
  const OrtKernelContext* context;
};

#if defined(__SANITIZE_THREAD__)  // ThreadSanitizer is told what it cannot see in ONNX Runtime: tasks run between start and end
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);

struct SeenTask {
  void (*task)(void*, size_t);
  void* data;
};

void RunSeen(void* data, size_t index) {
  const SeenTask& seen = *static_cast<SeenTask*>(data);
  __tsan_acquire(data);
  seen.task(seen.data, index);
  __tsan_release(data);
}
#endif

void RunInPool(void* data, void (*task)(void*, size_t), void* task_data, size_t count) {
  const Pool& pool = *static_cast<Pool*>(data);
  if (count == 1) return task(task_data, 0);
#if defined(__SANITIZE_THREAD__)
  SeenTask seen{task, task_data};
  __tsan_release(&seen);
  Check(pool.api->KernelContext_ParallelFor(pool.context, RunSeen, count, 0, &seen));
  __tsan_acquire(&seen);
#else
  Check(pool.api->KernelContext_ParallelFor(pool.context, task, count, 0, task_data));
#endif
}

void Compute(const Node& node, OrtKernelContext* context) {
  const Weights weights = ReadWeights(node, context);
  const Tensor a = Require(node, context, kA, "A");
  const int64_t rows = Rows(node, a);
  const float* bias = ReadBias(node, context);
  void* y = Output(node, context, a.dims);
  Pool pool{node.api, context};
  MatMul(weights, {a.data, rows, bias, y, node.precision, node.element == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
         {RunInPool, &pool});
}

OrtStatus* CreateNode(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return Guarded(api, [&] {
    Node node{api, NodeName(api, info), static_cast<const Operator*>(op)->element, Precision::kFloat, {}, {}};
    ReadAttributes(node, info);
    *kernel = new Node(node);
  });
}

OrtStatus* ComputeNode(void* kernel, OrtKernelContext* context) {
  const Node& node = *static_cast<Node*>(kernel);
  return Guarded(node.api, [&] { Compute(node, context); });
}

ONNXTensorElementDataType InputType(const OrtCustomOp* op, size_t index) {
  switch (index) {
    case kA: return static_cast<const Operator*>(op)->element;
    case kScales: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // float16 or float32
    case kBias: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
}

Operator MakeOperator(ONNXTensorElementDataType element) {
  Operator op{};
  op.version = kApiVersion;
  op.element = element;
  op.GetName = [](const OrtCustomOp*) { return "MatMulAdaDim"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputType = InputType;
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return static_cast<const Operator*>(self)->element; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index == kBias ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.CreateKernelV2 = CreateNode;
  op.KernelComputeV2 = ComputeNode;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

// Sessions keep using the domain and its operators: they live as long as the library.
OrtCustomOpDomain* Domain(const OrtApi* api) {
  static Operator operators[] = {MakeOperator(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
                                 MakeOperator(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)};
  static OrtCustomOpDomain* const domain = [api] {
    OrtCustomOpDomain* made = nullptr;
    Check(api->CreateCustomOpDomain("ai.adadim", &made));
    for (Operator& op : operators) Check(api->CustomOpDomain_Add(made, &op));
    return made;
  }();
  return domain;
}

}  // namespace
}  // namespace adadim

OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(adadim::kApiVersion);
  if (api == nullptr) return nullptr;  // older than 1.17, and without an API there is no status: the model's own body runs
  return adadim::Guarded(api, [&] { adadim::Check(api->AddCustomOpDomain(options, adadim::Domain(api))); });
}
