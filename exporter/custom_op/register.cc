// The library's entry point: the domain ai.adadim with its operators.
#include "register.h"

#include "node.h"

namespace adadim {
namespace {

// Sessions keep using the domain and its operators: they live as long as the library.
OrtCustomOpDomain* Domain(const OrtApi* api) {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  static Operator operators[] = {MatMulAdaDim(kFloat), MatMulAdaDim(kHalf), MatMulLevels(kFloat),
                                 MatMulLevels(kHalf),  RotateAdaDim(kFloat), RotateAdaDim(kHalf)};
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
