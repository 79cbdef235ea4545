// ai.adadim::MatMulAdaDim and MatMulLevels: their attributes and inputs, checked before anything is computed.
#include "node.h"
#include "shapes.h"

namespace adadim {
namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kByte = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, kAny = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
enum Input : size_t { kA, kCodes, kScales, kThird, kBias };  // kThird: zero points, or levels

struct MatMulNode : Node {
  MatMulNode(const Operator& op, const OrtApi* api, const OrtKernelInfo* info);
  // Codes and scales, for weights whose shapes are known.
  void ReadPacked(const OrtKernelContext* context, const Shapes& shapes, Weights* w) const;
  void Multiply(OrtKernelContext* context, const Weights& w) const;

  Precision precision;
  Weights weights{};  // pointers are set for each call
};

MatMulNode::MatMulNode(const Operator& op, const OrtApi* api, const OrtKernelInfo* info) : Node(op, api, info) {
  Weights& w = weights;
  w.K = Attribute(*this, info, "K", 1, kLargestSide);
  w.N = Attribute(*this, info, "N", 1, kLargestSide);
  w.bits = Attribute(*this, info, "bits", 2, 8);
  w.group_size = Attribute(*this, info, "group_size", 1, INT64_MAX);
  w.per_oc = Attribute(*this, info, "per_oc", 0, 1) == 1;
  w.layout = Attribute(*this, info, "layout", 0, 1);
  w.dims = 1;
  precision = Attribute(*this, info, "accuracy_level", 0, 4) == 4 ? Precision::kInt8 : Precision::kFloat;
}

// Groups of layout 1 are whole multiples of a size, or one group is all there is.
void CheckGroups(const MatMulNode& node, int64_t multiple) {
  const Weights& w = node.weights;
  const int64_t columns = w.per_oc ? w.K : w.N;
  if (w.layout == 1 && w.group_size % multiple != 0 && w.group_size < columns) {
    Fail(node, "group_size = %" PRId64 " is neither a multiple of %" PRId64 " nor all of %" PRId64 " channels, as layout 1 needs",
         w.group_size, multiple, columns);
  }
}

void MatMulNode::ReadPacked(const OrtKernelContext* context, const Shapes& shapes, Weights* w) const {
  const Tensor codes = Require(*this, context, kCodes, "codes");
  const Tensor scales = Require(*this, context, kScales, "scales");
  w->float16_scales = scales.type == kHalf;
  if (!w->float16_scales && scales.type != kFloat) {
    Fail(*this, "scales have element type %d, not float16 or float32", static_cast<int>(scales.type));
  }
  CheckShape(*this, "codes", codes, {shapes.codes.rows, shapes.codes.columns});
  CheckShape(*this, "scales", scales, {shapes.scales.rows, shapes.scales.columns});
  w->codes = static_cast<const uint8_t*>(codes.data);
  w->scales = scales.data;
}

void MatMulNode::Multiply(OrtKernelContext* context, const Weights& w) const {
  const Tensor a = Require(*this, context, kA, "A");
  const int64_t rows = CountRows(*this, "A", a, w.K);
  size_t count = 0;
  Check(api->KernelContext_GetInputCount(context, &count));
  Tensor bias{};
  if (count > kBias && ReadInput(*this, context, kBias, &bias)) CheckShape(*this, "bias", bias, {w.N});
  std::vector<int64_t> dims = a.dims;
  dims.back() = w.N;
  void* y = Output(*this, context, dims);
  Pool pool{api, context};
  MatMul(w, {a.data, rows, static_cast<const float*>(bias.data), y, precision, op.element == kHalf}, {RunInPool, &pool});
}

struct IntegersNode : MatMulNode {
  IntegersNode(const Operator& op, const OrtApi* api, const OrtKernelInfo* info) : MatMulNode(op, api, info) {
    if (weights.bits > 4 && weights.bits < 8) Fail(*this, "bits = %" PRId64 " is not 2, 3, 4 or 8", weights.bits);
    CheckGroups(*this, kTile);
    shapes = ShapesOf(weights);
  }

  void Compute(OrtKernelContext* context) const {
    Weights w = weights;
    ReadPacked(context, shapes, &w);
    const Tensor zeros = Require(*this, context, kThird, "zero_points");
    w.shared_zeros = zeros.dims == std::vector<int64_t>{shapes.shared_zeros.rows, shapes.shared_zeros.columns};
    if (!w.shared_zeros) CheckShape(*this, "zero_points", zeros, {shapes.zero_points.rows, shapes.zero_points.columns});
    w.zero_points = static_cast<const uint8_t*>(zeros.data);
    Multiply(context, w);
  }

  Shapes shapes;
};

// How many channels share a code stands in the shape of the levels, so shapes are known when the node runs.
struct LevelsNode : MatMulNode {
  LevelsNode(const Operator& op, const OrtApi* api, const OrtKernelInfo* info) : MatMulNode(op, api, info) {
    const int64_t bits = weights.bits;
    if (bits > 4 && bits != 6) Fail(*this, "bits = %" PRId64 " is not 2, 3, 4 or 6", bits);
    if (weights.layout != 1) Fail(*this, "layout = %" PRId64 " is not 1", weights.layout);
    CheckGroups(*this, kBlock);
  }

  void Compute(OrtKernelContext* context) const {
    Weights w = weights;
    const Tensor levels = Require(*this, context, kThird, "levels");
    w.dims = levels.dims.size() == 2 && levels.dims[0] == 2 ? 2 : 1;
    CheckShape(*this, "levels", levels, {w.dims, int64_t{1} << w.bits});
    if (w.dims == 1 && w.bits > 4) Fail(*this, "bits = %" PRId64 " is for pairs, but levels are for single channels", w.bits);
    if (w.dims == 2) CheckPairs(w);
    w.levels = static_cast<const int8_t*>(levels.data);
    ReadPacked(context, ShapesOf(w), &w);
    Multiply(context, w);
  }

  void CheckPairs(const Weights& w) const {
    if (w.bits % 2 != 0 || w.bits < 4) Fail(*this, "bits = %" PRId64 " is not 4 or 6, as levels of pairs need", w.bits);
    if (!w.per_oc) Fail(*this, "per_oc = 0 goes with levels of single channels, not with pairs");
    if (w.K % 2 != 0) Fail(*this, "K = %" PRId64 " is odd, which pairs do not fill", w.K);
  }
};

}  // namespace

Operator MatMulAdaDim(ONNXTensorElementDataType element) {
  return OperatorOf<IntegersNode>("MatMulAdaDim", "matmul-adadim.md", {element, kByte, kAny, kByte, kFloat}, kBias);
}

Operator MatMulLevels(ONNXTensorElementDataType element) {
  constexpr auto kSigned = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  return OperatorOf<LevelsNode>("MatMulLevels", "matmul-levels.md", {element, kByte, kAny, kSigned, kFloat}, kBias);
}

}  // namespace adadim
