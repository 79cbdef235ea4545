// What the nodes of all operators share: their errors, and how they read attributes and tensors from ONNX Runtime. Functions here
// throw; no exception leaves the library, since CreateNode and ComputeNode make statuses of them.
#ifndef ADADIM_NODE_H_
#define ADADIM_NODE_H_

#include <cinttypes>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "kernel.h"
#include "onnxruntime_c_api.h"

namespace adadim {

constexpr uint32_t kApiVersion = 17;  // the first with KernelContext_ParallelFor
constexpr int64_t kLargestSide = 1 << 28;  // keeps every product of sizes far inside 64 bits

// An operator for one type of its first input and its output.
struct Operator : OrtCustomOp {
  const char* name;
  const char* page;  // of docs/reference
  ONNXTensorElementDataType element;
  std::vector<ONNXTensorElementDataType> inputs;  // UNDEFINED: any
  size_t required;  // so many of them are
};

struct Node {
  Node(const Operator& op, const OrtApi* api, const OrtKernelInfo* info);
  const Operator& op;
  const OrtApi* api;
  std::string name;
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

inline void Check(OrtStatus* status) {
  if (status != nullptr) throw Error{status};
}

// One line with the operator's and the node's name.
[[noreturn]] __attribute__((format(printf, 2, 3))) void Fail(const Node& node, const char* format, ...);

// Runs what may throw and returns its error as a status.
template <typename Function>
OrtStatus* Guarded(const OrtApi* api, Function function) {
  try {
    function();
    return nullptr;
  } catch (const Error& error) {
    return error.status;
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(ORT_FAIL, "ai.adadim: no memory left for activations");
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

int64_t Attribute(const Node& node, const OrtKernelInfo* info, const char* attribute, int64_t least, int64_t most);

Tensor ReadValue(const Node& node, const OrtValue* value);
// False for an optional input that is left out.
bool ReadInput(const Node& node, const OrtKernelContext* context, size_t index, Tensor* tensor);
Tensor Require(const Node& node, const OrtKernelContext* context, size_t index, const char* name);

std::string Text(const std::vector<int64_t>& dims);
void CheckShape(const Node& node, const char* name, const Tensor& tensor, const std::vector<int64_t>& wanted);
// Of activations whose last dimension is K. A dimension of zero is an error.
int64_t CountRows(const Node& node, const char* name, const Tensor& a, int64_t K);
void* Output(const Node& node, OrtKernelContext* context, const std::vector<int64_t>& dims);

// ONNX Runtime's own threads.
struct Pool {
  const OrtApi* api;
  const OrtKernelContext* context;
};
void RunInPool(void* pool, void (*task)(void* data, size_t index), void* data, size_t count);

// An operator whose nodes are of this class: made from (op, api, info), run by Compute(context).
template <typename Kind>
Operator OperatorOf(const char* name, const char* page, std::vector<ONNXTensorElementDataType> inputs, size_t required) {
  Operator op{};
  op.version = kApiVersion;
  op.name = name;
  op.page = page;
  op.element = inputs.front();
  op.inputs = std::move(inputs);
  op.required = required;
  op.GetName = [](const OrtCustomOp* self) { return static_cast<const Operator*>(self)->name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) { return static_cast<const Operator*>(self)->inputs[index]; };
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return static_cast<const Operator*>(self)->inputs.size(); };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return static_cast<const Operator*>(self)->element; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = [](const OrtCustomOp* self, size_t index) {
    return index < static_cast<const Operator*>(self)->required ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return Guarded(api, [&] { *kernel = new Kind(*static_cast<const Operator*>(self), api, info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Kind& node = *static_cast<const Kind*>(kernel);
    return Guarded(node.api, [&] { node.Compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kind*>(kernel); };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

// The operators of each file, for one type of activations.
Operator MatMulAdaDim(ONNXTensorElementDataType element);
Operator MatMulLevels(ONNXTensorElementDataType element);
Operator RotateAdaDim(ONNXTensorElementDataType element);

}  // namespace adadim

#endif  // ADADIM_NODE_H_
