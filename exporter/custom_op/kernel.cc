#include "kernel.h"

#include "streams.h"

namespace adadim {

void MatMul(const Weights& weights, const Product& product, const ParallelFor& parallel_for) {
  if (product.rows == 0) return;
  MatMulStreams(weights, product, parallel_for);
}

}  // namespace adadim
