// Y = A * W of ai.adadim::MatMulAdaDim (docs/reference/matmul-adadim.md) and MatMulLevels, without ONNX Runtime.
#ifndef ADADIM_KERNEL_H_
#define ADADIM_KERNEL_H_

#include <cstddef>
#include <cstdint>

namespace adadim {

// The packed weights of one node, read in place. The caller has checked their sizes against the specification.
struct Weights {
  int64_t K;
  int64_t N;
  int64_t bits;
  int64_t group_size;
  bool per_oc;  // groups run along K inside an output channel, else along N inside an input channel
  int64_t layout;
  const uint8_t* codes;
  const void* scales;
  bool float16_scales;  // else float32
  const uint8_t* zero_points;  // null for MatMulLevels
  bool shared_zeros;  // one row of zero points stands for all
  const int8_t* levels;  // MatMulLevels: [dims][2^bits], what a code stands for; else null
  int64_t dims;  // neighbouring input channels that share a code: 1, or 2 for MatMulLevels
};

enum class Precision { kFloat, kInt8 };  // what activations are multiplied as

// Y[rows, N] = A[rows, K] * W + bias[N] (none if null), row by row; the bias is float32.
struct Product {
  const void* a;
  int64_t rows;
  const float* bias;
  void* y;
  Precision precision;
  bool float16;  // A and Y; else float32
};

// Calls task(data, i) for every i below count, on any thread and in any order, and returns when all are done.
struct ParallelFor {
  void (*run)(void* pool, void (*task)(void* data, size_t index), void* data, size_t count);
  void* pool;
};

// Throws std::bad_alloc where there is no room for the rounded activations.
void MatMul(const Weights& weights, const Product& product, const ParallelFor& parallel_for);

}  // namespace adadim

#endif  // ADADIM_KERNEL_H_
