// ai.adadim::RotateAdaDim: its inputs, checked before anything is computed.
#include <memory>

#include "node.h"
#include "rotate.h"

namespace adadim {
namespace {

constexpr auto kSigned = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
enum Input : size_t { kX, kSigns, kLeft, kRight };
constexpr const char* kNames[] = {"X", "signs", "left", "right"};

struct RotateNode : Node {
  RotateNode(const Operator& op, const OrtApi* api, const OrtKernelInfo* info);
  void Compute(OrtKernelContext* context) const;

 private:
  // Of signs, left and right, in this order.
  std::unique_ptr<const Rotation> Checked(const Tensor given[3]) const;
  void CheckEntries(Input input, const Tensor& tensor) const;

  std::unique_ptr<const Rotation> constant_;  // null if an input is no constant: then it is made for each call
};

RotateNode::RotateNode(const Operator& op, const OrtApi* api, const OrtKernelInfo* info) : Node(op, api, info) {
  Tensor given[3];
  for (size_t i = 0; i < 3; ++i) {
    int constant = 0;
    const OrtValue* value = nullptr;
    Check(api->KernelInfoGetConstantInput_tensor(info, kSigns + i, &constant, &value));
    if (constant == 0 || value == nullptr) return;
    given[i] = ReadValue(*this, value);
  }
  constant_ = Checked(given);
}

void RotateNode::CheckEntries(Input input, const Tensor& tensor) const {
  const int8_t* entries = static_cast<const int8_t*>(tensor.data);
  int64_t count = 1;
  for (const int64_t dim : tensor.dims) count *= dim;
  for (int64_t i = 0; i < count; ++i) {
    if (entries[i] != 1 && entries[i] != -1) {
      Fail(*this, "%s holds %d at place %" PRId64 ", not +1 or -1", kNames[input], entries[i], i);
    }
  }
}

std::unique_ptr<const Rotation> RotateNode::Checked(const Tensor given[3]) const {
  const Tensor &signs = given[0], &left = given[1], &right = given[2];
  const auto matrix = [&](Input input, const Tensor& tensor) {
    if (tensor.dims.size() != 2 || tensor.dims[0] != tensor.dims[1] || tensor.dims[0] == 0 || tensor.dims[0] > kLargestSide) {
      Fail(*this, "%s is %s, no square matrix", kNames[input], Text(tensor.dims).c_str());
    }
    CheckEntries(input, tensor);
    return Square{static_cast<const int8_t*>(tensor.data), tensor.dims[0]};
  };
  const Square a = matrix(kLeft, left), b = matrix(kRight, right);
  if (signs.dims.size() != 1 || signs.dims[0] == 0 || signs.dims[0] > kLargestSide) {
    Fail(*this, "signs is %s, no vector", Text(signs.dims).c_str());
  }
  if (signs.dims[0] % (a.order * b.order) != 0) {
    Fail(*this, "signs is %s, no multiple of left times right, %" PRId64 " x %" PRId64, Text(signs.dims).c_str(), a.order, b.order);
  }
  CheckEntries(kSigns, signs);
  return std::make_unique<const Rotation>(static_cast<const int8_t*>(signs.data), signs.dims[0], a, b);
}

void RotateNode::Compute(OrtKernelContext* context) const {
  std::unique_ptr<const Rotation> made;
  if (constant_ == nullptr) {
    Tensor given[3];
    for (size_t i = 0; i < 3; ++i) given[i] = Require(*this, context, kSigns + i, kNames[kSigns + i]);
    made = Checked(given);
  }
  const Rotation& rotation = constant_ == nullptr ? *made : *constant_;
  const Tensor x = Require(*this, context, kX, "X");
  const int64_t rows = CountRows(*this, "X", x, rotation.channels);
  void* y = Output(*this, context, x.dims);
  Pool pool{api, context};
  Rotate(rotation, {x.data, y, rows, op.element == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16}, {RunInPool, &pool});
}

}  // namespace

Operator RotateAdaDim(ONNXTensorElementDataType element) {
  return OperatorOf<RotateNode>("RotateAdaDim", "rotate-adadim.md", {element, kSigned, kSigned, kSigned}, 4);
}

}  // namespace adadim
