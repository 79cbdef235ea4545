#include "node.h"

#include <cstdarg>
#include <cstdio>

namespace adadim {
namespace {

std::string NodeName(const OrtApi* api, const OrtKernelInfo* info) {
  size_t size = 0;
  Check(api->KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  Check(api->KernelInfo_GetNodeName(info, &name[0], &size));
  name.resize(size - 1);  // without its final zero
  return name;
}

}  // namespace

Node::Node(const Operator& op, const OrtApi* api, const OrtKernelInfo* info) : op(op), api(api), name(NodeName(api, info)) {}

void Fail(const Node& node, const char* format, ...) {
  char what[512], message[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  std::snprintf(message, sizeof message, "%s node '%s': %s; see docs/reference/%s", node.op.name, node.name.c_str(), what,
                node.op.page);
  throw Error{node.api->CreateStatus(ORT_INVALID_ARGUMENT, message)};
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

Tensor ReadValue(const Node& node, const OrtValue* value) {
  Tensor tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(node.api->GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  OrtStatus* status = node.api->GetTensorElementType(info, &tensor.type);
  if (status == nullptr) status = node.api->GetDimensionsCount(info, &rank);
  tensor.dims.resize(rank);
  if (status == nullptr) status = node.api->GetDimensions(info, tensor.dims.data(), rank);
  node.api->ReleaseTensorTypeAndShapeInfo(info);
  Check(status);
  // The C API hands out no pointer to constant data, but reads only.
  void* data = nullptr;
  Check(node.api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

bool ReadInput(const Node& node, const OrtKernelContext* context, size_t index, Tensor* tensor) {
  const OrtValue* value = nullptr;
  Check(node.api->KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return false;
  *tensor = ReadValue(node, value);
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

int64_t CountRows(const Node& node, const char* name, const Tensor& a, int64_t K) {
  if (a.dims.empty() || a.dims.back() != K) {
    Fail(node, "%s is %s, its last dimension must be K = %" PRId64, name, Text(a.dims).c_str(), K);
  }
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < a.dims.size(); ++i) rows *= a.dims[i];
  if (rows == 0) Fail(node, "%s is %s, which holds no row", name, Text(a.dims).c_str());
  return rows;
}

void* Output(const Node& node, OrtKernelContext* context, const std::vector<int64_t>& dims) {
  OrtValue* value = nullptr;
  void* data = nullptr;
  Check(node.api->KernelContext_GetOutput(context, 0, dims.data(), dims.size(), &value));
  Check(node.api->GetTensorMutableData(value, &data));
  return data;
}

#if defined(__SANITIZE_THREAD__)  // ThreadSanitizer is told what it cannot see in ONNX Runtime: tasks run between start and end
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);

namespace {

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

}  // namespace
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

}  // namespace adadim
