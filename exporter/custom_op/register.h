// The entry point that ONNX Runtime looks for in a library of custom operators; on iOS, where libraries are linked
// statically, hand it to RegisterCustomOpsUsingFunction.
#ifndef ADADIM_REGISTER_H_
#define ADADIM_REGISTER_H_

#include "onnxruntime_c_api.h"

extern "C" ORT_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

#endif  // ADADIM_REGISTER_H_
